"""What a process has in memory: after opening, after touching everything, after letting go; alone and as one of four.

Each step runs in fresh processes and is timed once; the numbers that matter are in ``extra_info``, in bytes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import mmgguf

from . import models
from .conftest import Files, Model
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
def test_one_process(benchmark: Any, large_model: Model, storage: str) -> None:
    benchmark.group = f"memory: {large_model.label}, one process"
    steps: dict[str, dict[str, int]] = {}

    def run() -> None:
        with Child() as child:
            for step in (("open", large_model.path, storage), ("touch",), ("release",), ("drop",), ("close",)):
                steps[step[0]] = _added(child.step(*step), child.memory)

    benchmark.pedantic(run, rounds=1)
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
    benchmark.extra_info.update(storage=storage, nbytes=nbytes, processes=1, steps=steps)


@pytest.mark.parametrize("storage", STORAGES)
def test_four_processes(benchmark: Any, large_model: Model, storage: str) -> None:
    """Four workers with the same weights: mapped they share one copy, read they have four."""
    benchmark.group = f"memory: {large_model.label}, four processes"
    found: list[dict[str, int]] = []

    def run() -> None:
        with ExitStack() as stack:
            children = [stack.enter_context(Child()) for _ in range(4)]
            for step in (("open", large_model.path, storage), ("touch",)):
                for child in children:
                    child.begin(*step)
                totals = {child.end()["total"] for child in children}
                assert len(totals) == 1
            # When all have touched everything, each one's share is a quarter.
            found.extend(_added(child.step("memory"), child.memory) for child in children)

    benchmark.pedantic(run, rounds=1)
    nbytes = _data(large_model)
    together = sum(one["share"] for one in found)
    if storage == "mmap":
        assert together < 1.5 * nbytes + (256 << 20)
    else:
        assert together > 3.5 * nbytes
    benchmark.extra_info.update(storage=storage, nbytes=nbytes, processes=4, together=together, each=found)


def test_huge_file(benchmark: Any, files: Files) -> None:
    """Opening and viewing a file much larger than memory costs nothing of it."""
    benchmark.group = "memory: sparse file of 40 GiB"
    path = sparse_file(files)
    steps: dict[str, dict[str, int]] = {}

    def run() -> None:
        with Child() as child:
            steps["open"] = _added(child.step("open", path, "mmap"), child.memory)

    benchmark.pedantic(run, rounds=1)
    assert steps["open"]["anonymous"] < 64 << 20
    with mmgguf.open(path) as file:
        assert file["hole.weight"].data.nbytes == files.sizes.hole
    benchmark.extra_info.update(nbytes=files.sizes.hole, steps=steps)


def sparse_file(files: Files) -> str:
    """A file of 40 GiB that takes a page on the disk."""

    def make(path: Path) -> None:
        try:
            models.sparse(path, files.sizes.hole)
        except OSError as error:  # FAT has neither holes nor files of that size
            pytest.skip(f"no sparse file of {files.sizes.hole >> 30} GiB here: {error.strerror}")

    return files.get("sparse.gguf", make)
