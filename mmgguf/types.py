"""One row per ggml type: how many elements a block holds and how its bytes are laid out.

Every size in the library derives from this table.  The fields keep the names that ggml gives them in
``ggml-common.h``; plain types are blocks of one element.  All dtypes here are little-endian; a big-endian
file uses ``Layout.stored("big")``.

Vocabulary: a *block* is the unit of quantization, ``block_size`` its elements, ``type_size`` its bytes, and
*bpw* the bits that one weight takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

__all__ = [
    "LAYOUTS",
    "ByteOrder",
    "FileType",
    "GGMLType",
    "Layout",
    "UnknownType",
    "ValueType",
    "align",
    "byte_order_character",
    "layout_of",
    "stored_form",
]

ByteOrder = Literal["little", "big"]


class _Named(IntEnum):
    """An enum whose members are the numbers of the format, and shown by their names."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        """The name, aligned as `spec` says; the number where that asks for one, as ``d`` and ``x`` do."""
        return format(int(self) if spec[-1:] in _NUMERIC else self.name, spec)


#: The presentation types of numbers; not "", which is the empty slice.
_NUMERIC: Final = tuple("bcdeEfFgGnoxX%")


class ValueType(_Named):
    """The type of a metadata value (``gguf_type``)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class GGMLType(_Named):
    """The type of a tensor (``ggml_type``).  The ids 4, 5, 31 to 33 and 36 to 38 were removed from ggml.

    Examples
    --------
    >>> t = GGMLType.Q4_K
    >>> str(t), f"{t:>6}", f"{t:d}", t == 12
    ('Q4_K', '  Q4_K', '12', True)
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class UnknownType(int):
    """A ggml type that this version does not know: a number, which has a `name` as the members of `GGMLType` have.

    Examples
    --------
    >>> UnknownType(99).name, UnknownType(99) == 99
    ('UNKNOWN_99', True)
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """``UNKNOWN_`` and the number."""
        return f"UNKNOWN_{int(self)}"


class FileType(_Named):
    """What most of a file's tensors are stored as: ``general.file_type`` (``llama_ftype``)."""

    ALL_F32 = 0
    MOSTLY_F16 = 1
    MOSTLY_Q4_0 = 2
    MOSTLY_Q4_1 = 3
    MOSTLY_Q8_0 = 7
    MOSTLY_Q5_0 = 8
    MOSTLY_Q5_1 = 9
    MOSTLY_Q2_K = 10
    MOSTLY_Q3_K_S = 11
    MOSTLY_Q3_K_M = 12
    MOSTLY_Q3_K_L = 13
    MOSTLY_Q4_K_S = 14
    MOSTLY_Q4_K_M = 15
    MOSTLY_Q5_K_S = 16
    MOSTLY_Q5_K_M = 17
    MOSTLY_Q6_K = 18
    MOSTLY_IQ2_XXS = 19
    MOSTLY_IQ2_XS = 20
    MOSTLY_Q2_K_S = 21
    MOSTLY_IQ3_XS = 22
    MOSTLY_IQ3_XXS = 23
    MOSTLY_IQ1_S = 24
    MOSTLY_IQ4_NL = 25
    MOSTLY_IQ3_S = 26
    MOSTLY_IQ3_M = 27
    MOSTLY_IQ2_S = 28
    MOSTLY_IQ2_M = 29
    MOSTLY_IQ4_XS = 30
    MOSTLY_IQ1_M = 31
    MOSTLY_BF16 = 32
    MOSTLY_TQ1_0 = 36
    MOSTLY_TQ2_0 = 37
    MOSTLY_MXFP4_MOE = 38
    MOSTLY_NVFP4 = 39
    MOSTLY_Q1_0 = 40


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

    def row_size(self, n: int) -> int:
        """Bytes of a row of `n` elements, which are whole blocks."""
        return n // self.block_size * self.type_size

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of that logical shape, without padding."""
        return self.row_size(shape[-1] if shape else 1) * math.prod(shape[:-1])

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the stored form, an item a block, of a tensor of that logical shape."""
        return shape if self.block_size == 1 else (*shape[:-1], shape[-1] // self.block_size)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the stored form as bytes, of a tensor of that logical shape."""
        return (*shape[:-1], self.row_size(shape[-1]))

    def stored(self, byte_order: ByteOrder) -> np.dtype[Any]:
        """The dtype of a block in a file of that byte order.

        In a big-endian file the multi-byte fields are swapped, byte fields are not.
        """
        return _big_endian(self.dtype) if byte_order == "big" else self.dtype


def byte_order_character(byte_order: ByteOrder) -> Literal["<", ">"]:
    """What `struct` and numpy call a byte order.

    Examples
    --------
    >>> byte_order_character("big")
    '>'
    """
    return ">" if byte_order == "big" else "<"


def align(n: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `n`.

    Examples
    --------
    >>> align(33, 32), align(64, 32)
    (64, 64)
    """
    return -(-n // alignment) * alignment


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
    """The layout of a ggml type, or None for an id that ggml never had, or has removed.

    Examples
    --------
    >>> layout_of(GGMLType.Q4_K).block_size, layout_of(99)
    (256, None)
    """
    return _BY_ID.get(type_id)


@cache
def stored_form(type_id: int, byte_order: ByteOrder) -> tuple[int, np.dtype[Any]] | None:
    """Elements per item of a stored array, and the item's dtype; None for an id that is not a ggml type.

    Examples
    --------
    >>> stored_form(GGMLType.I16, "big")
    (1, dtype('>i2'))
    """
    layout = layout_of(type_id)
    return None if layout is None else (layout.block_size, layout.stored(byte_order))
