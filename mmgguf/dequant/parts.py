"""Steps that the numpy kernels share.

What they have in common: bytes are copied out of the blocks once, so that every further step runs over one
contiguous stretch; quants stay bytes until they are in the order of the output; and whole groups of them are
moved as single opaque items, which numpy copies an order of magnitude faster than short inner loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["column", "contiguous", "interleave", "look_up", "multiply", "nibbles", "scale", "subtract"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def column(blocks: NDArray[Any], name: str, dtype: Any) -> NDArray[Any]:
    """A field of every block as one item of ``dtype``, strided: shape (n,)."""
    assert blocks.dtype.fields is not None
    offset = blocks.dtype.fields[name][1]
    return np.ndarray(blocks.shape, dtype, blocks.data, offset, blocks.strides)


def contiguous(blocks: NDArray[Any], name: str) -> Bytes:
    """The bytes of a field of every block, copied: shape (n, bytes)."""
    assert blocks.dtype.fields is not None
    size = blocks.dtype.fields[name][0].itemsize
    items = np.ascontiguousarray(column(blocks, name, f"V{size}"))
    return items.view(np.uint8).reshape(blocks.size, size)


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
