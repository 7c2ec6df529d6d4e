"""numpy kernels of the I-quants, whose groups of four or eight elements are entries of a codebook.

An entry is looked up as one integer of four or eight bytes.  Signs are applied to the bytes as well: ggml
multiplies the scaled point by ±1, which changes the sign bit and nothing else, wherever it is done.  The
order of the other floating-point operations is that of ``dequantize_row_*`` in ggml's ``ggml-quants.c``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import GGMLType
from .codebooks import codebook
from .parts import Bytes, Floats, contiguous, look_up, multiply, scale
from .registry import kernel
from .simple import bit_table


@cache
def _grid(name: str) -> NDArray[Any]:
    """A codebook with each entry as one integer."""
    grid = codebook(name)
    return grid.reshape(-1).view(f"u{grid.shape[1]}")


@cache
def _even_signs() -> NDArray[np.uint64]:
    """±1 for seven bits, with an eighth so that the number of minuses is even."""
    return look_up(_signs(), codebook("ksigns_iq2xs"))


def _signs() -> NDArray[np.uint64]:
    """Eight bytes of ±1 for eight bits; a set bit is minus."""
    return bit_table(1, -1)


def _signed(points: NDArray[Any], signs: NDArray[Any]) -> NDArray[np.int8]:
    """Points × signs, both looked up: as bytes."""
    signed: NDArray[np.int8] = points.reshape(-1).view(np.int8)
    np.multiply(signed, signs.reshape(-1).view(np.int8), out=signed)
    return signed


def _nibble_scales(packed: Bytes) -> Bytes:
    """(n, k) bytes → (n, 2 k): low nibble, high nibble."""
    both = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=both[..., 0])
    np.right_shift(packed, 4, out=both[..., 1])
    return both.reshape(packed.shape[0], -1)


_SEVENS = np.array([0, 7, 14, 21], np.uint32)


def _sevens(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Signs from the lower 28 bits of words: four groups of seven bits each."""
    return look_up(_even_signs(), words[..., None] >> _SEVENS & 127)


@kernel(GGMLType.IQ2_XXS)
def iq2_xxs(blocks: NDArray[Any], out: Floats) -> None:
    # Per 32 elements: four bytes of entries, then a word of 4 × 7 bits of signs and 4 bits of scale.
    packed = contiguous(blocks, "qs").reshape(-1, 8, 8)
    words = packed.view(np.uint32)[..., 1]
    d = scale(blocks)[:, None] * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2xxs_grid"), packed[..., :4]), _sevens(words)), d, out)


@kernel(GGMLType.IQ2_XS)
def iq2_xs(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "qs").view(np.uint16)
    scales = _nibble_scales(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2xs_grid"), words & 511), look_up(_even_signs(), words >> 9)), d, out)


@kernel(GGMLType.IQ2_S)
def iq2_s(blocks: NDArray[Any], out: Floats) -> None:
    packed = contiguous(blocks, "qs")
    index = packed[:, :32].astype(np.uint16)
    index |= _bits_above(contiguous(blocks, "qh"), 2)
    scales = _nibble_scales(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2s_grid"), index), look_up(_signs(), packed[:, 32:])), d, out)


@cache
def _above(bits: int) -> NDArray[Any]:
    """For every byte its groups of ``bits`` bits, lowest first, each times 256 in a uint16: as one item."""
    byte = np.arange(256, dtype=np.uint16)[:, None]
    groups = (byte >> np.arange(0, 8, bits, dtype=np.uint16) & (1 << bits) - 1) << 8
    return np.ascontiguousarray(groups).view(f"V{2 * groups.shape[1]}").reshape(-1)


def _bits_above(packed: Bytes, bits: int) -> NDArray[np.uint16]:
    """The upper bits of indices, from (n, k) bytes that hold 8 / ``bits`` of them each."""
    return look_up(_above(bits), packed).view(np.uint16).reshape(packed.shape[0], -1)


@kernel(GGMLType.IQ3_XXS)
def iq3_xxs(blocks: NDArray[Any], out: Floats) -> None:
    packed = contiguous(blocks, "qs")
    words = packed[:, 64:].copy().view(np.uint32)
    d = scale(blocks)[:, None] * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    multiply(_signed(look_up(_grid("iq3xxs_grid"), packed[:, :64]), _sevens(words)), d, out)


@kernel(GGMLType.IQ3_S)
def iq3_s(blocks: NDArray[Any], out: Floats) -> None:
    index = contiguous(blocks, "qs").astype(np.uint16)
    index |= _bits_above(contiguous(blocks, "qh"), 1)
    scales = _nibble_scales(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (1 + 2 * scales)
    multiply(_signed(look_up(_grid("iq3s_grid"), index), look_up(_signs(), contiguous(blocks, "signs"))), d, out)


@cache
def _shifted_grid() -> NDArray[np.uint64]:
    """IQ1's grid in eighths, with 1/8 added in the first 2048 entries and subtracted in the others."""
    eighths = codebook("iq1s_grid") * np.int8(8)
    return np.concatenate([eighths + np.int8(1), eighths - np.int8(1)]).reshape(-1).view(np.uint64)


# ggml computes scale × (point ± 1/8); here the eighth is taken from the scale, which is exact.


@kernel(GGMLType.IQ1_S)
def iq1_s(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "qh").view(np.uint16)
    index = contiguous(blocks, "qs").astype(np.uint16)
    # Bits 0-2, 3-5, 6-8 and 9-11 lead four indices; bit 15 is the sign of the shift.
    upper = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7) << 8
    upper |= (words >> 15 << 11)[..., None]
    index |= upper.reshape(index.shape)
    d = scale(blocks)[:, None] * (2 * (words >> 12 & 7) + 1).astype(np.float32) * np.float32(0.125)
    multiply(look_up(_shifted_grid(), index).view(np.int8), d, out)


@kernel(GGMLType.IQ1_M)
def iq1_m(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "scales").view(np.uint16)
    # The block's float16 scale is spread over the top nibbles of four words; below are 4 × 3 bits each.
    bits = words[:, 0] >> 12 | words[:, 1] >> 8 & 0xF0 | words[:, 2] >> 4 & 0xF00 | words[:, 3] & 0xF000
    d = bits.view(np.float16).astype(np.float32)[:, None]
    scales = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    d = d * (2 * scales + 1).astype(np.float32) * np.float32(0.125)
    high = _nibble_scales(contiguous(blocks, "qh"))
    # Three bits of index, and the sign of the shift on top of them.
    index = contiguous(blocks, "qs") | high.astype(np.uint16) << 8
    multiply(look_up(_shifted_grid(), index).view(np.int8), d, out)
