"""Kernels of all block types, written once for every library that follows the array API standard.

Each is a pure function ``(ops, blocks)``: uint8 of shape (n, type_size) → float32 (n, k, block_size / k), with the bits
of ggml's ``dequantize_row_*``.

The bits do not depend on what a compiler does with the arithmetic.  Where a scale is a float16 or smaller, its product
with the integers of the block has at most 24 significant bits, so float32 holds it exactly, in whatever order it is
computed; what remains is at most one addition, of an exact product and an exact minimum, which is rounded once, fused
or not.  In Q8_K, whose scale is a float32, there is a single product.  What has to hold is that numbers below 2^-126
are not flushed to zero: that concerns Q8_K, whose scales go down so far, and MXFP4, whose products are looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...types import GGMLType
from .operations import Array, Operations
from .parts import (
    bits,
    even,
    from_half,
    half,
    integers,
    look_up,
    nibbles,
    paired_nibbles,
    pairs_of_bits,
    scaled,
    sevens,
    signed,
    single,
    words,
)

__all__ = ["KERNELS", "Kernel"]

Kernel = Callable[[Operations, Array], Array]


# One scale for all elements of a block, or one byte for some of them.


def q4_0(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, integers(ops, nibbles(ops, blocks[:, 2:]), 8), half(ops, blocks[:, :2]))


def q4_1(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, nibbles(ops, blocks[:, 4:]), half(ops, blocks[:, :2])) + half(ops, blocks[:, 2:4])[..., None]


def _fives(ops: Operations, packed: Array, high: Array) -> Array:
    """Nibbles, and above them a bit for each element."""
    low = ops.xp.reshape(nibbles(ops, packed), (packed.shape[0], -1))
    return low | (bits(ops, high) << 4)


def q5_0(ops: Operations, blocks: Array) -> Array:
    quants = integers(ops, _fives(ops, blocks[:, 6:], blocks[:, 2:6]), 16)
    return scaled(ops, quants, half(ops, blocks[:, :2]))


def q5_1(ops: Operations, blocks: Array) -> Array:
    quants = _fives(ops, blocks[:, 8:], blocks[:, 4:8])
    return scaled(ops, quants, half(ops, blocks[:, :2])) + half(ops, blocks[:, 2:4])[..., None]


def q8_0(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, ops.reinterpret(blocks[:, 2:], ops.xp.int8), half(ops, blocks[:, :2]))


def q8_1(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, ops.reinterpret(blocks[:, 4:], ops.xp.int8), half(ops, blocks[:, :2]))


def q8_k(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, ops.reinterpret(blocks[:, 4:260], ops.xp.int8), single(ops, blocks[:, :4]))


def iq4_nl(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, look_up(ops, "kvalues_iq4nl", nibbles(ops, blocks[:, 2:])), half(ops, blocks[:, :2]))


def mxfp4(ops: Operations, blocks: Array) -> Array:
    # All products in one table: the smallest scales are subnormal, and XLA's code for the CPU would take them for zero.
    xp = ops.xp
    index = xp.astype(nibbles(ops, blocks[:, 1:]), xp.int32) | (xp.astype(blocks[:, :1, None], xp.int32) << 4)
    return look_up(ops, "mxfp4", index)


def nvfp4(ops: Operations, blocks: Array) -> Array:
    packed = ops.xp.reshape(blocks[:, 4:], (-1, 4, 8))
    return scaled(ops, look_up(ops, "kvalues_fp4", nibbles(ops, packed)), look_up(ops, "ue4m3_half", blocks[:, :4]))


def q1_0(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, integers(ops, bits(ops, blocks[:, 2:]) << 1, 1), half(ops, blocks[:, :2]))


def q2_0(ops: Operations, blocks: Array) -> Array:
    return scaled(ops, integers(ops, bits(ops, blocks[:, 2:], 2), 1), half(ops, blocks[:, :2]))


def tq1_0(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    # Trits are the digits of a fraction of 256 in base three.  Byte j of a run of w holds the elements j, w + j, ….
    packed = xp.astype(blocks[:, :52], xp.int32)
    fractions = (packed[:, None, :] * ops.constant("powers", blocks)[:, None]) & 255
    trits = xp.astype((fractions * 3) >> 8, xp.int8) - 1
    runs = (trits[:, :, :32], trits[:, :, 32:48], trits[:, :4, 48:])  # the last run has four trits per byte
    flat = xp.concat([xp.reshape(run, (run.shape[0], -1)) for run in runs], axis=1)
    return scaled(ops, flat, half(ops, blocks[:, 52:]))


def tq2_0(ops: Operations, blocks: Array) -> Array:
    packed = ops.xp.reshape(blocks[:, :64], (-1, 2, 32))
    return scaled(ops, integers(ops, pairs_of_bits(ops, packed), 1), half(ops, blocks[:, 64:]))


# K-quants: the scales of sub-blocks are integers themselves.


def q2_k(ops: Operations, blocks: Array) -> Array:
    xp, scales = ops.xp, blocks[:, :16]
    quants = pairs_of_bits(ops, xp.reshape(blocks[:, 16:80], (-1, 2, 32)))
    d, dmin = half(ops, blocks[:, 80:82]), half(ops, blocks[:, 82:84])
    minima = dmin * xp.astype(scales >> 4, xp.float32)
    return scaled(ops, quants, d * xp.astype(scales & 15, xp.float32)) - minima[..., None]


def q3_k(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    low = pairs_of_bits(ops, xp.reshape(blocks[:, 32:96], (-1, 2, 32)))
    # A clear bit takes four off: bits 0-3 for the first half, 4-7 for the second.
    high = (blocks[:, None, :32] >> ops.constant("shifts1", blocks)[:, None]) & 1
    quants = integers(ops, xp.reshape(low, (-1, 8, 32)) | (high << 2), 4)
    # Sixteen scales of six bits: low nibbles in eight bytes, the upper two bits in four.
    six = xp.reshape(nibbles(ops, blocks[:, 96:104]), (-1, 16))
    six = six | (xp.reshape(pairs_of_bits(ops, blocks[:, 104:108]), (-1, 16)) << 4)
    d = half(ops, blocks[:, 108:110])
    return scaled(ops, quants, d * xp.astype(integers(ops, six, 32), xp.float32))


def _with_minima(ops: Operations, blocks: Array, quants: Array) -> Array:
    """Q4_K and Q5_K: eight scales and eight minima of six bits in twelve bytes.

    The first four of each are the low six bits of bytes 0–3 and 4–7; the last four have their low nibbles in bytes 8–11
    and their upper two bits on top of bytes 0–3 and 4–7.
    """
    xp = ops.xp
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = xp.concat([first & 63, (last & 15) | ((first >> 6) << 4)], axis=1)
    minima = xp.concat([second & 63, (last >> 4) | ((second >> 6) << 4)], axis=1)
    d, dmin = half(ops, blocks[:, :2]), half(ops, blocks[:, 2:4])
    shift = dmin * xp.astype(minima, xp.float32)
    return scaled(ops, quants, d * xp.astype(scales, xp.float32)) - shift[..., None]


def q4_k(ops: Operations, blocks: Array) -> Array:
    return _with_minima(ops, blocks, nibbles(ops, ops.xp.reshape(blocks[:, 16:], (-1, 4, 32))))


def q5_k(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    low = xp.reshape(nibbles(ops, xp.reshape(blocks[:, 48:], (-1, 4, 32))), (-1, 8, 32))
    high = (blocks[:, None, 16:48] >> ops.constant("shifts1", blocks)[:, None]) & 1
    return _with_minima(ops, blocks, low | (high << 4))


def q6_k(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    low = xp.reshape(nibbles(ops, xp.reshape(blocks[:, :128], (-1, 2, 64))), (-1, 2, 4, 32))
    high = pairs_of_bits(ops, xp.reshape(blocks[:, 128:192], (-1, 2, 32)))
    scales = xp.astype(ops.reinterpret(blocks[:, 192:208], xp.int8), xp.float32)
    return scaled(ops, integers(ops, low | (high << 4), 32), half(ops, blocks[:, 208:]) * scales)


def iq4_xs(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    six = paired_nibbles(ops, blocks[:, 4:8]) | (bits(ops, blocks[:, 2:4], 2) << 4)
    points = look_up(ops, "kvalues_iq4nl", nibbles(ops, xp.reshape(blocks[:, 8:], (-1, 8, 16))))
    return scaled(ops, points, half(ops, blocks[:, :2]) * xp.astype(integers(ops, six, 32), xp.float32))


# I-quants: groups of four or eight elements are entries of a codebook.


def _fine(ops: Operations, blocks: Array, scales: Array, factor: float) -> Array:
    """The scale of a sub-block, d × (1/2 + scale) × factor."""
    return half(ops, blocks[:, :2]) * (ops.xp.astype(scales, ops.xp.float32) + 0.5) * factor


def iq2_xxs(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    # Per 32 elements: four bytes of entries, then a word of 4 × 7 bits of signs and 4 bits of scale.
    groups = xp.reshape(blocks[:, 2:], (-1, 8, 8))
    index = xp.reshape(groups[:, :, :4], (-1, 32))
    word = words(ops, xp.reshape(groups[:, :, 4:], (-1, 32)), 4)
    points = signed(ops, look_up(ops, "iq2xxs_grid", index), sevens(ops, word))
    return scaled(ops, points, _fine(ops, blocks, (word >> 28) & 15, 0.25))


def iq2_xs(ops: Operations, blocks: Array) -> Array:
    word = words(ops, blocks[:, 2:66])
    points = signed(ops, look_up(ops, "iq2xs_grid", word & 511), even(ops, word >> 9))
    return scaled(ops, points, _fine(ops, blocks, paired_nibbles(ops, blocks[:, 66:]), 0.25))


def _with_upper(ops: Operations, low: Array, packed: Array, width: int) -> Array:
    """Indices of a byte and, above it, of some bits."""
    xp = ops.xp
    return xp.astype(low, xp.int32) | (xp.astype(bits(ops, packed, width), xp.int32) << 8)


def iq2_s(ops: Operations, blocks: Array) -> Array:
    index = _with_upper(ops, blocks[:, 2:34], blocks[:, 66:74], 2)
    points = signed(ops, look_up(ops, "iq2s_grid", index), blocks[:, 34:66])
    return scaled(ops, points, _fine(ops, blocks, paired_nibbles(ops, blocks[:, 74:]), 0.25))


def iq3_xxs(ops: Operations, blocks: Array) -> Array:
    word = words(ops, blocks[:, 66:], 4)
    points = signed(ops, look_up(ops, "iq3xxs_grid", blocks[:, 2:66]), sevens(ops, word))
    return scaled(ops, points, _fine(ops, blocks, (word >> 28) & 15, 0.5))


def iq3_s(ops: Operations, blocks: Array) -> Array:
    index = _with_upper(ops, blocks[:, 2:66], blocks[:, 66:74], 1)
    points = signed(ops, look_up(ops, "iq3s_grid", index), blocks[:, 74:106])
    # d × (1 + 2 × scale), as twice d × (1/2 + scale).
    return scaled(ops, points, _fine(ops, blocks, paired_nibbles(ops, blocks[:, 106:]), 2.0))


def _shifted(ops: Operations, index: Array, minus: Array) -> Array:
    """IQ1's points in eighths, with an eighth added, or subtracted where `minus` is 1: (n, 32) → (n, 32, 8)."""
    points = look_up(ops, "iq1s_grid", index) * 8
    return points + ops.xp.astype(1 - 2 * minus, ops.xp.int8)[..., None]


