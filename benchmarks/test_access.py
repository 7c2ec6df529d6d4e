"""From a file to the bytes of tensors: mapped, read without a buffer, read with one.  The page cache is warm.

`test_cold` does the same with a cold one. Every way gives the same bytes, shown by a sum. The file is open before the
clock starts, so that headers do not count; `test_open` measures those. *handed out*: the array exists, nothing was
touched. *first touch*: a byte of every page is read, in a mapping (or in memory) that is new. *second touch*: the
same once more; for ways that read, which keep nothing, that is the second reading. *every byte*: all of them go
through the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import mmgguf
from mmgguf.bench import measure
from mmgguf.bench.peers import Unavailable
from mmgguf.bench.ways import WAYS, Way, byte_sum, page_sum

from .conftest import Case
from .files import Files, Model
from .turns import Contestant

Total = Callable[[Any], int]


class Work:
    """What is fetched: from an open handle to a number that shows that the right bytes came."""

    def __init__(self, model: Model) -> None:
        self.model = model
        with mmgguf.open(model.path) as file:
            largest = max(file.values(), key=lambda tensor: tensor.nbytes)
            self.names = list(file)
            self.largest = largest.name
            self.row = largest.nbytes // largest.info.row_size // 2
            self.nbytes = {
                "one row": largest.info.row_size,
                "one tensor": largest.nbytes,
                "all tensors": sum(tensor.nbytes for tensor in file.values()),
            }

    def fetch(self, pattern: str, way: Way, handle: Any, total: Total) -> int:
        if pattern == "one row":
            return total(way.row(handle, self.largest, self.row))
        if pattern == "one tensor":
            return total(way.tensor(handle, self.largest))
        # Held until all are there, as when loading weights: memory that is freed and used again is not fresh.
        arrays = [way.tensor(handle, name) for name in self.names]
        return sum(total(array) for array in arrays) & 0xFFFFFFFFFFFFFFFF

    def expected(self, pattern: str, total: Total) -> int:
        with mmgguf.open(self.model.path, storage="read") as file:
            return self.fetch(pattern, WAYS["mmgguf, storage=read"], file, total)


@pytest.fixture(scope="module")
def work(large_model: Model) -> Work:
    return Work(large_model)


class Handles:
    """Open files of the ways, and what closes them."""

    def __init__(self, way: Way, path: str) -> None:
        self.way, self.path = way, path
        self.open: list[Any] = []

    def close(self, _: Any = None) -> None:
        while self.open:
            self.way.close(self.open.pop())

    def fresh(self, before: Callable[[str], Any] | None = None) -> None:
        self.close()  # a mapping that still lives keeps its pages in the cache
        if before is not None:
            before(self.path)
        self.open.append(self.way.open(self.path))


def measure_ways(
    case: Case,
    files: Files,
    work: Work,
    pattern: str,
    touch: str,
    cache: str,
    seconds: float = 0.3,
) -> None:
    total = byte_sum if touch == "every byte" else page_sum
    expected = work.expected(pattern, total)
    opened: list[Handles] = []

    def make(way: Way) -> Contestant:
        path = files.in_format(work.model.path, way.format)
        measure.warm_up(path)
        handles = Handles(way, path)
        handles.fresh()
        opened.append(handles)
        run = lambda: work.fetch(pattern, way, handles.open[0], total)  # noqa: E731
        if touch == "second touch":
            run()
            return Contestant(run)
        handles.close()
        return Contestant(run, partial(handles.fresh, measure.evict if cache == "cold" else None), handles.close)

    def check(_: str, result: int) -> None:
        assert result == expected

    try:
        case.time(
            f"access/{work.model.id}, {pattern}, {touch}, {cache}",
            {name: partial(_available, make, way) for name, way in WAYS.items()},
            seconds=seconds,
            check=check,
            nbytes=work.nbytes[pattern],
            tensors=len(work.names),
            title=work.model.title,
        )
    finally:
        for handles in opened:
            handles.close()


def _available(make: Callable[[Way], Contestant], way: Way) -> Contestant:
    try:
        return make(way)
    except ImportError as error:
        raise Unavailable(f"not installed: {error.name}") from error


def test_handed_out(case: Case, files: Files, work: Work) -> None:
    opened: list[Handles] = []

    def make(way: Way) -> Contestant:
        handles = Handles(way, files.in_format(work.model.path, way.format))
        handles.fresh()
        opened.append(handles)
        return Contestant(lambda: [way.tensor(handles.open[0], name) for name in work.names])

    def check(_: str, arrays: list[Any]) -> None:
        assert sum(array.nbytes for array in arrays) == work.nbytes["all tensors"]

    try:
        case.time(
            f"access/{work.model.id}, all tensors, handed out, warm",
            {name: partial(_available, make, way) for name, way in WAYS.items()},
            check=check,
            nbytes=work.nbytes["all tensors"],
            tensors=len(work.names),
            title=work.model.title,
        )
    finally:
        for handles in opened:
            handles.close()


WARM = [
    ("one row", "first touch"),
    ("one tensor", "first touch"),
    ("one tensor", "every byte"),
    ("all tensors", "first touch"),
    ("all tensors", "second touch"),
    ("all tensors", "every byte"),
]


@pytest.mark.parametrize(("pattern", "touch"), WARM, ids=[", ".join(one) for one in WARM])
def test_warm(case: Case, files: Files, work: Work, pattern: str, touch: str) -> None:
    measure_ways(case, files, work, pattern, touch, "warm")
