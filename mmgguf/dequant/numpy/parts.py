"""Steps that the numpy kernels share.

What they have in common: bytes are copied out of the blocks once, so that every further step runs over one
contiguous stretch; quants stay bytes until they are in the order of the output; and whole groups of them are
moved as single opaque items, which numpy copies an order of magnitude faster than short inner loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "column",
    "contiguous",
    "interleave",
    "look_up",
    "multiply",
    "nibbles",
    "paired_nibbles",
    "scale",
    "subtract",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def column(rows: NDArray[Any], start: int, size: int) -> NDArray[Any]:
    """``size`` bytes of every row from ``start`` on, as one opaque item each: a view of shape (n,)."""
    return np.ndarray(rows.shape[0], f"V{size}", rows.data, start, rows.strides[:1])


def contiguous(blocks: NDArray[Any], name: str, start: int = 0, size: int | None = None) -> Bytes:
    """The bytes of a field of every block, or some of them, copied: shape (n, bytes)."""
    assert blocks.dtype.fields is not None
    dtype, offset = blocks.dtype.fields[name][:2]
    size = size or dtype.itemsize
    items = np.ndarray(blocks.shape, f"V{size}", blocks.data, offset + start, blocks.strides)
    return np.ascontiguousarray(items).view(np.uint8).reshape(blocks.size, size)


def scale(blocks: NDArray[Any], name: str = "d") -> Floats:
    """A float16 field as float32, shape (n,)."""
    return blocks[name].astype(np.float32)


def interleave(planes: Sequence[NDArray[Any]], width: int) -> Bytes:
    """Merge arrays of bytes: ``width`` of the first, ``width`` of the second, and so on.  Flat."""
    item = np.dtype((np.void, width))
    merged = np.empty((planes[0].nbytes // width, len(planes)), item)
    for i, plane in enumerate(planes):
        merged[:, i] = plane.reshape(-1).view(item)
    return merged.reshape(-1).view(np.uint8)


def nibbles(packed: Bytes, width: int) -> Bytes:
    """Low nibbles of ``width`` bytes, then their high nibbles, and so on.  Flat."""
    return interleave([packed & 15, packed >> 4], width)


@cache
def _nibble_pairs() -> NDArray[np.uint16]:
    byte = np.arange(256, dtype=np.uint8)
    return np.stack([byte & 15, byte >> 4], axis=-1).reshape(-1).view(np.uint16)


def paired_nibbles(packed: Bytes) -> Bytes:
    """(n, k) bytes → (n, 2 k): the low nibble of each, then its high nibble."""
    return look_up(_nibble_pairs(), packed).view(np.uint8)


def look_up(table: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    """``table[index]`` for indices that cannot be out of range: several times as fast without the check."""
    return table.take(index, mode="clip")


def multiply(quants: NDArray[Any], scales: Floats, out: Floats) -> None:
    """Quants × scales, each scale for the same number of consecutive quants, in float32."""
    flat = out.reshape(-1)
    np.copyto(flat, quants.reshape(-1))
    # Repeating and then multiplying without broadcasting beats broadcasting over short inner loops.
    np.multiply(flat, np.repeat(scales, flat.size // scales.size), out=flat)


def subtract(out: Floats, minima: Floats) -> None:
    """Subtract minima in place, each from the same number of consecutive values."""
    flat = out.reshape(-1)
    np.subtract(flat, np.repeat(minima, flat.size // minima.size), out=flat)
