"""Convert the tensors of a whole file: many at a time, by all cores, into memory that is quickly touched.

Most tensors are too small for several threads of their own, and for the huge pages that the system gives to large
arrays.  Small pages are what loading waits for then: the first touch of one takes longer than computing its numbers.
So small arrays get neighbouring places in large pieces of memory, and threads take parts of any tensor.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .conversion import ranges, store
from .dequant.memory import HUGE_PAGE, empty
from .dequant.threads import cores, spread
from .tensor import Tensor

__all__ = ["Batches", "Pieces"]

#: Arrays of this size have memory of their own.
LARGE: Final = 32 << 20
#: The most bytes of a piece that others share.
PIECE: Final = 64 << 20
#: Bytes of results that are computed together.
BATCH: Final = 64 << 20
#: Bytes of results that a thread takes at a time.
PART: Final = 4 << 20
_ALIGNMENT: Final = 64


class Pieces:
    """Memory for arrays whose sizes are known beforehand.

    Parameters
    ----------
    sizes : list of int
        Bytes of all arrays to come: no piece is larger than what they need.
    """

    def __init__(self, sizes: list[int]) -> None:
        self._left = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes if size < LARGE)
        self._piece = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array of that shape, aligned to 64 bytes."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes >= LARGE:
            return _memory(nbytes).view(dtype).reshape(shape)
        room = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if room > len(self._piece):
            self._piece = _memory(max(room, min(PIECE, self._left)))
        array = self._piece[:nbytes].view(dtype).reshape(shape)
        self._piece = self._piece[room:]
        self._left -= room
        return array


def _memory(nbytes: int) -> npt.NDArray[np.uint8]:
    """New memory; if there is much of it, all of it in whole huge pages where the system has them."""
    if nbytes < HUGE_PAGE:
        return empty((nbytes,), np.dtype(np.uint8))
    return empty((-(-nbytes // HUGE_PAGE) * HUGE_PAGE,), np.dtype(np.uint8))[:nbytes]


class Batches:
    """Conversions that are gathered, and done together by all cores."""

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[Any], Tensor, npt.NDArray[Any]]] = []
        self._nbytes = 0

    def add(self, stored: npt.NDArray[Any], tensor: Tensor, out: npt.NDArray[Any]) -> None:
        """Have the numbers of a tensor's stored form written to `out`, by the next `finish` at the latest."""
        blocks, flat, size = stored.reshape(-1), out.reshape(-1), tensor.layout.block_size
        for start, stop in ranges(flat.size, out.itemsize, PART):
            self._parts.append((blocks[start // size : stop // size], tensor, flat[start:stop]))
        self._nbytes += out.nbytes
        if self._nbytes >= BATCH:
            self.finish()

    def finish(self) -> None:
        """Do what was gathered.

        Raises
        ------
        Exception
            The first that any conversion raised.
        """
        parts, self._parts = self._parts, []
        threads = min(cores(), 1 + self._nbytes // PART)
        self._nbytes = 0
        if parts:
            spread(lambda part: store(*part, threads=1), parts, threads)
