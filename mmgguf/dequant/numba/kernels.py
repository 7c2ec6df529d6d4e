"""One compiled kernel per type, each in the order of its block's fields.

A kernel is called with the address of the first stored block, the output and the number of blocks; ``at`` walks
over the blocks.  Where a result is a product of more than two factors, or a product and a sum, the order is
that of the C library's ``dequantize_row_*``: it decides the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ...types import GGMLType
from ..codebooks import codebook, e8m0_half, ue4m3_half

# isort: off
from .vectors import (
    address, bfloat16s, bits, concat, f32, f32x1, f32x16, floats, half, half_from_bits, halves, i8x8, i8x16, i8x32,
    lane, lookup, lower, negate, pairs, signed, spread, store, u8, u8x4, u8x8, u8x16, u8x32, u16, u16x1, u16x16,
    u32, upper, widen,
)  # fmt: skip
# isort: on

__all__ = ["SOURCES", "address_of"]

#: The kernels as plain Python functions ``(at, out, count)``, to be compiled.
SOURCES: Final[dict[GGMLType, Callable[[int, Any, int], None]]] = {}


def _kernel(type_: GGMLType) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        SOURCES[type_] = function
        return function

    return register


def address_of(array: Any) -> Any:
    """Where an array's data begin, as an integer."""
    return address(array)


# Tables and constants.  numba freezes globals: arrays become data of the compiled code, float32 scalars stay
# float32 where a literal 0.5 would turn the arithmetic into float64.

KSIGNS = codebook("ksigns_iq2xs")
IQ2_XXS_GRID = codebook("iq2xxs_grid")
IQ2_XS_GRID = codebook("iq2xs_grid")
IQ2_S_GRID = codebook("iq2s_grid")
IQ3_XXS_GRID = codebook("iq3xxs_grid")
IQ3_S_GRID = codebook("iq3s_grid")
IQ1_GRID = codebook("iq1s_grid")
KVALUES_IQ4 = codebook("kvalues_iq4nl")
KVALUES_FP4 = codebook("kvalues_fp4")

QUARTER = np.float32(0.25)
HALF = np.float32(0.5)
#: IQ1_S and IQ1_M shift their grids by one eighth, up or down.
DELTA = np.array([0.125, -0.125], np.float32)

E8M0 = e8m0_half()
UE4M3 = ue4m3_half()

# One scale per block


@_kernel(GGMLType.Q4_0)
def q4_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = half(at)
        q = u8x16(at + 2)
        store(out, 32 * i, floats(signed((q & 15) - 8)) * d)
        store(out, 32 * i + 16, floats(signed((q >> 4) - 8)) * d)
        at += 18


