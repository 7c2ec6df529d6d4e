"""numpy kernels of the types with plain scales: one per block, or one byte per sub-block.

The order of the floating-point operations is that of ``dequantize_row_*`` in ggml's ``ggml-quants.c``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...types import GGMLType
from ..codebooks import codebook, e8m0_half, ue4m3_half
from .parts import Bytes, Floats, column, contiguous, interleave, look_up, multiply, nibbles, scale
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


@cache
def bit_table(clear: int, set_: int) -> NDArray[np.uint64]:
    """For every byte one of two small numbers for each of its bits, lowest first: eight int8 as one item."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little")
    return np.where(bits, np.int8(set_), np.int8(clear)).view(np.uint64)


def _fives(blocks: NDArray[Any], clear: int, set_: int) -> Bytes:
    """Five-bit quants: nibbles, and above them what bit i of ``qh`` means for element i."""
    quants = nibbles(contiguous(blocks, "qs"), 16)
    high = look_up(bit_table(clear, set_), contiguous(blocks, "qh")).reshape(-1)
    np.bitwise_or(quants, high.view(np.uint8), out=quants)
    return quants


@kernel(GGMLType.Q5_0)
def q5_0(blocks: NDArray[Any], out: Floats) -> None:
    # A nibble with minus 16 above it is a nibble minus 16.
    multiply(_fives(blocks, -16, 0).view(np.int8), scale(blocks), out)


@kernel(GGMLType.Q5_1)
def q5_1(blocks: NDArray[Any], out: Floats) -> None:
    multiply(_fives(blocks, 0, 16), scale(blocks), out)
    _add(out, scale(blocks, "m"))


def _add(out: Floats, minima: Floats) -> None:
    flat = out.reshape(-1)
    np.add(flat, np.repeat(minima, out.shape[1]), out=flat)


@kernel(GGMLType.Q8_0, GGMLType.Q8_1, GGMLType.Q8_K)
def q8(blocks: NDArray[Any], out: Floats) -> None:
    # The sums that Q8_1 and Q8_K carry serve dot products only.
    multiply(contiguous(blocks, "qs").view(np.int8), scale(blocks), out)


@cache
def _nibble_tables(name: str) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """For every two bytes the values of their low nibbles and of their high ones: two int8 as one item."""
    values = codebook(name)
    byte = np.arange(65536, dtype=np.uint16).view(np.uint8)
    return values[byte & 15].view(np.uint16), values[byte >> 4].view(np.uint16)


def looked_up(packed: Bytes, name: str, width: int) -> NDArray[np.int8]:
    """Values of nibbles, in the order of `nibbles`."""
    index = packed.reshape(-1).view(np.uint16).astype(np.intp)
    low, high = _nibble_tables(name)
    return interleave([look_up(low, index), look_up(high, index)], width).view(np.int8)


@kernel(GGMLType.IQ4_NL)
def iq4_nl(blocks: NDArray[Any], out: Floats) -> None:
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_iq4nl", 16), scale(blocks), out)


@kernel(GGMLType.MXFP4)
def mxfp4(blocks: NDArray[Any], out: Floats) -> None:
    scales = look_up(e8m0_half(), blocks["e"])
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_fp4", 16), scales, out)


@kernel(GGMLType.NVFP4)
def nvfp4(blocks: NDArray[Any], out: Floats) -> None:
    scales = look_up(ue4m3_half(), contiguous(blocks, "d"))
    multiply(looked_up(contiguous(blocks, "qs"), "kvalues_fp4", 8), scales, out)


@kernel(GGMLType.Q1_0)
def q1_0(blocks: NDArray[Any], out: Floats) -> None:
    signs = look_up(bit_table(-1, 1), contiguous(blocks, "qs"))
    multiply(signs.view(np.int8), scale(blocks), out)


@cache
def _two_bit_table() -> NDArray[np.uint32]:
    """For every byte its two-bit quants minus one, lowest first: four int8 as one item."""
    byte = np.arange(256, dtype=np.uint8)[:, None]
    return ((byte >> np.array([0, 2, 4, 6], np.uint8) & 3) - np.uint8(1)).reshape(-1).view(np.uint32)


@kernel(GGMLType.Q2_0)
def q2_0(blocks: NDArray[Any], out: Floats) -> None:
    quants = look_up(_two_bit_table(), contiguous(blocks, "qs"))
    multiply(quants.view(np.int8), scale(blocks), out)


@kernel(GGMLType.TQ1_0)
def tq1_0(blocks: NDArray[Any], out: Floats) -> None:
    trits = np.empty((blocks.size, 256), np.int8)
    packed = np.concatenate([contiguous(blocks, "qs"), contiguous(blocks, "qh")], axis=1)
    # Byte j of a run of w holds the elements j, w + j, 2 w + j, …: where the run and its elements start.
    runs = ((0, 32, 0), (32, 16, 160), (48, 4, 240))
    for i in range(5):
        # Trits are the digits of a fraction of 256 in base three: times a power, the next one leads.
        fraction = packed * np.uint8(3**i)
        lead = (fraction > 170).view(np.int8) - (fraction <= 85).view(np.int8)
        # The last run has four trits per byte.
        for run, width, start in runs if i < 4 else runs[:2]:
            column(trits, start + width * i, width)[...] = column(lead, run, width)
    multiply(trits, scale(blocks), out)


@kernel(GGMLType.TQ2_0)
def tq2_0(blocks: NDArray[Any], out: Floats) -> None:
    quants = interleave(twos(contiguous(blocks, "qs")), 32)
    np.subtract(quants, 1, out=quants)
    multiply(quants.view(np.int8), scale(blocks), out)


def twos(packed: Bytes) -> list[NDArray[Any]]:
    """The lowest two bits of all bytes, the next two, the next, and the highest."""
    return [packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6]
