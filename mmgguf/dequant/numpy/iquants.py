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

from ...types import GGMLType
from ..codebooks import codebook
from .parts import Bytes, Floats, contiguous, look_up, multiply, paired_nibbles, scale
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


@cache
def _two_sevens() -> NDArray[Any]:
    """Signs for two groups of seven bits: sixteen bytes as one item."""
    byte = np.arange(1 << 14)
    return np.stack([_even_signs()[byte & 127], _even_signs()[byte >> 7]], axis=-1).view("V16").reshape(-1)


def _sevens(words: NDArray[np.uint32]) -> NDArray[Any]:
    """Signs from the lower 28 bits of words: four groups of seven bits each."""
    index = np.empty((words.size, 2), np.intp)
    flat = words.reshape(-1)
    index[:, 0] = flat & 0x3FFF
    index[:, 1] = flat >> 14 & 0x3FFF
    return look_up(_two_sevens(), index)


@kernel(GGMLType.IQ2_XXS)
def iq2_xxs(blocks: NDArray[Any], out: Floats) -> None:
    # Per 32 elements: four bytes of entries, then a word of 4 × 7 bits of signs and 4 bits of scale.
    pairs = contiguous(blocks, "qs").view(np.uint32).reshape(-1, 2)
    index = pairs[:, 0].copy().view(np.uint8)
    words = pairs[:, 1].copy()
    scales = (words >> 28).astype(np.float32).reshape(-1, 8)
    d = scale(blocks)[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2xxs_grid"), index), _sevens(words)), d, out)


@kernel(GGMLType.IQ2_XS)
def iq2_xs(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "qs").view(np.uint16)
    scales = paired_nibbles(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2xs_grid"), words & 511), look_up(_even_signs(), words >> 9)), d, out)


@kernel(GGMLType.IQ2_S)
def iq2_s(blocks: NDArray[Any], out: Floats) -> None:
    index = contiguous(blocks, "qs", 0, 32).astype(np.uint16)
    signs = contiguous(blocks, "qs", 32, 32)
    index |= _bits_above(contiguous(blocks, "qh"), 2)
    scales = paired_nibbles(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (np.float32(0.5) + scales) * np.float32(0.25)
    multiply(_signed(look_up(_grid("iq2s_grid"), index), look_up(_signs(), signs)), d, out)


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
    index = contiguous(blocks, "qs", 0, 64)
    words = contiguous(blocks, "qs", 64, 32).view(np.uint32)
    d = scale(blocks)[:, None] * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    multiply(_signed(look_up(_grid("iq3xxs_grid"), index), _sevens(words)), d, out)


@kernel(GGMLType.IQ3_S)
def iq3_s(blocks: NDArray[Any], out: Floats) -> None:
    index = contiguous(blocks, "qs").astype(np.uint16)
    index |= _bits_above(contiguous(blocks, "qh"), 1)
    scales = paired_nibbles(contiguous(blocks, "scales"))
    d = scale(blocks)[:, None] * (1 + 2 * scales)
    multiply(_signed(look_up(_grid("iq3s_grid"), index), look_up(_signs(), contiguous(blocks, "signs"))), d, out)


@cache
def _shifted_grid() -> NDArray[np.uint64]:
    """IQ1's grid in eighths, with 1/8 added in the first 2048 entries and subtracted in the others."""
    eighths = codebook("iq1s_grid") * np.int8(8)
    return np.concatenate([eighths + np.int8(1), eighths - np.int8(1)]).reshape(-1).view(np.uint64)


@cache
def _threes() -> NDArray[Any]:
    """For every twelve bits their groups of three, lowest first: (4096, 4)."""
    return np.arange(4096, dtype=np.uint16)[:, None] >> np.array([0, 3, 6, 9], np.uint16) & 7


@cache
def _threes_above() -> NDArray[np.uint64]:
    """For twelve bits and a sign the upper bits of four indices into `_shifted_grid`: as one item."""
    upper = _threes() << 8
    return np.concatenate([upper, upper | 2048]).reshape(-1).view(np.uint64)


@cache
def _odd_scales() -> NDArray[np.uint32]:
    """For every twelve bits twice each group of three, plus one: four bytes as one item."""
    return (2 * _threes() + 1).astype(np.uint8).reshape(-1).view(np.uint32)


# ggml computes scale × (point ± 1/8); here the eighth is taken from the scale, which is exact.


@kernel(GGMLType.IQ1_S)
def iq1_s(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "qh").view(np.uint16)
    index = contiguous(blocks, "qs").astype(np.uint16)
    # Bits 0-2, 3-5, 6-8 and 9-11 lead four indices; bit 15 is the sign of the shift.
    upper = look_up(_threes_above(), words & 0xFFF | words >> 15 << 12)
    index |= upper.view(np.uint16)
    d = scale(blocks)[:, None] * (2 * (words >> 12 & 7) + 1).astype(np.float32) * np.float32(0.125)
    multiply(look_up(_shifted_grid(), index).view(np.int8), d, out)


@kernel(GGMLType.IQ1_M)
def iq1_m(blocks: NDArray[Any], out: Floats) -> None:
    words = contiguous(blocks, "scales").view(np.uint16)
    # The block's float16 scale is spread over the top nibbles of four words; below are 4 × 3 bits each.
    bits = words[:, 0] >> 12 | words[:, 1] >> 8 & 0xF0 | words[:, 2] >> 4 & 0xF00 | words[:, 3] & 0xF000
    d = bits.view(np.float16).astype(np.float32)[:, None]
    d = d * look_up(_odd_scales(), words & 0xFFF).view(np.uint8) * np.float32(0.125)
    high = paired_nibbles(contiguous(blocks, "qh"))
    # Three bits of index, and the sign of the shift on top of them.
    index = contiguous(blocks, "qs") | high.astype(np.uint16) << 8
    multiply(look_up(_shifted_grid(), index).view(np.int8), d, out)
