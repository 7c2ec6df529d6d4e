"""numpy kernels of the K-quants: 256 elements per block, with quantized scales of sub-blocks.

The order of the floating-point operations is that of ``dequantize_row_*`` in ggml's ``ggml-quants.c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import GGMLType
from .parts import Bytes, Floats, contiguous, interleave, multiply, nibbles, scale, subtract
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
    packed = contiguous(blocks, "scales")
    low, high = packed[:, :8], packed[:, 8:]
    scales = np.empty((blocks.size, 16), np.uint8)
    scales[:, :8] = low & 15
    scales[:, 8:] = low >> 4
    for i in range(4):
        scales[:, 4 * i : 4 * i + 4] |= (high >> 2 * i & 3) << 4
    np.subtract(scales, 32, out=scales)
    return scales.view(np.int8)


def _scales_and_minima(blocks: NDArray[Any]) -> tuple[Bytes, Bytes]:
    """Eight six-bit scales and eight minima from 12 bytes.

    The first four of each are the low six bits of bytes 0–3 and 4–7; the last four have their low nibbles in
    bytes 8–11 and their upper two bits on top of those bytes.
    """
    packed = contiguous(blocks, "scales")
    low = packed[:, :8] & 63
    high = packed[:, :8] >> 2 & 48
    last = packed[:, 8:]
    scales, minima = np.empty((2, blocks.size, 8), np.uint8)
    scales[:, :4] = low[:, :4]
    minima[:, :4] = low[:, 4:]
    scales[:, 4:] = last & 15 | high[:, :4]
    minima[:, 4:] = last >> 4 | high[:, 4:]
    return scales, minima


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
    low = packed & 15 | high << 4 & 16
    _with_minima(blocks, interleave([low, packed >> 4 | high << 3 & 16], 32), out)


@kernel(GGMLType.Q6_K)
def q6_k(blocks: NDArray[Any], out: Floats) -> None:
    packed = contiguous(blocks, "ql").reshape(-1)
    # Of 32 bytes, bits 0-1 and 2-3 go on top of 64 low nibbles, bits 4-5 and 6-7 on top of the high ones.
    high = contiguous(blocks, "qh")
    high = interleave([high, high >> 2], 32)
    quants = interleave([packed & 15 | high << 4 & 48, packed >> 4 | high & 48], 64)
    np.subtract(quants, 32, out=quants)
    multiply(quants.view(np.int8), scale(blocks)[:, None] * blocks["scales"], out)


@kernel(GGMLType.IQ4_XS)
def iq4_xs(blocks: NDArray[Any], out: Floats) -> None:
    low = contiguous(blocks, "scales_l")
    scales = np.empty((blocks.size, 8), np.uint8)
    scales[:, ::2] = low & 15
    scales[:, 1::2] = low >> 4
    high = blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)
    scales |= ((high & 3) << 4).astype(np.uint8)
    np.subtract(scales, 32, out=scales)
    d = scale(blocks)[:, None] * scales.view(np.int8)
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_iq4nl", 16), d, out)
