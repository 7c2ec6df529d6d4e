"""Compare the numbers of two quantizations of one model."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..dequant.threads import spread
from ..errors import shown
from ..file import GGUFFile, Source, opened
from ..format.metadata import Metadata
from ..format.strings import StringArray
from ..selection import Names, Progress, select
from ..tensor import Tensor
from ..types import GGMLType
from .contents import Difference, compare_metadata
from .histogram import Accumulator
from .statistics import cores, numbers, parts

__all__ = [
    "PairSums",
    "TensorDistance",
    "TypeDistance",
    "ValueComparison",
    "assemble",
    "comparable",
    "compare_structure",
    "compare_values",
]

#: Keys whose arrays are a tokenizer's, element by element.
_TOKENIZER: Final = tuple(f"tokenizer.ggml.{what}" for what in ("tokens", "merges", "scores", "token_type"))
#: Differing elements that are told.
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """How far a tensor's numbers in one file lie from those in another.

    Attributes
    ----------
    name : str
        The tensor.
    a_type, b_type : GGMLType
        What it is stored as.
    count : int
        Pairs of numbers that are finite in both; `non_finite` are the others.
    rmse : float
        Root of the mean square of the differences.
    nmse : float
        Sum of the squares of the differences, by the sum of the squares in `a`; 0 for equal numbers, infinite if only
        `a` is zero throughout.
    max_error : float
        The greatest difference.
    cosine : float
        Cosine of the angle between the two as vectors; 1 for equal numbers, NaN if only one is zero throughout.
    kl : float
        Kullback–Leibler divergence of `b`'s histogram from `a`'s, in nats: of the buckets that either uses, with half a
        number added to each, so that empty ones count.
    non_finite : int
        Pairs with a NaN or an infinity.
    """

    name: str
    a_type: GGMLType
    b_type: GGMLType
    count: int
    rmse: float
    nmse: float
    max_error: float
    cosine: float
    kl: float
    non_finite: int


@dataclass(frozen=True, slots=True)
class TypeDistance:
    """The distance of all tensors with one pair of types, together.

    Attributes
    ----------
    a_type, b_type : GGMLType
        The pair.
    tensors, count : int
        How many tensors and pairs of numbers.
    rmse, nmse, max_error : float
        As in `TensorDistance`, over all their numbers.
    """

    a_type: GGMLType
    b_type: GGMLType
    tensors: int
    count: int
    rmse: float
    nmse: float
    max_error: float


@dataclass(frozen=True, slots=True)
class ValueComparison:
    """The differences of two models in their numbers and in their structure.

    Attributes
    ----------
    summary : str
        One sentence; printable.
    structure : list of Difference
        Metadata that differs, tensors that only one has, or with another shape; of tokenizers the first elements that
        differ.
    tensors : list of TensorDistance
        Those with equal shapes, in the order of `a`.
    types : list of TypeDistance
        By pair of types, the most numbers first.
    """

    summary: str
    structure: list[Difference] = field(repr=False)
    tensors: list[TensorDistance] = field(repr=False)
    types: list[TypeDistance] = field(repr=False)


def compare_values(
    a: Source,
    b: Source,
    *,
    names: Names = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> ValueComparison:
    """Compare the numbers of two models, such as two quantizations of one.

    Parameters
    ----------
    a, b : path-like or GGUFFile
        The models; errors are relative to `a`.
    names : str or iterable of str, optional
        Which tensors of `a`, by name or pattern.
    progress : callable, optional
        Called with the stored bytes of `a` that are done and those in all, by any thread, one at a time.
    threads : int, optional
        By default every available core.

    Returns
    -------
    ValueComparison
        The same numbers on however many threads.

    Raises
    ------
    NameNotFoundError
        A name that `a` does not have, or a pattern that fits none.
    GGUFError, OSError
        A file cannot be read, or changed meanwhile.

    Notes
    -----
    Numbers are compared as float32, and sums are taken in float64, piece by piece in a fixed order.  Memory does not
    grow with the models.

    Examples
    --------
    >>> doubled = {"output_norm.weight": np.full(256, 2, np.float32)}
    >>> mmgguf.write("doubled.gguf", {}, doubled)
    >>> compare_values("model.gguf", "doubled.gguf", names="output_norm.weight").summary
    'doubled.gguf is model.gguf in F32: 1 tensor differs, worst output_norm.weight NMSE 1'
    """
    with opened(a) as first, opened(b) as second:
        structure = compare_structure(first, second, names)
        jobs = [_Pair(first[n], second[n]) for n in select(first, names) if comparable(first, second, n)]
        total, done, lock = sum(job.tensor.nbytes for job in jobs), 0, threading.Lock()

        def work(part: tuple[Any, int, int]) -> None:
            nonlocal done
            job, start, stop = part
            nbytes = job.take(start, stop)
            if progress is not None:
                with lock:
                    done += nbytes
                    progress(done, total)

        spread(work, parts(jobs), min(threads or cores(), 64))
        return assemble(first.path, second.path, structure, [job.result() for job in jobs])


def comparable(a: GGUFFile, b: GGUFFile, name: str) -> bool:
    """Whether both files have a tensor's numbers, in one shape."""
    if name not in b:
        return False
    x, y = a[name], b[name]
    return x.shape == y.shape and isinstance(x.type, GGMLType) and isinstance(y.type, GGMLType)


