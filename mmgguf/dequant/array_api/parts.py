"""Steps that the portable kernels share.

Bytes stay uint8 as long as they are fields of a byte; words that are composed of bytes are int32, which every
library can shift.  No step writes to an array, and all shapes follow from the shape of the blocks: the kernels can be
traced, compiled and differentiated through.
"""

from __future__ import annotations

from .operations import Array, Operations

__all__ = [
    "bits",
    "half",
    "integers",
    "look_up",
    "nibbles",
    "paired_nibbles",
    "pairs_of_bits",
    "scaled",
    "sevens",
    "signed",
    "single",
    "words",
]


def words(ops: Operations, raw: Array, size: int = 2) -> Array:
    """Little-endian words of `size` bytes, (n, k * size) uint8 → (n, k) int32; words of four bytes may be negative."""
    xp = ops.xp
    parts = xp.astype(xp.reshape(raw, (raw.shape[0], -1, size)), xp.int32)
    result = parts[..., 0]
    for i in range(1, size):
        result = result | (parts[..., i] << 8 * i)
    return result


def half(ops: Operations, raw: Array) -> Array:
    """Two bytes of each block, a float16, as float32: (n, 2) → (n, 1)."""
    return from_half(ops, words(ops, raw))


def from_half(ops: Operations, word: Array) -> Array:
    """The bits of float16, in int32, as float32."""
    xp = ops.xp
    # Sign extension: every value is one of int16 before it becomes one.
    word = (word ^ 0x8000) - 0x8000
    return xp.astype(ops.reinterpret(xp.astype(word, xp.int16), xp.float16), xp.float32)


def single(ops: Operations, raw: Array) -> Array:
    """Four bytes of each block as float32: (n, 4) → (n, 1)."""
    return ops.reinterpret(words(ops, raw, 4), ops.xp.float32)


def integers(ops: Operations, quants: Array, offset: int = 0) -> Array:
    """Bytes below 128 as int8, less an offset."""
    quants = ops.xp.astype(quants, ops.xp.int8)
    return quants - offset if offset else quants


def _fields(ops: Operations, packed: Array, width: int) -> Array:
    """All first fields of `width` bits of runs of bytes, then all second ones, …: (…, k) → (…, 8 / width, k)."""
    return (packed[..., None, :] >> ops.constant(f"shifts{width}", packed)[:, None]) & (1 << width) - 1


def nibbles(ops: Operations, packed: Array) -> Array:
    """The low nibbles of a run of k bytes, then the high ones: (…, k) → (…, 2, k)."""
    return _fields(ops, packed, 4)


def pairs_of_bits(ops: Operations, packed: Array) -> Array:
    """The lowest two bits of a run of k bytes, then the next ones, …: (…, k) → (…, 4, k)."""
    return _fields(ops, packed, 2)


def bits(ops: Operations, packed: Array, width: int = 1) -> Array:
    """Fields of each byte, lowest first: (n, k) → (n, k * 8 / width)."""
    fields = (packed[..., None] >> ops.constant(f"shifts{width}", packed)) & (1 << width) - 1
    return ops.xp.reshape(fields, (packed.shape[0], -1))


def paired_nibbles(ops: Operations, packed: Array) -> Array:
    """The low nibble of each byte, then its high one: (n, k) → (n, 2 k)."""
    return bits(ops, packed, 4)


def look_up(ops: Operations, name: str, index: Array) -> Array:
    """``table[index]`` along the table's first axis, for indices in its range."""
    xp = ops.xp
    entries = ops.constant(name, index)
    found = xp.take(entries, xp.reshape(xp.astype(index, xp.int32), (-1,)), axis=0)
    return xp.reshape(found, (*index.shape, *entries.shape[1:]))


def signed(ops: Operations, points: Array, signs: Array) -> Array:
    """Points (n, k, 8) or (n, 2 k, 4), minus where a bit of `signs` (n, k) is set, lowest first: (n, 8 k)."""
    xp = ops.xp
    flat = xp.reshape(points, (points.shape[0], -1))
    minus = xp.astype(bits(ops, signs), xp.int8)
    return flat * (1 - 2 * minus)


def sevens(ops: Operations, word: Array) -> Array:
    """Signs from the lower 28 bits of words, four groups of seven: (n, k) int32 → (n, 4 k) uint8.

    The eighth bit is such that the number of set bits is even.
    """
    xp = ops.xp
    seven = (word[..., None] >> ops.constant("sevens", word)) & 127
    return even(ops, xp.reshape(seven, (word.shape[0], -1)))


def even(ops: Operations, seven: Array) -> Array:
    """Seven bits in int32, and above them the bit that makes the number of set bits even, as uint8."""
    parity = seven ^ (seven >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return ops.xp.astype(seven | (parity << 7), ops.xp.uint8)


def scaled(ops: Operations, quants: Array, scales: Array) -> Array:
    """Quants × scales, each scale for the same number of consecutive quants: (n, …), (n, k) → float32 (n, k, …/k)."""
    xp = ops.xp
    n, k = scales.shape
    size = 1
    for length in quants.shape[1:]:
        size *= length
    return xp.astype(xp.reshape(quants, (n, k, size // k)), xp.float32) * scales[..., None]
