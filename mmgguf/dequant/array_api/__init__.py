"""Kernels written once against the array API standard: for torch on any device, JAX under ``jit``, and numpy.

They compute what `mmgguf.dequantize` computes, with the same bits, from arrays of whatever library an `Operations`
describes.  `mmgguf.torch` and `mmgguf.jax` use them where the blocks are not in the CPU's memory, or where a tracer
stands for them.
"""

from __future__ import annotations

import math

from ...types import LAYOUTS, GGMLType
from .kernels import KERNELS
from .operations import NUMPY, TABLES, Array, Operations, table

__all__ = ["NUMPY", "TABLES", "Array", "Operations", "dequantize", "table"]


def dequantize(ops: Operations, raw: Array, type_: GGMLType, dtype: object) -> Array:
    """Dequantize bytes of whole blocks: uint8 (..., n * type_size) to `dtype` (..., n * block_size).

    `dtype` is one of the library's; the numbers are computed in float32 and then converted.  The last axis has to be a
    whole number of blocks; that is checked by the caller, who knows how to say so.
    """
    xp, layout = ops.xp, LAYOUTS[type_]
    rows, row_blocks = tuple(raw.shape[:-1]), raw.shape[-1] // layout.type_size
    shape = (*rows, row_blocks * layout.block_size)
    count = math.prod(rows) * row_blocks
    if count == 0:
        return xp.reshape(xp.astype(raw[..., :0], dtype), shape)
    numbers = KERNELS[type_](ops, xp.reshape(raw, (count, layout.type_size)))
    return xp.astype(xp.reshape(numbers, shape), dtype)