@_kernel(GGMLType.Q4_1)
def q4_1(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d, m = half(at), half(at + 2)
        q = u8x16(at + 4)
        store(out, 32 * i, floats(q & 15) * d + m)
        store(out, 32 * i + 16, floats(q >> 4) * d + m)
        at += 20


@_kernel(GGMLType.Q5_0)
def q5_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = half(at)
        q = u8x16(at + 6)
        q5 = concat(q & 15, q >> 4) + bits(u32(at + 2)) * 16
        store(out, 32 * i, floats(signed(q5 - 16)) * d)
        at += 22


@_kernel(GGMLType.Q5_1)
def q5_1(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d, m = half(at), half(at + 2)
        q = u8x16(at + 8)
        q5 = concat(q & 15, q >> 4) + bits(u32(at + 4)) * 16
        store(out, 32 * i, floats(q5) * d + m)
        at += 24


@_kernel(GGMLType.Q8_0)
def q8_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        store(out, 32 * i, floats(i8x32(at + 2)) * half(at))
        at += 34


@_kernel(GGMLType.Q8_1)
def q8_1(at: int, out: Any, count: int) -> None:
    for i in range(count):
        store(out, 32 * i, floats(i8x32(at + 4)) * half(at))
        at += 36


@_kernel(GGMLType.Q1_0)
def q1_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = -half(at)
        for j in range(4):
            word = u32(at + 2 + 4 * j)
            # A set bit is +d.
            store(out, 128 * i + 32 * j, negate(spread(d, i8x32(at)), word))
        at += 18


@_kernel(GGMLType.Q2_0)
def q2_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = half(at)
        for j in range(4):
            store(out, 64 * i + 16 * j, floats(pairs(u32(at + 2 + 4 * j)) - 1) * d)
        at += 18


# K-quants


@_kernel(GGMLType.Q2_K)
def q2_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        packed = u8x16(at)
        scale = floats(packed & 15) * half(at + 80)
        low = floats(packed >> 4) * half(at + 82)
        for n in range(2):
            q0, q1 = u8x16(at + 16 + 32 * n), u8x16(at + 32 + 32 * n)
            for j in range(4):
                k = 8 * n + 2 * j
                store(out, 256 * i + 16 * k, floats((q0 >> 2 * j) & 3) * lane(scale, k) - lane(low, k))
                k += 1
                store(out, 256 * i + 16 * k, floats((q1 >> 2 * j) & 3) * lane(scale, k) - lane(low, k))
        at += 84


@_kernel(GGMLType.Q3_K)
def q3_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        low, high = u8x8(at + 96), u8x4(at + 104)
        first = (low & 15) + ((concat(high, high >> 2) & 3) << 4)
        second = (low >> 4) + ((concat(high >> 4, high >> 6) & 3) << 4)
        scale = floats(signed(concat(first, second) - 32)) * half(at + 108)
        h0, h1 = u8x16(at), u8x16(at + 16)
        for n in range(2):
            q0, q1 = u8x16(at + 32 + 32 * n), u8x16(at + 48 + 32 * n)
            for j in range(4):
                # The third bit is stored in hmask; where it is clear, 4 is subtracted.
                k = 8 * n + 2 * j
                q = ((q0 >> 2 * j) & 3) + (((h0 >> (4 * n + j)) & 1) << 2) - 4
                store(out, 256 * i + 16 * k, floats(signed(q)) * lane(scale, k))
                k += 1
                q = ((q1 >> 2 * j) & 3) + (((h1 >> (4 * n + j)) & 1) << 2) - 4
                store(out, 256 * i + 16 * k, floats(signed(q)) * lane(scale, k))
        at += 110


@_kernel(GGMLType.Q4_K)
def q4_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        # Eight 6-bit scales and minima: four of each whole, four in pieces.
        s, m, rest = u8x4(at + 4), u8x4(at + 8), u8x4(at + 12)
        scale = floats(concat(s & 63, (rest & 15) | ((s >> 6) << 4))) * half(at)
        low = floats(concat(m & 63, (rest >> 4) | ((m >> 6) << 4))) * half(at + 2)
        for j in range(4):
            q = u8x32(at + 16 + 32 * j)
            k = 256 * i + 64 * j
            store(out, k, floats(q & 15) * lane(scale, 2 * j) - lane(low, 2 * j))
            store(out, k + 32, floats(q >> 4) * lane(scale, 2 * j + 1) - lane(low, 2 * j + 1))
        at += 144


@_kernel(GGMLType.Q5_K)
def q5_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        s, m, rest = u8x4(at + 4), u8x4(at + 8), u8x4(at + 12)
        scale = floats(concat(s & 63, (rest & 15) | ((s >> 6) << 4))) * half(at)
        low = floats(concat(m & 63, (rest >> 4) | ((m >> 6) << 4))) * half(at + 2)
        h = u8x32(at + 16)
        for j in range(4):
            q = u8x32(at + 48 + 32 * j)
            k = 256 * i + 64 * j
            q5 = (q & 15) | (((h >> 2 * j) & 1) << 4)
            store(out, k, floats(q5) * lane(scale, 2 * j) - lane(low, 2 * j))
            q5 = (q >> 4) | (((h >> (2 * j + 1)) & 1) << 4)
            store(out, k + 32, floats(q5) * lane(scale, 2 * j + 1) - lane(low, 2 * j + 1))
        at += 176


@_kernel(GGMLType.Q6_K)
def q6_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        scale = floats(i8x16(at + 192)) * half(at + 208)
        for n in range(2):
            for j in range(2):
                q0, q1 = u8x16(at + 64 * n + 16 * j), u8x16(at + 64 * n + 32 + 16 * j)
                h = u8x16(at + 128 + 32 * n + 16 * j)
                k = 256 * i + 128 * n + 16 * j
                s = 8 * n + j
                q = (q0 & 15) | ((h << 4) & 48)
                store(out, k, floats(signed(q - 32)) * lane(scale, s))
                q = (q1 & 15) | ((h << 2) & 48)
                store(out, k + 32, floats(signed(q - 32)) * lane(scale, s + 2))
                q = (q0 >> 4) | (h & 48)
                store(out, k + 64, floats(signed(q - 32)) * lane(scale, s + 4))
                q = (q1 >> 4) | ((h >> 2) & 48)
                store(out, k + 96, floats(signed(q - 32)) * lane(scale, s + 6))
        at += 210


@_kernel(GGMLType.Q8_K)
def q8_k(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = f32(at)
        for j in range(8):
            store(out, 256 * i + 32 * j, floats(i8x32(at + 4 + 32 * j)) * d)
        at += 292


# I-quants: grids of points, signs beside them


@_kernel(GGMLType.IQ2_XXS)
def iq2_xxs(at: int, out: Any, count: int) -> None:
    grid, ksigns = address(IQ2_XXS_GRID), address(KSIGNS)
    for i in range(count):
        d = half(at)
        for j in range(8):
            qs = at + 2 + 8 * j
            rest = u32(qs + 4)
            scale = d * (HALF + np.float32(rest >> 28)) * QUARTER
            for k in range(4):
                points = floats(u8x8(grid + 8 * u8(qs + k))) * scale
                signs = u8(ksigns + ((rest >> 7 * k) & 127))
                store(out, 256 * i + 32 * j + 8 * k, negate(points, signs))
        at += 66


@_kernel(GGMLType.IQ2_XS)
def iq2_xs(at: int, out: Any, count: int) -> None:
    grid, ksigns = address(IQ2_XS_GRID), address(KSIGNS)
    for i in range(count):
        d = half(at)
        for j in range(16):
            nibble = (u8(at + 66 + (j >> 1)) >> 4 * (j & 1)) & 15
            scale = d * (HALF + np.float32(nibble)) * QUARTER
            for k in range(2):
                q = u16(at + 2 + 4 * j + 2 * k)
                points = floats(u8x8(grid + 8 * (q & 511))) * scale
                store(out, 256 * i + 16 * j + 8 * k, negate(points, u8(ksigns + (q >> 9))))
        at += 74


@_kernel(GGMLType.IQ2_S)
def iq2_s(at: int, out: Any, count: int) -> None:
    grid = address(IQ2_S_GRID)
    for i in range(count):
        d = half(at)
        for j in range(8):
            high = u8(at + 66 + j)
            nibbles = u8(at + 74 + j)
            for k in range(4):
                scale = d * (HALF + np.float32((nibbles >> 4 * (k >> 1)) & 15)) * QUARTER
                qs = at + 2 + 4 * j + k
                point = u8(qs) | ((high << (8 - 2 * k)) & 0x300)
                points = floats(u8x8(grid + 8 * point)) * scale
                store(out, 256 * i + 32 * j + 8 * k, negate(points, u8(qs + 32)))
        at += 82


@_kernel(GGMLType.IQ3_XXS)
def iq3_xxs(at: int, out: Any, count: int) -> None:
    grid, ksigns = address(IQ3_XXS_GRID), address(KSIGNS)
    for i in range(count):
        d = half(at)
        for j in range(8):
            rest = u32(at + 66 + 4 * j)
            scale = d * (HALF + np.float32(rest >> 28)) * HALF
            for k in range(4):
                qs = at + 2 + 8 * j + 2 * k
                points = concat(u8x4(grid + 4 * u8(qs)), u8x4(grid + 4 * u8(qs + 1)))
                signs = u8(ksigns + ((rest >> 7 * k) & 127))
                store(out, 256 * i + 32 * j + 8 * k, negate(floats(points) * scale, signs))
        at += 98


@_kernel(GGMLType.IQ3_S)
def iq3_s(at: int, out: Any, count: int) -> None:
    grid = address(IQ3_S_GRID)
    for i in range(count):
        d = half(at)
        for j in range(8):
            nibble = (u8(at + 106 + (j >> 1)) >> 4 * (j & 1)) & 15
            scale = d * np.float32(1 + 2 * nibble)
            high = u8(at + 66 + j)
            for k in range(4):
                qs = at + 2 + 8 * j + 2 * k
                first = u8(qs) | ((high << (8 - 2 * k)) & 256)
                second = u8(qs + 1) | ((high << (7 - 2 * k)) & 256)
                points = concat(u8x4(grid + 4 * first), u8x4(grid + 4 * second))
                signs = u8(at + 74 + 4 * j + k)
                store(out, 256 * i + 32 * j + 8 * k, negate(floats(points) * scale, signs))
        at += 110


@_kernel(GGMLType.IQ1_S)
def iq1_s(at: int, out: Any, count: int) -> None:
    grid, deltas = address(IQ1_GRID), address(DELTA)
    for i in range(count):
        d = half(at)
        for j in range(8):
            high = u16(at + 34 + 2 * j)
            scale = d * np.float32(2 * ((high >> 12) & 7) + 1)
            delta = f32(deltas + 4 * (high >> 15))
            for k in range(4):
                point = u8(at + 2 + 4 * j + k) | (((high >> 3 * k) & 7) << 8)
                store(out, 256 * i + 32 * j + 8 * k, (floats(i8x8(grid + 8 * point)) + delta) * scale)
        at += 50


@_kernel(GGMLType.IQ1_M)
def iq1_m(at: int, out: Any, count: int) -> None:
    grid, deltas = address(IQ1_GRID), address(DELTA)
    for i in range(count):
        s0, s1, s2, s3 = u16(at + 48), u16(at + 50), u16(at + 52), u16(at + 54)
        d = half_from_bits((s0 >> 12) | ((s1 >> 8) & 0xF0) | ((s2 >> 4) & 0xF00) | (s3 & 0xF000))
        for j in range(16):
            scale = d * np.float32(2 * ((u16(at + 48 + 2 * (j >> 2)) >> 3 * (j & 3)) & 7) + 1)
            high = u8(at + 32 + j)
            for k in range(2):
                nibble = high >> 4 * k
                point = u8(at + 2 * j + k) | ((nibble & 7) << 8)
                delta = f32(deltas + 4 * ((nibble >> 3) & 1))
                store(out, 256 * i + 16 * j + 8 * k, (floats(i8x8(grid + 8 * point)) + delta) * scale)
        at += 56


@_kernel(GGMLType.IQ4_NL)
def iq4_nl(at: int, out: Any, count: int) -> None:
    values = i8x16(address(KVALUES_IQ4))
    for i in range(count):
        d = half(at)
        q = u8x16(at + 2)
        store(out, 32 * i, floats(lookup(values, q & 15)) * d)
        store(out, 32 * i + 16, floats(lookup(values, q >> 4)) * d)
        at += 18


@_kernel(GGMLType.IQ4_XS)
def iq4_xs(at: int, out: Any, count: int) -> None:
    values = i8x16(address(KVALUES_IQ4))
    for i in range(count):
        d = half(at)
        high = u16(at + 2)
        for j in range(8):
            nibble = (u8(at + 4 + (j >> 1)) >> 4 * (j & 1)) & 15
            scale = d * np.float32((nibble | (((high >> 2 * j) & 3) << 4)) - 32)
            q = u8x16(at + 8 + 16 * j)
            store(out, 256 * i + 32 * j, floats(lookup(values, q & 15)) * scale)
            store(out, 256 * i + 32 * j + 16, floats(lookup(values, q >> 4)) * scale)
        at += 136


# Ternary: digits of base 3 as fixed-point fractions, or two bits


@_kernel(GGMLType.TQ1_0)
def tq1_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = half(at + 52)
        k = 256 * i
        # Times 3, the integer part is the next digit.
        a = widen(u8x32(at))
        for _ in range(5):
            a = a * 3
            store(out, k, floats(signed(a >> 8) - 1) * d)
            a = a & 255
            k += 32
        b = widen(u8x16(at + 32))
        for _ in range(5):
            b = b * 3
            store(out, k, floats(signed(b >> 8) - 1) * d)
            b = b & 255
            k += 16
        c = widen(u8x4(at + 48))
        for _ in range(4):
            c = c * 3
            store(out, k, floats(signed(c >> 8) - 1) * d)
            c = c & 255
            k += 4
        at += 54


@_kernel(GGMLType.TQ2_0)
def tq2_0(at: int, out: Any, count: int) -> None:
    for i in range(count):
        d = half(at + 64)
        for n in range(2):
            q = u8x32(at + 32 * n)
            for j in range(4):
                store(out, 256 * i + 128 * n + 32 * j, floats(signed(((q >> 2 * j) & 3) - 1)) * d)
        at += 66


# Four-bit floats


@_kernel(GGMLType.MXFP4)
def mxfp4(at: int, out: Any, count: int) -> None:
    values, scales = i8x16(address(KVALUES_FP4)), address(E8M0)
    for i in range(count):
        d = f32(scales + 4 * u8(at))
        q = u8x16(at + 1)
        store(out, 32 * i, floats(lookup(values, q & 15)) * d)
        store(out, 32 * i + 16, floats(lookup(values, q >> 4)) * d)
        at += 17


@_kernel(GGMLType.NVFP4)
def nvfp4(at: int, out: Any, count: int) -> None:
    values, scales = i8x16(address(KVALUES_FP4)), address(UE4M3)
    for i in range(count):
        for j in range(2):
            # Two groups of 16 elements at a time; the low nibbles of a group precede its high ones.
            d0, d1 = f32(scales + 4 * u8(at + 2 * j)), f32(scales + 4 * u8(at + 2 * j + 1))
            q = u8x16(at + 4 + 16 * j)
            low, high = floats(lookup(values, q & 15)), floats(lookup(values, q >> 4))
            k = 64 * i + 32 * j
            store(out, k, lower(low) * d0)
            store(out, k + 8, lower(high) * d0)
            store(out, k + 16, upper(low) * d1)
            store(out, k + 24, upper(high) * d1)
        at += 36


# Plain types: blocks of one element


@_kernel(GGMLType.F32)
def f32_(at: int, out: Any, count: int) -> None:
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, i, f32x16(at + 4 * i))
    for i in range(whole, count):
        store(out, i, f32x1(at + 4 * i))


@_kernel(GGMLType.F16)
def f16(at: int, out: Any, count: int) -> None:
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, i, halves(u16x16(at + 2 * i)))
    for i in range(whole, count):
        store(out, i, halves(u16x1(at + 2 * i)))


@_kernel(GGMLType.BF16)
def bf16(at: int, out: Any, count: int) -> None:
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, i, bfloat16s(u16x16(at + 2 * i)))
    for i in range(whole, count):
        store(out, i, bfloat16s(u16x1(at + 2 * i)))