@dataclass(slots=True)
class _Sums:
    """Over one part of a tensor, or several."""

    count: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    max_error: float = 0.0
    non_finite: int = 0

    def add(self, other: _Sums) -> None:
        self.count += other.count
        self.aa += other.aa
        self.bb += other.bb
        self.ab += other.ab
        self.dd += other.dd
        self.max_error = max(self.max_error, other.max_error)
        self.non_finite += other.non_finite


class _Pair:
    """One tensor in both files, of which threads take parts."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.tensor, self.other = a, b
        self.lock = threading.Lock()
        self.all = PairSums()

    def take(self, start: int, stop: int) -> int:
        part = PairSums()
        nbytes = part.take(self.tensor, self.other, start, stop)
        with self.lock:
            self.all.merge(part)
        return nbytes

    def result(self) -> tuple[TensorDistance, _Sums]:
        return self.all.result(self.tensor.name, GGMLType(self.tensor.type), GGMLType(self.other.type))


class PairSums:
    """What is known of a tensor's numbers in two files: of one range or of several, of one process or of several.

    Attributes
    ----------
    sums : dict
        By the first element of each range.
    histograms : tuple of Accumulator
        Of `a` and of `b`.
    """

    __slots__ = ("histograms", "sums")

    def __init__(self) -> None:
        self.sums: dict[int, _Sums] = {}
        self.histograms = Accumulator(), Accumulator()

    def take(self, a: Tensor, b: Tensor, start: int, stop: int) -> int:
        """Look at elements start to stop, at most `PART` of them, and give their stored bytes in `a`."""
        sums = self.sums[start] = _Sums()
        stored = 0
        pieces = []
        for tensor in (a, b):
            size = tensor.layout.block_size
            blocks = tensor.flat(start // size, stop // size)
            stored = stored or blocks.nbytes
            pieces.append(numbers(blocks, GGMLType(tensor.type), size))
        for x, y in zip(*pieces, strict=True):
            self.histograms[0].add(x)
            self.histograms[1].add(y)
            sums.add(_distance(x, y))
        return stored

    def merge(self, other: PairSums) -> None:
        """Add what is known of other ranges of the same tensor."""
        self.sums.update(other.sums)
        for mine, more in zip(self.histograms, other.histograms, strict=True):
            mine.merge(more)

    def total(self) -> _Sums:
        """Of all parts, in their order: the same whoever came first."""
        total = _Sums()
        for start in sorted(self.sums):
            total.add(self.sums[start])
        return total

    def result(self, name: str, a_type: GGMLType, b_type: GGMLType) -> tuple[TensorDistance, _Sums]:
        """The distance over all ranges, and the sums that it comes from."""
        sums = self.total()
        ours, theirs = (one.histogram().counts for one in self.histograms)
        distance = TensorDistance(
            name,
            a_type,
            b_type,
            sums.count,
            _rmse(sums),
            _nmse(sums),
            sums.max_error,
            _cosine(sums),
            _divergence(ours, theirs),
            sums.non_finite,
        )
        return distance, sums


def _distance(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> _Sums:
    a, b = x.astype(np.float64), y.astype(np.float64)
    non_finite = 0
    # A sum is not finite if one of its numbers is not; float32's own cannot overflow it.
    with np.errstate(invalid="ignore"):
        finite_sum = bool(np.isfinite(a.sum() + b.sum()))
    if not finite_sum:
        finite = np.isfinite(a) & np.isfinite(b)
        non_finite = len(a) - int(np.count_nonzero(finite))
        a, b = a[finite], b[finite]
    d = a - b
    error = max(-float(d.min()), float(d.max())) if len(d) else 0.0
    # Not `a @ b`: BLAS has threads of its own, and other sums with another number of them.
    aa, bb, ab, dd = (float(np.multiply(u, v).sum()) for u, v in ((a, a), (b, b), (a, b), (d, d)))
    return _Sums(len(a), aa, bb, ab, dd, error, non_finite)


def _rmse(sums: _Sums) -> float:
    return math.sqrt(sums.dd / sums.count) if sums.count else 0.0


def _nmse(sums: _Sums) -> float:
    if not sums.dd:
        return 0.0
    return sums.dd / sums.aa if sums.aa else math.inf


def _cosine(sums: _Sums) -> float:
    if not sums.dd:
        return 1.0
    norm = math.sqrt(sums.aa) * math.sqrt(sums.bb)
    return max(-1.0, min(1.0, sums.ab / norm)) if norm else math.nan


def _divergence(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    used = (a > 0) | (b > 0)
    if not used.any():
        return 0.0
    p, q = a[used] + 0.5, b[used] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return max(0.0, float((p * np.log(p / q)).sum()))


def assemble(
    a: str, b: str, structure: list[Difference], pairs: Sequence[tuple[TensorDistance, _Sums]]
) -> ValueComparison:
    """The comparison of two files, by their paths, from what is known of each tensor."""
    tensors = [distance for distance, _ in pairs]
    return ValueComparison(_summary(a, b, structure, tensors), structure, tensors, _by_type(pairs))


def _by_type(pairs: Sequence[tuple[TensorDistance, _Sums]]) -> list[TypeDistance]:
    totals: dict[tuple[GGMLType, GGMLType], tuple[int, _Sums]] = {}
    for distance, more in pairs:
        key = distance.a_type, distance.b_type
        count, sums = totals.get(key, (0, _Sums()))
        sums.add(more)
        totals[key] = count + 1, sums
    rows = [
        TypeDistance(*key, count, sums.count, _rmse(sums), _nmse(sums), sums.max_error)
        for key, (count, sums) in totals.items()
    ]
    return sorted(rows, key=lambda row: -row.count)


def _summary(a: str, b: str, structure: list[Difference], tensors: list[TensorDistance]) -> str:
    names = [shown(path.rpartition("/")[2]) for path in (a, b)]
    differ = [t for t in tensors if t.nmse or t.non_finite]
    weights: dict[GGMLType, int] = {}
    for t in tensors:
        weights[t.b_type] = weights.get(t.b_type, 0) + t.count
    what = max(weights, key=lambda type_: weights[type_]).name if weights else "no common tensors"
    others = sum(1 for d in structure if d.kind == "tensor")
    text = f"{names[1]} is {names[0]} in {what}" if weights else f"{names[0]} and {names[1]} have {what}"
    if not weights:
        return text
    if not differ:
        text += f": all {len(tensors)} tensors have equal numbers"
    else:
        worst = max(differ, key=lambda t: t.nmse)
        verb = "tensor differs" if len(differ) == 1 else "tensors differ"
        text += f": {len(differ)} {verb}, worst {shown(worst.name)} NMSE {worst.nmse:.3g}"
    return f"{text}; {others} tensors of only one or of another shape" if others else text


def compare_structure(a: GGUFFile, b: GGUFFile, names: Names) -> list[Difference]:
    """What differs in the metadata and in the forms of the tensors: all that headers tell."""
    found: list[Difference] = []
    for difference in compare_metadata(a, b):
        if difference.change == "changed" and difference.name in _TOKENIZER:
            found.append(_tokens(a.metadata, b.metadata, difference))
        else:
            found.append(difference)
    chosen = set(select(a, names))
    for name in a:
        if name not in chosen:
            continue
        if name not in b:
            found.append(Difference("tensor", "removed", name, _form(a[name])))
        elif a[name].shape != b[name].shape:
            found.append(Difference("tensor", "changed", name, f"{_form(a[name])} → {_form(b[name])}"))
        elif not comparable(a, b, name):
            found.append(Difference("tensor", "unknown", name, "of an unknown ggml type, not compared"))
    if names is None:
        found += [Difference("tensor", "added", name, _form(b[name])) for name in b if name not in a]
    return found


def _form(tensor: Tensor) -> str:
    type_name = tensor.type.name if isinstance(tensor.type, GGMLType) else f"unknown type {int(tensor.type)}"
    return f"{type_name} {tensor.shape}"


def _tokens(a: Metadata, b: Metadata, difference: Difference) -> Difference:
    """A tokenizer's arrays element by element: how many differ, and the first of them."""
    key = difference.name
    ours, theirs = a[key], b[key]
    if type(ours) is not type(theirs):
        return difference
    count = 0
    first: list[str] = []
    for i, x, y in _unequal(ours, theirs):
        count += 1
        if len(first) < _SHOWN:
            first.append(f"{i}: {_item(x)} → {_item(y)}")
    sizes = "" if len(ours) == len(theirs) else f"{len(ours)} → {len(theirs)} elements, "
    more = ", …" if count > len(first) else ""
    return Difference("metadata", "changed", key, f"{sizes}{count} differ: {', '.join(first)}{more}")


def _unequal(a: Any, b: Any) -> Iterator[tuple[int, Any, Any]]:
    if not isinstance(a, StringArray):
        a, b = a.tolist(), b.tolist()
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y and not (x != x and y != y):
            yield i, x, y
    shorter = min(len(a), len(b))
    for i in range(shorter, max(len(a), len(b))):
        yield i, a[i] if i < len(a) else None, b[i] if i < len(b) else None


def _item(value: Any) -> str:
    return "nothing" if value is None else shown(value, quoted=True) if isinstance(value, str) else str(value)
