"""Statistics of weights: streamed, on several threads, exact."""

from __future__ import annotations

import heapq
import math
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..dequant import dequantize
from ..dequant.threads import spread
from ..file import Source, opened
from ..selection import Names, Progress, select
from ..tensor import Tensor
from ..types import GGMLType
from .histogram import Accumulator, Histogram

__all__ = ["PART", "Outlier", "TensorStats", "TensorSums", "cores", "numbers", "parts", "stats"]

#: Elements that are dequantized together: their numbers fit a core's second-level cache.
CHUNK: Final = 1 << 16
#: Elements that a thread takes at a time.
PART: Final = 1 << 20
#: Outliers that are told.
OUTLIERS: Final = 8
_FLOAT32: Final = np.dtype(np.float32)
#: Elements whose greatest magnitude is found together.
_ROW: Final = 256
_INFINITE_BITS: Final = 0x7F800000
#: Wider than float32.
_WIDE: Final = frozenset({GGMLType.F64, GGMLType.I32, GGMLType.I64})


@dataclass(frozen=True, slots=True, order=True)
class Outlier:
    """A number far from zero.

    Attributes
    ----------
    value : float
        The number; never NaN.
    index : tuple of int
        Where it is, in the tensor's logical shape.
    """

    value: float
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of a tensor's numbers.

    Attributes
    ----------
    name : str
        The tensor.
    type : GGMLType
        What it is stored as.
    count : int
        Numbers in all.
    zeros, nan, infinite : int
        How many are zero, NaN, and infinite.
    min, max, mean, std, rms : float
        Of the finite numbers; NaN if there are none.  `mean` is the exact mean of the float32 numbers, rounded once to
        float64, and `std` (of the population) and `rms` are the roots of exact numbers: the same bits in whatever
        order and on however many threads.
    outliers : tuple of Outlier
        The eight of greatest magnitude, largest first, of equal ones the first; infinities among them.
    histogram : Histogram
        Of the finite numbers, with edges that all tensors share.
    """

    name: str
    type: GGMLType
    count: int
    zeros: int
    nan: int
    infinite: int
    min: float
    max: float
    mean: float
    std: float
    rms: float
    outliers: tuple[Outlier, ...]
    histogram: Histogram = field(repr=False, compare=False)

    @property
    def zero_share(self) -> float:
        """Share of numbers that are zero; 0 for an empty tensor."""
        return self.zeros / self.count if self.count else 0.0

    @property
    def non_finite_share(self) -> float:
        """Share of numbers that are NaN or infinite; 0 for an empty tensor."""
        return (self.nan + self.infinite) / self.count if self.count else 0.0


def stats(
    source: Source,
    *,
    names: Names = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, TensorStats | None]:
    """Statistics of tensors' numbers, as float32.

    Parameters
    ----------
    source : path-like or GGUFFile
        The model.
    names : str or iterable of str, optional
        Which tensors, by name or pattern; all by default.
    progress : callable, optional
        Called with the stored bytes done and those in all, by any thread, one at a time.
    threads : int, optional
        By default every available core.

    Returns
    -------
    dict of str to TensorStats
        In the file's order; None for a tensor of an unknown ggml type.

    Raises
    ------
    NameNotFoundError
        A name that the file does not have, or a pattern that fits none.
    GGUFError, OSError
        The file cannot be read, or changed meanwhile.

    Notes
    -----
    Memory does not grow with the model.  F64, I32 and I64 are rounded to float32 first.

    Examples
    --------
    >>> stats("model.gguf", names="*norm*")["output_norm.weight"].rms
    1.0
    """
    with opened(source) as f:
        tensors = [f[name] for name in select(f, names)]
        jobs = {t.name: _Job(t) for t in tensors if isinstance(t.type, GGMLType)}
        total = sum(job.tensor.nbytes for job in jobs.values())
        count = min(threads or cores(), 64)
        state = _State(total, progress)
        state.tell(0)
        spread(lambda part: state.tell(part[0].take(part[1], part[2])), parts(list(jobs.values())), count)
        return {t.name: jobs[t.name].result() if t.name in jobs else None for t in tensors}


class _State:
    """Progress of all threads together."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, 0, progress
        self.lock = threading.Lock()

    def tell(self, nbytes: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.done += nbytes
                self.progress(self.done, self.total)


class _Job:
    """One tensor, of which threads take parts."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.lock = threading.Lock()
        self.all = TensorSums()

    def take(self, start: int, stop: int) -> int:
        """Look at elements start to stop, and give their stored bytes."""
        with self.lock:
            part = TensorSums(self.all.heap)  # what is below these outliers need not be looked at
        nbytes = part.take(self.tensor, start, stop)
        with self.lock:
            self.all.merge(part)
        return nbytes

    def result(self) -> TensorStats:
        tensor = self.tensor
        return self.all.result(tensor.name, GGMLType(tensor.type), tensor.shape)


class TensorSums:
    """What is known of a tensor's numbers: of one range or of several, of one process or of several.

    Parameters
    ----------
    heap : iterable of tuple, optional
        Outliers that are known already.
    """

    __slots__ = ("heap", "sums")

    def __init__(self, heap: Iterable[tuple[float, int, float]] = ()) -> None:
        self.sums = Accumulator()
        #: (magnitude, -index, value): of the least magnitude first, and of equal ones the last.
        self.heap = list(heap)

    def take(self, tensor: Tensor, start: int, stop: int) -> int:
        """Look at elements start to stop, and give their stored bytes."""
        layout = tensor.layout
        stored = tensor.flat(start // layout.block_size, stop // layout.block_size)
        sums, heap, position = self.sums, self.heap, start
        for values in numbers(stored, GGMLType(tensor.type), layout.block_size):
            greatest = sums.add(values)
            if len(heap) < OUTLIERS or greatest > _INFINITE_BITS or (_number(greatest), -position) > heap[0][:2]:
                _keep(heap, values, position)
            position += len(values)
        return stored.nbytes

    def merge(self, other: TensorSums) -> None:
        """Add what is known of other ranges of the same tensor."""
        self.sums.merge(other.sums)
        self.heap = heapq.nsmallest(OUTLIERS, {*self.heap, *other.heap}, key=_order)
        self.heap.reverse()  # a heap: the least comes first

    def result(self, name: str, type_: GGMLType, shape: tuple[int, ...]) -> TensorStats:
        """The statistics of all ranges."""
        outliers = tuple(
            Outlier(value, tuple(int(i) for i in np.unravel_index(-index, shape)) if shape else ())
            for _, index, value in sorted(self.heap, reverse=True)
        )
        return TensorStats(name=name, type=type_, outliers=outliers, **self.sums.moments())


class _Work(Protocol):
    tensor: Tensor


_W = TypeVar("_W", bound=_Work)


def parts(jobs: list[_W]) -> Iterator[tuple[_W, int, int]]:
    """Ranges of elements of all tensors, for threads to take."""
    for job in jobs:
        for start in range(0, job.tensor.size, PART):
            yield job, start, min(start + PART, job.tensor.size)


def numbers(stored: npt.NDArray[Any], type_: GGMLType, block_size: int) -> Iterator[npt.NDArray[np.float32]]:
    """The numbers as float32, in pieces; a piece is overwritten by the next one."""
    step = CHUNK // block_size
    buffer: npt.NDArray[np.float32] | None = None
    for start in range(0, len(stored), step):
        piece = stored[start : start + step]
        if piece.dtype == _FLOAT32:
            yield np.ascontiguousarray(piece)
            continue
        if buffer is None:
            buffer = np.empty(min(step, len(stored)) * block_size, np.float32)
        out = buffer[: len(piece) * block_size]
        if type_ in _WIDE or piece.dtype.kind in "iu":
            with np.errstate(over="ignore"):
                out[:] = piece
        else:
            dequantize(piece, type_, out=out, threads=1)
        yield out


def _keep(heap: list[tuple[float, int, float]], values: npt.NDArray[np.float32], position: int) -> None:
    """Put the greatest magnitudes of a piece on the heap."""
    # As integers magnitudes have the same order, and NaN comes behind infinity.
    magnitude = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if magnitude.max() > _INFINITE_BITS:
        magnitude[magnitude > _INFINITE_BITS] = 0
    bound = 0
    if len(heap) == OUTLIERS:
        least, other, _ = heap[0]
        # Of equal ones the first counts, and parts come in any order.
        bound = int(np.float32(least).view(np.uint32)) + (-position <= other)
    rows = len(magnitude) // _ROW
    if rows > OUTLIERS:
        # The greatest of each row: the eighth of them is no greater than the eighth of all.
        greatest = np.sort(magnitude[: rows * _ROW].reshape(rows, _ROW).max(axis=1))
        bound = max(bound, int(greatest[-OUTLIERS]))
    candidates = np.flatnonzero(magnitude >= np.uint32(bound))
    if len(candidates) > OUTLIERS:
        candidates = candidates[np.argsort(~magnitude[candidates], kind="stable")[:OUTLIERS]]
    for i in candidates.tolist():
        value = float(values[i])
        if math.isnan(value):
            continue
        item = (abs(value), -(position + i), value)
        if len(heap) < OUTLIERS:
            heapq.heappush(heap, item)
        elif item > heap[0]:
            heapq.heapreplace(heap, item)


def _order(item: tuple[float, int, float]) -> tuple[float, int]:
    return -item[0], -item[1]


def _number(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
