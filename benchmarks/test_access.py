"""From a file to the bytes of tensors: mapped, read without a buffer, read with one; cache warm and cold.

Every way gives the same bytes, shown by a sum.  The file is open before the clock starts, so that headers do not count;
`test_peers` measures those.  *handed out*: the array exists, nothing was touched.  *first touch*: a byte of
every page is read, in a mapping (or in memory) that is new.  *second touch*: the same once more; for ways that read,
which keep nothing, that is the second reading.  *every byte*: all of them go through the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import mmgguf
from mmgguf.bench import measure
from mmgguf.bench.peers import Unavailable
from mmgguf.bench.ways import WAYS, Way, byte_sum, page_sum

from .conftest import Files, Model, Timed


@dataclass(frozen=True)
class Work:
    """What is fetched: from an open handle to a number that shows that the right bytes came."""

    model: Model
    names: list[str]
    largest: str
    row: int

    def all_tensors(self, way: Way, handle: Any, total: Callable[[Any], int]) -> int:
        # Held until all are there, as when loading weights: memory that is freed and used again is not fresh.
        arrays = [way.tensor(handle, name) for name in self.names]
        return sum(total(array) for array in arrays) & 0xFFFFFFFFFFFFFFFF

    def one_tensor(self, way: Way, handle: Any, total: Callable[[Any], int]) -> int:
        return total(way.tensor(handle, self.largest))

    def one_row(self, way: Way, handle: Any, total: Callable[[Any], int]) -> int:
        return total(way.row(handle, self.largest, self.row))


@pytest.fixture(scope="module")
def work(large_model: Model) -> Work:
    with mmgguf.open(large_model.path) as file:
        largest = max(file.values(), key=lambda tensor: tensor.nbytes)
        rows = largest.nbytes // largest.info.row_size
        return Work(large_model, list(file), largest.name, rows // 2)


PATTERNS: dict[str, Callable[[Work, Way, Any, Callable[[Any], int]], int]] = {
    "one row": Work.one_row,
    "one tensor": Work.one_tensor,
    "all tensors": Work.all_tensors,
}


@contextmanager
def _opened(way: Way, path: str) -> Iterator[Any]:
    try:
        handle = way.open(path)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        yield handle
    finally:
        way.close(handle)


@pytest.fixture
def path(work: Work, files: Files, request: pytest.FixtureRequest) -> str:
    """The work's file in the format of the way."""
    try:
        return files.in_format(work.model.path, WAYS[request.getfixturevalue("way")].format)
    except Unavailable as reason:
        pytest.skip(str(reason))


def _expected(work: Work, pattern: str, total: Callable[[Any], int]) -> int:
    with mmgguf.open(work.model.path, storage="read") as file:
        return PATTERNS[pattern](work, WAYS["mmgguf, storage=read"], file, total)


def _describe(benchmark: Any, work: Work, pattern: str, touch: str, cache: str, way: str) -> None:
    benchmark.group = f"access: {work.model.label}, {pattern}, {touch}, {cache}"
    with mmgguf.open(work.model.path) as file:
        largest = file[work.largest]
        nbytes = {
            "one row": largest.info.row_size,
            "one tensor": largest.nbytes,
            "all tensors": sum(tensor.nbytes for tensor in file.values()),
        }[pattern]
    benchmark.extra_info.update(
        way=way, kind=WAYS[way].kind, pattern=pattern, touch=touch, cache=cache, nbytes=nbytes, tensors=len(work.names)
    )


@pytest.mark.parametrize("pattern", ["one tensor", "all tensors"])
@pytest.mark.parametrize("way", WAYS)
def test_handed_out(benchmark: Any, timed: Timed, work: Work, path: str, way: str, pattern: str) -> None:
    _describe(benchmark, work, pattern, "handed out", "warm", way)
    with _opened(WAYS[way], path) as handle:
        total = PATTERNS[pattern](work, WAYS[way], handle, page_sum)
        assert total == _expected(work, pattern, page_sum)
        names = work.names if pattern == "all tensors" else [work.largest]
        get = WAYS[way].tensor

        def run() -> list[Any]:
            return [get(handle, name) for name in names]

        arrays = timed(run)
        assert [array.nbytes for array in arrays] == [get(handle, name).nbytes for name in names]


@pytest.mark.parametrize("touch", ["first touch", "second touch", "every byte"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
def test_warm(benchmark: Any, timed: Timed, work: Work, path: str, way: str, pattern: str, touch: str) -> None:
    if pattern == "one row" and touch == "every byte":
        pytest.skip("a row is too short to tell apart from the other touches")
    _describe(benchmark, work, pattern, touch, "warm", way)
    total = byte_sum if touch == "every byte" else page_sum
    expected = _expected(work, pattern, total)
    measure.warm_up(path)
    chosen, fetch = WAYS[way], PATTERNS[pattern]
    if touch == "second touch":
        with _opened(chosen, path) as handle:
            fetch(work, chosen, handle, total)
            assert timed(lambda: fetch(work, chosen, handle, total)) == expected
        return
    assert _fresh(timed, chosen, path, lambda handle: fetch(work, chosen, handle, total), lambda: None) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
def test_cold(
    benchmark: Any, timed: Timed, work: Work, path: str, way: str, pattern: str, why_not_cold: str | None
) -> None:
    if why_not_cold is not None:
        pytest.skip(f"no cold cache here: {why_not_cold}")
    _describe(benchmark, work, pattern, "first touch", "cold", way)
    chosen, fetch = WAYS[way], PATTERNS[pattern]
    expected = _expected(work, pattern, page_sum)
    total = _fresh(
        timed, chosen, path, lambda handle: fetch(work, chosen, handle, page_sum), lambda: measure.evict(path)
    )
    assert total == expected


def _fresh(timed: Timed, way: Way, path: str, run: Callable[[Any], int], before: Callable[[], None]) -> int:
    """Time `run` on a handle that is new in every round, opened before the clock starts."""
    handles: list[Any] = []

    def drop() -> None:
        while handles:
            way.close(handles.pop())

    def prepare() -> tuple[()]:
        drop()  # a mapping that still lives keeps its pages in the cache
        before()
        try:
            handles.append(way.open(path))
        except Unavailable as reason:
            pytest.skip(str(reason))
        return ()

    try:
        result: int = timed(lambda: run(handles[0]), prepare, max_rounds=50)
    finally:
        drop()
    return result
