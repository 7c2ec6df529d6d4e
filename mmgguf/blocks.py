"""One row per ggml type: how many elements a block holds and how its bytes are laid out.

Every size in the library derives from this table.  The fields keep the names that ggml gives them in
``ggml-common.h``; plain types are blocks of one element.  All dtypes here are little-endian; a big-endian
file uses ``Layout.stored("big")``.

Vocabulary: a *block* is the unit of quantization, ``block_size`` its elements, ``type_size`` its bytes, and
*bpw* the bits that one weight takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from .constants import GGMLType

__all__ = ["LAYOUTS", "ByteOrder", "Layout", "layout_of", "stored_form"]

ByteOrder = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The stored form of one ggml type.

    Attributes
    ----------
    block_size : int
        Elements per block; 1 for plain types.
    dtype : numpy.dtype
        One block, little-endian: a structured dtype for block types, the element's dtype for plain ones.
    """

    block_size: int
    dtype: np.dtype[Any]

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether the stored numbers are the logical ones (F32, BF16, I8, …)."""
        return self.dtype.names is None

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.type_size / self.block_size

    def stored(self, byte_order: ByteOrder) -> np.dtype[Any]:
        """The dtype of a block in a file of that byte order.

        In a big-endian file the multi-byte fields are swapped, byte fields are not.
        """
        return _big_endian(self.dtype) if byte_order == "big" else self.dtype


@cache
def _big_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder(">")


def plain(dtype: Any) -> Layout:
    return Layout(1, np.dtype(dtype))


def block(block_size: int, *fields: Any) -> Layout:
    return Layout(block_size, np.dtype(list(fields)))


LAYOUTS: Final[dict[GGMLType, Layout]] = {
    GGMLType.F32: plain("<f4"),
    GGMLType.F16: plain("<f2"),
    GGMLType.F64: plain("<f8"),
    GGMLType.BF16: plain(ml_dtypes.bfloat16),
    GGMLType.I8: plain("i1"),
    GGMLType.I16: plain("<i2"),
    GGMLType.I32: plain("<i4"),
    GGMLType.I64: plain("<i8"),
    # One scale (and minimum) per 32 elements.
    GGMLType.Q4_0: block(32, ("d", "<f2"), ("qs", "u1", 16)),
    GGMLType.Q4_1: block(32, ("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)),
    GGMLType.Q5_0: block(32, ("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)),
    GGMLType.Q5_1: block(32, ("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)),
    GGMLType.Q8_0: block(32, ("d", "<f2"), ("qs", "i1", 32)),
    GGMLType.Q8_1: block(32, ("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)),
    # K-quants: 256 elements, scales of sub-blocks are quantized themselves.
    GGMLType.Q2_K: block(256, ("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")),
    GGMLType.Q3_K: block(256, ("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")),
    GGMLType.Q4_K: block(256, ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)),
    GGMLType.Q5_K: block(256, ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
    GGMLType.Q6_K: block(256, ("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")),
    GGMLType.Q8_K: block(256, ("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)),
    # I-quants: groups of elements are entries of a codebook.
    GGMLType.IQ2_XXS: block(256, ("d", "<f2"), ("qs", "<u2", 32)),
    GGMLType.IQ2_XS: block(256, ("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)),
    GGMLType.IQ2_S: block(256, ("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("scales", "u1", 8)),
    GGMLType.IQ3_XXS: block(256, ("d", "<f2"), ("qs", "u1", 96)),
    GGMLType.IQ3_S: block(
        256, ("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)
    ),
    GGMLType.IQ1_S: block(256, ("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)),
    # The f16 scale of IQ1_M is spread over the top nibbles of `scales`.
    GGMLType.IQ1_M: block(256, ("qs", "u1", 32), ("qh", "u1", 16), ("scales", "u1", 8)),
    GGMLType.IQ4_NL: block(32, ("d", "<f2"), ("qs", "u1", 16)),
    GGMLType.IQ4_XS: block(256, ("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)),
    # Ternary.
    GGMLType.TQ1_0: block(256, ("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")),
    GGMLType.TQ2_0: block(256, ("qs", "u1", 64), ("d", "<f2")),
    # Four-bit floats: E8M0 or UE4M3 scales are single bytes.
    GGMLType.MXFP4: block(32, ("e", "u1"), ("qs", "u1", 16)),
    GGMLType.NVFP4: block(64, ("d", "u1", 4), ("qs", "u1", 32)),
    # One and two bits with one scale.
    GGMLType.Q1_0: block(128, ("d", "<f2"), ("qs", "u1", 16)),
    GGMLType.Q2_0: block(64, ("d", "<f2"), ("qs", "u1", 16)),
}

# Plain ints as keys too: a lookup by the stored id must not pay for making an enum member.
_BY_ID: Final[dict[int, Layout]] = {int(type_): layout for type_, layout in LAYOUTS.items()}


def layout_of(type_id: int) -> Layout | None:
    """The layout of a ggml type, or None for an id that ggml never had, or has removed."""
    return _BY_ID.get(type_id)


@cache
def stored_form(type_id: int, byte_order: ByteOrder) -> tuple[int, np.dtype[Any]] | None:
    """Elements per item of a stored array, and the item's dtype; None for an id that is not a ggml type."""
    layout = layout_of(type_id)
    return None if layout is None else (layout.block_size, layout.stored(byte_order))
