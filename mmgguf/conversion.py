"""Convert a tensor's numbers for adapters and converters: whole, into given memory, or in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .dequant import dequantize
from .dequant.memory import empty
from .tensor import Tensor
from .types import GGMLType

__all__ = ["CHUNK_SIZE", "chunks", "ranges", "result_dtype", "store", "values"]

#: The most bytes of numbers that `chunks` holds at a time.
CHUNK_SIZE: Final = 16 << 20
#: A multiple of every block size.
_ANY_BLOCK: Final = 256
_FLOATS: Final = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.F64, GGMLType.BF16})


def result_dtype(tensor: Tensor, dtype: npt.DTypeLike | None, dequantize: bool = True) -> np.dtype[Any]:
    """The dtype of a tensor's converted numbers: `dtype` for blocks and floats, while integers keep theirs.

    None: plain types keep their own dtype, blocks become float32.  Without `dequantize`, blocks stay blocks.
    """
    layout = tensor.layout
    if not (layout.is_plain or dequantize):
        return layout.dtype
    if layout.is_plain and (dtype is None or tensor.type not in _FLOATS):
        return layout.dtype
    return np.dtype(np.float32 if dtype is None else dtype)


def values(tensor: Tensor, dtype: npt.DTypeLike | None) -> npt.NDArray[Any]:
    """The logical form in the dtype of `result_dtype`: a view where nothing has to be computed."""
    target = result_dtype(tensor, dtype)
    data = tensor.data
    if data.dtype == target:
        return data
    out = empty(tensor.shape, target)
    store(data, tensor, out)
    return out


def store(blocks: npt.NDArray[Any], tensor: Tensor, out: npt.NDArray[Any], threads: int | None = None) -> None:
    """Write the numbers of some of a tensor's blocks to `out`; both contiguous."""
    blocks, out = blocks.reshape(-1), out.reshape(-1)
    if blocks.dtype.kind in "iu":
        np.copyto(out, blocks)  # of the other byte order
        return
    dequantize(blocks, GGMLType(tensor.type), dtype=out.dtype, out=out, threads=threads)


def ranges(n: int, itemsize: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cut `n` elements into ranges of whole blocks of at most `limit` bytes of `itemsize` each (or of one block)."""
    step = max(_ANY_BLOCK, limit // itemsize // _ANY_BLOCK * _ANY_BLOCK)
    for start in range(0, n, step):
        yield start, min(start + step, n)


def chunks(
    tensor: Tensor, dtype: npt.DTypeLike | None, limit: int = CHUNK_SIZE, *, dequantize: bool = True
) -> Iterator[npt.NDArray[Any]]:
    """The numbers in the dtype of `result_dtype`, flat and in pieces, so that memory does not grow with the tensor.

    Yields
    ------
    ndarray
        One dimension, at most `limit` bytes.  A piece that was computed is overwritten by the next one.
    """
    target = result_dtype(tensor, dtype, dequantize)
    stored = tensor.data.reshape(-1)
    block_size = tensor.layout.block_size
    buffer: npt.NDArray[Any] | None = None
    for start, stop in ranges(math.prod(tensor.shape), target.itemsize, limit):
        piece = stored[start // block_size : stop // block_size]
        if target.names:
            piece = piece.astype(target, copy=False)  # blocks, perhaps of the other byte order
        elif piece.dtype != target:
            if buffer is None:
                buffer = np.empty(stop - start, target)
            out = buffer[: stop - start]
            store(piece, tensor, out)
            piece = out
        yield piece
