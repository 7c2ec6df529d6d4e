"""Steps that the numpy kernels share.

What they have in common: bytes are copied out of the blocks once, so that every further step runs over one
contiguous stretch; quants stay bytes until they are in the order of the output; and whole groups of them are
moved as single opaque items, which numpy copies an order of magnitude faster than short inner loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["column", "contiguous", "interleave", "multiply", "nibbles", "repeat", "scale", "subtract"]

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


def interleave(planes: list[NDArray[Any]], width: int) -> NDArray[Any]:
    """Merge arrays of bytes: ``width`` of the first, ``width`` of the second, and so on.  Flat."""
    dtype = planes[0].dtype
    item = np.dtype((np.void, width))
    merged = np.empty((planes[0].size // width, len(planes)), item)
    for i, plane in enumerate(planes):
        merged[:, i] = plane.reshape(-1).view(item)
    return merged.view(dtype).reshape(-1)


def nibbles(packed: Bytes, width: int) -> Bytes:
    """Low nibbles of ``width`` bytes, then their high nibbles, and so on.  Flat."""
    return interleave([packed & 15, packed >> 4], width)


def repeat(values: NDArray[Any], count: int) -> NDArray[Any]:
    """`numpy.repeat` of float32 in two steps: the second copies items of 32 bytes."""
    if count % 8 or count == 8:
        return np.repeat(values, count)
    return np.repeat(np.repeat(values, 8).view("V32"), count // 8).view(values.dtype)


def multiply(quants: NDArray[Any], scales: Floats, out: Floats) -> None:
    """Quants × scales, each scale for the same number of consecutive quants, in float32."""
    flat = out.reshape(-1)
    np.copyto(flat, quants.reshape(-1))
    np.multiply(flat, repeat(scales.reshape(-1), flat.size // scales.size), out=flat)


def subtract(out: Floats, minima: Floats) -> None:
    """Subtract minima in place, each from the same number of consecutive values."""
    flat = out.reshape(-1)
    np.subtract(flat, repeat(minima.reshape(-1), flat.size // minima.size), out=flat)
