"""numpy kernels of the K-quants: 256 elements per block, with quantized scales of sub-blocks.

The order of the floating-point operations is that of ``dequantize_row_*`` in ggml's ``ggml-quants.c``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...types import GGMLType
from .parts import (
    Bytes,
    Floats,
    contiguous,
    interleave,
    look_up,
    multiply,
    nibbles,
    paired_nibbles,
    scale,
    subtract,
)
from .registry import kernel
from .simple import looked_up, twos


@kernel(GGMLType.Q2_K)
def q2_k(blocks: NDArray[Any], out: Floats) -> None:
    scales = contiguous(blocks, "scales")
    d, dmin = scale(blocks)[:, None], scale(blocks, "dmin")[:, None]
    multiply(interleave(twos(contiguous(blocks, "qs")), 32), d * (scales & 15), out)
    subtract(out, dmin * (scales >> 4))


@kernel(GGMLType.Q3_K)
def q3_k(blocks: NDArray[Any], out: Floats) -> None:
    planes = twos(contiguous(blocks, "qs").reshape(-1))
    # A clear bit of the mask takes four off: the low four bits for the first half, the others for the second.
    mask = ~contiguous(blocks, "hmask")
    mask = interleave([mask, mask >> 4], 32)
    for plane, four in zip(planes, (mask << 2, mask << 1, mask, mask >> 1), strict=True):
        np.subtract(plane, four & 4, out=plane)
    quants = interleave(planes, 32).view(np.int8)
    multiply(quants, scale(blocks)[:, None] * _q3_k_scales(blocks), out)


def _q3_k_scales(blocks: NDArray[Any]) -> NDArray[np.int8]:
    """Sixteen six-bit scales from 12 bytes: low nibbles in eight bytes, the upper two bits in four."""
    # Four bytes at a time, as one integer; the masks keep the bits of a byte together.
    first, second, upper = contiguous(blocks, "scales").view(np.uint32).T
    scales = np.empty((blocks.size, 4), np.uint32)
    scales[:, 0] = first & _NIBBLES | (upper << 4 & _UPPER)
    scales[:, 1] = second & _NIBBLES | (upper << 2 & _UPPER)
    scales[:, 2] = first >> 4 & _NIBBLES | (upper & _UPPER)
    scales[:, 3] = second >> 4 & _NIBBLES | (upper >> 2 & _UPPER)
    packed = scales.view(np.uint8)
    np.subtract(packed, 32, out=packed)
    return packed.view(np.int8)


_SIXES, _NIBBLES, _UPPER = 0x3F3F3F3F, 0x0F0F0F0F, 0x30303030


def _scales_and_minima(blocks: NDArray[Any]) -> tuple[Bytes, Bytes]:
    """Eight six-bit scales and eight minima from 12 bytes.

    The first four of each are the low six bits of bytes 0–3 and 4–7; the last four have their low nibbles in
    bytes 8–11 and their upper two bits on top of those bytes.
    """
    first, second, last = contiguous(blocks, "scales").view(np.uint32).T
    scales, minima = np.empty((2, blocks.size, 2), np.uint32)
    scales[:, 0] = first & _SIXES
    minima[:, 0] = second & _SIXES
    scales[:, 1] = last & _NIBBLES | (first >> 2 & _UPPER)
    minima[:, 1] = last >> 4 & _NIBBLES | (second >> 2 & _UPPER)
    return scales.view(np.uint8), minima.view(np.uint8)


def _with_minima(blocks: NDArray[Any], quants: Bytes, out: Floats) -> None:
    scales, minima = _scales_and_minima(blocks)
    multiply(quants, scale(blocks)[:, None] * scales, out)
    subtract(out, scale(blocks, "dmin")[:, None] * minima)


@kernel(GGMLType.Q4_K)
def q4_k(blocks: NDArray[Any], out: Floats) -> None:
    _with_minima(blocks, nibbles(contiguous(blocks, "qs"), 32), out)


@kernel(GGMLType.Q5_K)
def q5_k(blocks: NDArray[Any], out: Floats) -> None:
    packed = contiguous(blocks, "qs").reshape(-1)
    # Bits 0 and 1 go on top of the low and high nibbles of the first 32 bytes, 2 and 3 of the next, and so on.
    high = contiguous(blocks, "qh")
    high = interleave([high, high >> 2, high >> 4, high >> 6], 32)
    low, up = packed & 15, packed >> 4
    _or_bits(low, high << 4, 16)
    _or_bits(up, high << 3, 16)
    _with_minima(blocks, interleave([low, up], 32), out)


def _or_bits(quants: NDArray[Any], bits: NDArray[Any], mask: int) -> None:
    """``quants |= bits & mask``; ``bits`` is used up."""
    np.bitwise_and(bits, mask, out=bits)
    np.bitwise_or(quants, bits, out=quants)


@kernel(GGMLType.Q6_K)
def q6_k(blocks: NDArray[Any], out: Floats) -> None:
    packed = contiguous(blocks, "ql").reshape(-1)
    # Of 32 bytes, bits 0-1 and 2-3 go on top of 64 low nibbles, bits 4-5 and 6-7 on top of the high ones.
    high = contiguous(blocks, "qh")
    high = interleave([high, high >> 2], 32)
    low, up = packed & 15, packed >> 4
    _or_bits(low, high << 4, 48)
    _or_bits(up, high, 48)
    quants = interleave([low, up], 64)
    np.subtract(quants, 32, out=quants)
    multiply(quants.view(np.int8), scale(blocks)[:, None] * blocks["scales"], out)


@cache
def _upper_bits() -> NDArray[np.uint32]:
    """For every byte its groups of two bits, lowest first, as bits 4 and 5 of four bytes."""
    byte = np.arange(256, dtype=np.uint16)[:, None]
    return ((byte >> np.array([0, 2, 4, 6], np.uint16) & 3) << 4).astype(np.uint8).reshape(-1).view(np.uint32)


@kernel(GGMLType.IQ4_XS)
def iq4_xs(blocks: NDArray[Any], out: Floats) -> None:
    scales = paired_nibbles(contiguous(blocks, "scales_l"))
    np.bitwise_or(scales, look_up(_upper_bits(), contiguous(blocks, "scales_h")).view(np.uint8), out=scales)
    np.subtract(scales, 32, out=scales)
    d = scale(blocks)[:, None] * scales.view(np.int8)
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_iq4nl", 16), d, out)
