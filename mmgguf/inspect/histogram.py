"""Sums and a histogram of float32 numbers that are exact, and so the same in whatever order the numbers come.

A float32 is a sign, an exponent and 23 bits of mantissa.  Its upper eleven bits choose one of 2048 buckets, four to an
octave; what is left are 21 bits, a small integer.  A bucket counts its numbers and adds up these integers and their
squares, all in integer arithmetic, where nothing is rounded and the order is of no matter.  At the end every bucket's
sum is put together with the value of its lower edge, in Python's integers, and only the final quotient is rounded.

So the buckets' edges are fixed (they are powers of two and the quarters between them), tensors of any range share them,
and histograms of different tensors can be added and compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .kernels import BUCKETS, REST_BITS, extremes, scatter

__all__ = ["Accumulator", "Histogram", "bucket_edges"]

#: Buckets of one sign whose numbers are finite; the last four hold infinity and NaN.
FINITE: Final = 1020
#: Numbers that one table takes before it has to be emptied: squares of 21 bits fill a 63-bit sum after 2**21 of them.
TABLE_LIMIT: Final = 1 << 20
_INFINITE_BITS: Final = 0x7F800000


@cache
def bucket_edges() -> npt.NDArray[np.float64]:
    """The edges of a histogram's buckets, ascending from the least float32 to the greatest, shape (2041,).

    The bucket of a number is the one whose edge nearer to zero is the number's or the next below it in magnitude:
    ``[a, b)`` for positive numbers and ``(a, b]`` for negative ones.

    Examples
    --------
    >>> bucket_edges().shape, bool(np.all(np.diff(bucket_edges()) > 0))
    ((2041,), True)
    """
    ends = np.append(np.arange(FINITE, dtype=np.uint32) << REST_BITS, np.uint32(_INFINITE_BITS - 1))
    positive = ends.astype(np.uint32).view(np.float32).astype(np.float64)
    edges = np.concatenate([-positive[:0:-1], positive])
    edges.flags.writeable = False
    return edges


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How many numbers lie between fixed edges.

    Attributes
    ----------
    counts : ndarray of int64, shape (2040,)
        Numbers in each bucket; what is not finite is in none.
    """

    counts: npt.NDArray[np.int64]

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The buckets' edges, ascending, shape (2041,); see `bucket_edges`."""
        return bucket_edges()

    def span(self) -> slice:
        """The buckets from the first to the last that is not empty."""
        used = np.flatnonzero(self.counts)
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)

    def rebinned(self, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The numbers between other edges, a bucket's numbers taken as spread evenly over it.

        Parameters
        ----------
        edges : ndarray, shape (n + 1,)
            Ascending.

        Returns
        -------
        ndarray, shape (n,)
            Counts, with fractions where a bucket is cut.
        """
        total = np.concatenate([[0.0], np.cumsum(self.counts, dtype=np.float64)])
        return np.diff(np.interp(edges, self.edges, total))


class Accumulator:
    """Takes float32 numbers in any order and any pieces, and tells their moments.

    Accumulators of parts, filled by different threads, are added with `merge`.
    """

    def __init__(self) -> None:
        self.zeros = self.nan = self.infinite = 0
        #: As integers that are ordered as the numbers are.
        self.low, self.high = (1 << 31) - 1, -(1 << 31)
        # By bucket: how many, the sum of the rest of their bits, and of its squares.
        self._table = np.zeros((BUCKETS, 3), np.int64)
        self._pending = 0
        #: The same, of what was in full tables; nothing as long as there was none.
        self._sums: list[npt.NDArray[np.object_]] = []

    def __getstate__(self) -> tuple[Any, ...]:
        # Weights use a tenth of the buckets.
        used = np.flatnonzero(self._table[:, 0] + (self._sums[0].astype(np.int64) if self._sums else 0))
        counts = self.zeros, self.nan, self.infinite, self.low, self.high, self._pending
        return counts, used.astype(np.uint16), self._table[used], [part[used].tolist() for part in self._sums]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        counts, used, rows, sums = state
        self.zeros, self.nan, self.infinite, self.low, self.high, self._pending = counts
        self._table = np.zeros((BUCKETS, 3), np.int64)
        self._table[used] = rows
        self._sums = [np.zeros(BUCKETS, object) for _ in sums]
        for total, part in zip(self._sums, sums, strict=True):
            total[used] = part

    def add(self, values: npt.NDArray[np.float32]) -> int:
        """Take numbers of one dimension, contiguous.

        Returns
        -------
        int
            The bits of the greatest magnitude, without the sign; ``0x7f800000`` and more is not finite.
        """
        add, find_extremes = scatter(), extremes()
        greatest = 0
        for start in range(0, len(values), TABLE_LIMIT):
            bits = values[start : start + TABLE_LIMIT].view(np.uint32)
            if self._pending + len(bits) > TABLE_LIMIT:
                self._flush()
            add(bits, self._table)
            self._pending += len(bits)
            low, high, big, zeros = find_extremes(bits)
            self.zeros += int(zeros)
            greatest = max(greatest, int(big))
            if big >= _INFINITE_BITS:
                magnitude = bits & np.uint32(0x7FFFFFFF)
                self.infinite += int(np.count_nonzero(magnitude == _INFINITE_BITS))
                self.nan += int(np.count_nonzero(magnitude > _INFINITE_BITS))
                finite = bits[magnitude < _INFINITE_BITS]
                if not len(finite):
                    continue
                low, high, _, _ = find_extremes(finite)
            self.low, self.high = min(self.low, int(low)), max(self.high, int(high))
        return greatest

    def _flush(self) -> None:
        used = np.flatnonzero(self._table[:, 0])
        if not self._sums:
            self._sums = [np.zeros(BUCKETS, object) for _ in range(3)]
        for total, part in zip(self._sums, self._table.T, strict=True):
            total[used] += part[used].astype(object)
        self._table[used] = 0
        self._pending = 0

    def merge(self, other: Accumulator) -> None:
        """Add the numbers of another accumulator."""
        if self._pending + other._pending > TABLE_LIMIT:
            self._flush()
        self._table += other._table
        self._pending += other._pending
        if other._sums:
            self._flush()
            for total, part in zip(self._sums, other._sums, strict=True):
                total += part
        self.zeros += other.zeros
        self.nan += other.nan
        self.infinite += other.infinite
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def histogram(self) -> Histogram:
        """The histogram of the finite numbers so far."""
        self._flush()
        by_magnitude = self._sums[0].astype(np.int64).reshape(2, BUCKETS // 2)[:, :FINITE]
        return Histogram(np.concatenate([by_magnitude[1, ::-1], by_magnitude[0]]))

    def moments(self) -> dict[str, Any]:
        """Statistics of all numbers so far, by the names of `TensorStats`; of those not finite only counts."""
        histogram = self.histogram()
        counts, rests, squares = self._sums
        total = total_square = 0
        # In units of 2**-149 for numbers and of 2**-298 for squares: then all are integers.
        for bucket in np.flatnonzero(counts.astype(np.int64)).tolist():
            sign, magnitude = divmod(bucket, BUCKETS // 2)
            if magnitude >= FINITE:
                continue
            exponent, quarter = divmod(magnitude, 4)
            base = (quarter << REST_BITS) + ((1 << 23) if exponent else 0)
            shift = max(exponent, 1) - 1
            n, rest, square = int(counts[bucket]), int(rests[bucket]), int(squares[bucket])
            part = (n * base + rest) << shift
            total += -part if sign else part
            total_square += (n * base * base + 2 * base * rest + square) << 2 * shift
        finite = int(histogram.counts.sum())
        found: dict[str, Any] = dict.fromkeys(("min", "max", "mean", "std", "rms"), math.nan)
        if finite:
            found = {
                "min": _number(self.low),
                "max": _number(self.high),
                "mean": total / (finite << 149),  # of integers, rounded once
                "std": _sqrt(finite * total_square - total * total, finite * finite),
                "rms": _sqrt(total_square, finite),
            }
        count = finite + self.nan + self.infinite
        found |= {"count": count, "zeros": self.zeros, "nan": self.nan, "infinite": self.infinite}
        return found | {"histogram": histogram}


def _number(ordered: int) -> float:
    """The float32 of an integer that is ordered as the floats are."""
    bits = ordered if ordered >= 0 else ordered ^ 0x7FFFFFFF
    return float(np.array(bits & 0xFFFFFFFF, np.uint32).view(np.float32))


def _sqrt(numerator: int, denominator: int) -> float:
    """The root of ``numerator / denominator / 2**298``, of which 64 bits are exact before it is rounded."""
    if not numerator:
        return 0.0
    # An even scale that leaves an integer of some 128 bits.
    scale = 128 - numerator.bit_length() + denominator.bit_length()
    scale += scale % 2
    scaled = (numerator << scale) // denominator if scale >= 0 else numerator // (denominator << -scale)
    exponent = scale // 2 + 149
    root = math.isqrt(scaled)
    return root / (1 << exponent) if exponent >= 0 else float(root << -exponent)
