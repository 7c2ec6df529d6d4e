"""numpy kernels of the types with plain scales: one per block, or one byte per sub-block.

The order of the floating-point operations is that of ``dequantize_row_*`` in ggml's ``ggml-quants.c``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import GGMLType
from .codebooks import codebook
from .parts import Bytes, Floats, contiguous, interleave, multiply, nibbles, repeat, scale
from .registry import kernel


@kernel(GGMLType.Q4_0)
def q4_0(blocks: NDArray[Any], out: Floats) -> None:
    quants = nibbles(contiguous(blocks, "qs"), 16)
    np.subtract(quants, 8, out=quants)
    multiply(quants.view(np.int8), scale(blocks), out)


@kernel(GGMLType.Q4_1)
def q4_1(blocks: NDArray[Any], out: Floats) -> None:
    multiply(nibbles(contiguous(blocks, "qs"), 16), scale(blocks), out)
    _add(out, scale(blocks, "m"))


def _fives(blocks: NDArray[Any]) -> Bytes:
    """Five-bit quants: nibbles, and bit i of ``qh`` on top of element i."""
    quants = nibbles(contiguous(blocks, "qs"), 16)
    high = np.unpackbits(contiguous(blocks, "qh").reshape(-1), bitorder="little")
    np.left_shift(high, 4, out=high)
    return np.bitwise_or(quants, high, out=quants)


@kernel(GGMLType.Q5_0)
def q5_0(blocks: NDArray[Any], out: Floats) -> None:
    quants = _fives(blocks)
    np.subtract(quants, 16, out=quants)
    multiply(quants.view(np.int8), scale(blocks), out)


@kernel(GGMLType.Q5_1)
def q5_1(blocks: NDArray[Any], out: Floats) -> None:
    multiply(_fives(blocks), scale(blocks), out)
    _add(out, scale(blocks, "m"))


def _add(out: Floats, minima: Floats) -> None:
    flat = out.reshape(-1)
    np.add(flat, repeat(minima, out.shape[1]), out=flat)


@kernel(GGMLType.Q8_0, GGMLType.Q8_1, GGMLType.Q8_K)
def q8(blocks: NDArray[Any], out: Floats) -> None:
    # The sums that Q8_1 and Q8_K carry serve dot products only.
    multiply(contiguous(blocks, "qs").view(np.int8), scale(blocks), out)


@cache
def _byte_pairs(name: str) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """A table of 16 values, looked up by the low and by the high nibble of a byte."""
    table = codebook(name)
    byte = np.arange(256)
    return table[byte & 15], table[byte >> 4]


def looked_up(packed: Bytes, name: str, width: int) -> NDArray[np.int8]:
    """Values of nibbles in the order of `nibbles`."""
    low, high = _byte_pairs(name)
    return interleave([low[packed], high[packed]], width)


@kernel(GGMLType.IQ4_NL)
def iq4_nl(blocks: NDArray[Any], out: Floats) -> None:
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_iq4nl", 16), scale(blocks), out)


@cache
def _e8m0_half() -> Floats:
    """Half of 2^(e - 127) for every byte e: ggml doubles the values of its table instead."""
    e = np.arange(256, dtype=np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (e - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


@kernel(GGMLType.MXFP4)
def mxfp4(blocks: NDArray[Any], out: Floats) -> None:
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_fp4", 16), _e8m0_half()[blocks["e"]], out)


@cache
def _ue4m3_half() -> Floats:
    """Half of the unsigned E4M3 number for every byte; NaN's code counts as zero, the sign is ignored."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value[[0, 0x7F]] = 0
    return (value / 2).astype(np.float32)


@kernel(GGMLType.NVFP4)
def nvfp4(blocks: NDArray[Any], out: Floats) -> None:
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_fp4", 8), _ue4m3_half()[blocks["d"]], out)


@kernel(GGMLType.Q1_0)
def q1_0(blocks: NDArray[Any], out: Floats) -> None:
    signs = np.unpackbits(contiguous(blocks, "qs").reshape(-1), bitorder="little")
    np.left_shift(signs, 1, out=signs)
    np.subtract(signs, 1, out=signs)
    multiply(signs.view(np.int8), scale(blocks), out)


@cache
def _pairs_of_bits() -> NDArray[np.uint32]:
    """The four two-bit quants of a byte minus one, as four bytes."""
    byte = np.arange(256, dtype=np.uint8)
    quads = np.stack([(byte >> shift & 3) - np.uint8(1) for shift in (0, 2, 4, 6)], axis=-1)
    return quads.reshape(-1).view(np.uint32)


@kernel(GGMLType.Q2_0)
def q2_0(blocks: NDArray[Any], out: Floats) -> None:
    quads = _pairs_of_bits()[contiguous(blocks, "qs")]
    multiply(quads.view(np.int8), scale(blocks), out)


@kernel(GGMLType.TQ1_0)
def tq1_0(blocks: NDArray[Any], out: Floats) -> None:
    n = blocks.size
    trits = np.empty((n, 256), np.uint8)
    packed = contiguous(blocks, "qs")
    last = contiguous(blocks, "qh")
    # Five trits per byte as a fraction of 256 in base three: times a power of three, the next one leads.
    for i, power in enumerate((1, 3, 9, 27, 81)):
        lead = _leading_trit(packed * np.uint8(power))
        trits[:, 32 * i : 32 * i + 32] = lead[:, :32]
        trits[:, 160 + 16 * i : 176 + 16 * i] = lead[:, 32:]
        if i < 4:
            trits[:, 240 + 4 * i : 244 + 4 * i] = _leading_trit(last * np.uint8(power))
    np.subtract(trits, 1, out=trits)
    multiply(trits.view(np.int8), scale(blocks), out)


def _leading_trit(fraction: Bytes) -> Bytes:
    """``fraction * 3 >> 8``: 0, 1 or 2, without leaving bytes."""
    return (fraction > 85).view(np.uint8) + (fraction > 170).view(np.uint8)


@kernel(GGMLType.TQ2_0)
def tq2_0(blocks: NDArray[Any], out: Floats) -> None:
    quants = twos(contiguous(blocks, "qs"))
    np.subtract(quants, 1, out=quants)
    multiply(quants.view(np.int8), scale(blocks), out)


def twos(packed: Bytes) -> Bytes:
    """Two-bit quants: the lowest two bits of 32 bytes, then their next two, and so on.  Flat."""
    return interleave([packed >> shift & 3 if shift else packed & 3 for shift in (0, 2, 4, 6)], 32)