def _odd(ops: Operations, d: Array, three: Array) -> Array:
    """The scale of a sub-block of IQ1: an eighth of d × (2 × scale + 1)."""
    return d * ops.xp.astype(2 * three + 1, ops.xp.float32) * 0.125


def iq1_s(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    word = words(ops, blocks[:, 34:])
    # Bits 0-2, 3-5, 6-8 and 9-11 lead four indices; bit 15 is the sign of the shift.
    upper = xp.reshape((word[..., None] >> ops.constant("threes", word)) & 7, (-1, 32))
    index = xp.astype(blocks[:, 2:34], xp.int32) | (upper << 8)
    minus = xp.reshape(xp.broadcast_to((word >> 15)[..., None], (*word.shape, 4)), (-1, 32))
    return scaled(ops, _shifted(ops, index, minus), _odd(ops, half(ops, blocks[:, :2]), (word >> 12) & 7))


def iq1_m(ops: Operations, blocks: Array) -> Array:
    xp = ops.xp
    word = words(ops, blocks[:, 48:])
    # The block's float16 scale is spread over the top nibbles of four words; below are 4 × 3 bits each.
    top = (word >> 12) & 15
    d = from_half(ops, top[:, :1] | (top[:, 1:2] << 4) | (top[:, 2:3] << 8) | (top[:, 3:] << 12))
    three = xp.reshape((word[..., None] >> ops.constant("threes", word)) & 7, (-1, 16))
    # Three bits of index, and the sign of the shift on top of them.
    high = xp.astype(paired_nibbles(ops, blocks[:, 32:48]), xp.int32)
    index = xp.astype(blocks[:, :32], xp.int32) | ((high & 7) << 8)
    return scaled(ops, _shifted(ops, index, high >> 3), _odd(ops, d, three))


KERNELS: Final[dict[GGMLType, Kernel]] = {
    GGMLType.Q4_0: q4_0,
    GGMLType.Q4_1: q4_1,
    GGMLType.Q5_0: q5_0,
    GGMLType.Q5_1: q5_1,
    GGMLType.Q8_0: q8_0,
    GGMLType.Q8_1: q8_1,
    GGMLType.Q2_K: q2_k,
    GGMLType.Q3_K: q3_k,
    GGMLType.Q4_K: q4_k,
    GGMLType.Q5_K: q5_k,
    GGMLType.Q6_K: q6_k,
    GGMLType.Q8_K: q8_k,
    GGMLType.IQ2_XXS: iq2_xxs,
    GGMLType.IQ2_XS: iq2_xs,
    GGMLType.IQ2_S: iq2_s,
    GGMLType.IQ3_XXS: iq3_xxs,
    GGMLType.IQ3_S: iq3_s,
    GGMLType.IQ1_S: iq1_s,
    GGMLType.IQ1_M: iq1_m,
    GGMLType.IQ4_NL: iq4_nl,
    GGMLType.IQ4_XS: iq4_xs,
    GGMLType.TQ1_0: tq1_0,
    GGMLType.TQ2_0: tq2_0,
    GGMLType.MXFP4: mxfp4,
    GGMLType.NVFP4: nvfp4,
    GGMLType.Q1_0: q1_0,
    GGMLType.Q2_0: q2_0,
}
