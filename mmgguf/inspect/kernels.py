"""The inner loops of the statistics: compiled where numba is installed, numpy's otherwise.

Both give the same integers.  The environment variable ``MMGGUF_BACKEND`` decides here as it does for `dequantize`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..dequant import get_backend

__all__ = ["BUCKETS", "REST_BITS", "extremes", "scatter"]

#: Buckets by the upper bits of a float32: 1024 of either sign, the positive ones first.
BUCKETS: Final = 2048
#: Bits of a float32 below those that choose the bucket.
REST_BITS: Final = 21
_REST: Final = (1 << REST_BITS) - 1


def scatter() -> Any:
    """``(bits, table)``: add float32 numbers, as uint32, to a table of shape (2048, 3)."""
    return _compiled()[0] if get_backend() == "numba" else scatter_numpy


def extremes() -> Any:
    """``(bits)``: see `extremes_numpy`."""
    return _compiled()[1] if get_backend() == "numba" else extremes_numpy


@cache
def _compiled() -> tuple[Any, Any]:
    from . import compiled

    return compiled.scatter, compiled.extremes


def scatter_numpy(bits: npt.NDArray[np.uint32], table: npt.NDArray[np.int64]) -> None:
    """Add numbers to a table: the way without numba."""
    bucket = (bits >> np.uint32(REST_BITS)).astype(np.intp)
    rest = (bits & np.uint32(_REST)).astype(np.float64)
    table[:, 0] += np.bincount(bucket, minlength=BUCKETS)
    # Sums of 21-bit integers, and of products of their halves, stay far below 2**53: as floats they are exact.
    table[:, 1] += np.bincount(bucket, rest, BUCKETS).astype(np.int64)
    high, low = np.divmod(rest, 2048.0)
    table[:, 2] += np.bincount(bucket, high * high, BUCKETS).astype(np.int64) << 22
    table[:, 2] += np.bincount(bucket, high * low, BUCKETS).astype(np.int64) << 12
    table[:, 2] += np.bincount(bucket, low * low, BUCKETS).astype(np.int64)


def extremes_numpy(bits: npt.NDArray[np.uint32]) -> tuple[Any, Any, Any, Any]:
    """Least and greatest number as ordered integers, the greatest magnitude's bits, and the number of zeros."""
    signed = bits.view(np.int32)
    magnitude = signed & np.int32(0x7FFFFFFF)
    ordered = signed ^ ((signed >> 31) & np.int32(0x7FFFFFFF))
    return ordered.min(), ordered.max(), magnitude.max(), np.count_nonzero(magnitude == 0)
