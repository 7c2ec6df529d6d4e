"""New memory for results: aligned for whoever takes it, and in huge pages where there is much of it."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["HUGE_PAGE", "LARGE", "empty"]

#: Size of a huge page; larger on few systems.
HUGE_PAGE: Final = 2 << 20
#: Bytes from which on numpy asks for huge pages.
LARGE: Final = 4 << 20
#: The least alignment of memory that XLA uses as it is, and torch's kernels are fast with.
_ALIGNMENT: Final = 64


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate an array: aligned to 64 bytes, a large one to a huge page.

    What lies before the first boundary is never touched, and takes no memory.  Without the boundary, the first touch
    of an array's beginning and end goes page by page: of 16 MiB it takes up to twice as long.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    alignment = _ALIGNMENT if nbytes < LARGE else HUGE_PAGE
    memory = np.empty(nbytes + alignment, np.uint8)
    start = -memory.__array_interface__["data"][0] % alignment
    return memory[start : start + nbytes].view(dtype).reshape(shape)
