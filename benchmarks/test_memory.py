"""What a process has in memory: after opening, after touching everything, after letting go; alone and as one of four.

Each step runs in fresh processes; what is kept is in bytes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

import mmgguf

from . import models
from .conftest import Case
from .files import Files, Model, NotThere
from .process import Child, memory_usage

STORAGES = ["mmap", "read"]
KINDS = ("anonymous", "file", "share", "file_share")


@pytest.fixture(autouse=True)
def _needs_smaps() -> None:
    try:
        memory_usage()
    except OSError as error:
        pytest.skip(f"no /proc/self/smaps_rollup: {error.strerror}")


def _data(model: Model) -> int:
    with mmgguf.open(model.path) as file:
        return sum(tensor.nbytes for tensor in file.values())


def _added(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {kind: after[kind] - before[kind] for kind in KINDS}


@pytest.mark.parametrize("storage", STORAGES)
def test_one_process(case: Case, large_model: Model, storage: str) -> None:
    steps: dict[str, dict[str, int]] = {}
    with Child() as child:
        for step in (("open", large_model.path, storage), ("touch",), ("release",), ("drop",), ("close",)):
            steps[step[0]] = _added(child.step(*step), child.memory)
    nbytes = _data(large_model)
    touched = steps["touch"]
    if storage == "mmap":
        # Pages of the file: nothing of the process's own.  A file in the cache may be mapped in larger pieces.
        assert touched["file"] > 0.9 * nbytes
        assert touched["anonymous"] < 64 << 20
        assert steps["release"]["file"] < 0.2 * nbytes + (16 << 20)
    else:
        assert touched["anonymous"] > 0.9 * nbytes
    assert steps["close"]["anonymous"] + steps["close"]["file"] < 0.2 * nbytes + (96 << 20)
    case.keep(f"memory/{large_model.id}, one process", title=large_model.title, nbytes=nbytes, **{storage: steps})


@pytest.mark.parametrize("storage", STORAGES)
def test_four_processes(case: Case, large_model: Model, storage: str) -> None:
    """Four workers with the same weights: mapped they share one copy, read they have four."""
    with ExitStack() as stack:
        children = [stack.enter_context(Child()) for _ in range(4)]
        for step in (("open", large_model.path, storage), ("touch",)):
            for child in children:
                child.begin(*step)
            totals = {child.end()["total"] for child in children}
            assert len(totals) == 1
        # When all have touched everything, each one's share is a quarter.
        found = [_added(child.step("memory"), child.memory) for child in children]
    nbytes = _data(large_model)
    together = sum(one["share"] for one in found)
    if storage == "mmap":
        assert together < 1.5 * nbytes + (256 << 20)
    else:
        assert together > 3.5 * nbytes
    shares = [one["share"] for one in found]
    case.keep(f"memory/{large_model.id}, four processes", title=large_model.title, nbytes=nbytes, **{storage: shares})


def test_huge_file(case: Case, files: Files) -> None:
    """Opening and viewing a file much larger than memory costs nothing of it."""
    try:
        path = sparse_file(files)
    except NotThere as reason:
        pytest.skip(str(reason))
    with Child() as child:
        added = _added(child.step("open", path, "mmap"), child.memory)
    assert added["anonymous"] < 64 << 20
    with mmgguf.open(path) as file:
        assert file["hole.weight"].data.nbytes == files.sizes.hole
    case.keep("memory/huge file", nbytes=files.sizes.hole, anonymous=added["anonymous"])


def sparse_file(files: Files) -> str:
    """A file of 40 GiB that takes a page on the disk."""

    def make(path: Path) -> None:
        try:
            models.sparse(path, files.sizes.hole)
        except OSError as error:  # FAT has neither holes nor files of that size
            raise NotThere(f"no sparse file of {files.sizes.hole >> 30} GiB here: {error.strerror}") from error

    return files.get("sparse.gguf", make)
