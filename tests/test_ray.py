"""Files and tensors as arguments of Ray's tasks and actors: by reference, one mapped copy for all workers of a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf

from .support.readers import each_once, write_model
from .support.server import Server, files

# Ray is looked up only for these tests: it is half a gigabyte with pyarrow.
pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and files that it leaves to the collector, and options whose default will change.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::UserWarning"),
]
WORKERS = 4


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    # Workers import the package and these tests as this process does.
    folders = os.pathsep.join(str(Path(folder or ".").resolve()) for folder in sys.path)
    environment = {"PYTHONPATH": folders, "PYTHONWARNINGS": "ignore"}
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": environment},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf")


def total(tensor: mmgguf.Tensor) -> float:
    return float(np.asarray(tensor).sum(dtype=np.float64))


def totals(f: mmgguf.GGUFFile) -> dict[str, float]:
    return {name: total(tensor) for name, tensor in f.items()}


class Holder:
    """An actor that keeps a file or a tensor."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def totals(self) -> Any:
        return total(self.held) if isinstance(self.held, mmgguf.Tensor) else totals(self.held)

    def touch(self) -> int:
        """Read every page of the mapped file, and give the process's number."""
        assert isinstance(self.held, mmgguf.GGUFFile)
        for tensor in self.held.values():
            tensor.data.view(np.uint8).reshape(-1)[::512].sum()
        return os.getpid()

    def ask_for(self, rank: int) -> int:
        """Load a part of a remote file."""
        return sum(tensor.partition(rank, WORKERS).nbytes for tensor in self.held.values())


@pytest.mark.parametrize("storage", ["mmap", "read"])
def test_tasks_take_files_and_tensors(storage: Any, ray: Any, model: Path) -> None:
    with mmgguf.open(model, storage=storage) as f:
        expected = totals(f)
        of_tensors = [ray.remote(total).remote(tensor) for tensor in f.values()]
        assert dict(zip(f, ray.get(of_tensors), strict=True)) == expected
        assert ray.get(ray.remote(totals).remote(f)) == expected
        # A reference in Ray's store too, not the weights.
        again = ray.get(ray.put(f["blk.0.weight"]))
        assert isinstance(again, mmgguf.Tensor)
        assert ray.get(ray.remote(total).remote(ray.put(f["blk.0.weight"]))) == expected["blk.0.weight"]


def test_actors_take_files_and_tensors(ray: Any, model: Path) -> None:
    actor = ray.remote(num_cpus=0)(Holder)
    with mmgguf.open(model) as f:
        held = [actor.remote(f), actor.remote(f["blk.1.weight"])]
        assert ray.get([one.totals.remote() for one in held]) == [totals(f), total(f["blk.1.weight"])]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_actors_share_one_copy_of_the_mapped_pages(ray: Any, model: Path) -> None:
    actor = ray.remote(num_cpus=0)(Holder)
    with mmgguf.open(model) as f:
        held = [actor.remote(f) for _ in range(WORKERS)]
        processes = ray.get([one.touch.remote() for one in held])
        assert len({*processes, os.getpid()}) == WORKERS + 1
        memory = [mapped(process, model) for process in processes]
        size = sum(tensor.nbytes for tensor in f.values())
        whole = f.nbytes  # with the header, which opening reads through the mapping or not
    assert all(rss >= size for rss, _ in memory)
    # Together they have one copy.
    assert sum(pss for _, pss in memory) <= 1.02 * whole


def mapped(process: int, path: Path) -> tuple[int, int]:
    """Bytes of a file that are mapped into a process: all of them, and its share where several have them."""
    rss = pss = 0
    is_it = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            is_it = bool(rest) and line.endswith(str(path))
        elif is_it and first in ("Rss:", "Pss:"):
            rss += 1024 * int(rest[0]) * (first == "Rss:")
            pss += 1024 * int(rest[0]) * (first == "Pss:")
    return rss, pss


def test_a_task_whose_worker_dies_is_done_again(ray: Any, model: Path, tmp_path: Path) -> None:
    with mmgguf.open(model) as f:
        tensor = f["blk.0.weight"]
        marker = str(tmp_path / "died")
        assert ray.get(ray.remote(max_retries=2)(die_once).remote(tensor, marker)) == total(tensor)
    assert (tmp_path / "died").exists()


def die_once(tensor: mmgguf.Tensor, marker: str) -> float:
    half = total(tensor)
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), 9)
    except FileExistsError:
        pass
    return half


def test_a_changed_file_is_refused(ray: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "changed.gguf", rows=64)
    with mmgguf.open(path) as f:
        kept = ray.put(f["blk.0.weight"])
        os.utime(path, ns=(1, 1))
        with pytest.raises(Exception, match="is not the file that was sent"):
            ray.get(ray.remote(total).remote(kept))


def test_actors_ask_a_server_for_each_byte_once(ray: Any, model: Path) -> None:
    actor = ray.remote(num_cpus=0)(Holder)
    with Server(files({"/model.gguf": model.read_bytes()})) as server, mmgguf.open(server.url + "/model.gguf") as f:
        server.requests.clear()
        held = [actor.remote(f) for _ in range(WORKERS)]
        parts = ray.get([one.ask_for.remote(rank) for rank, one in enumerate(held)])
        assert sum(parts) == sum(tensor.nbytes for tensor in f.values())
        first = min(tensor.file_offset for tensor in f.values())
        headers = each_once(server, f.values())
        assert headers <= WORKERS * (first + mmgguf.storage.remote.FIRST_STEP)


def test_rows_of_metadata_and_statistics(ray: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    data = ray.data.from_items([str(model), str(tmp_path / "bad.gguf")]).flat_map(rows)
    found = sorted(data.take_all(), key=lambda row: (row["error"] is not None, row["tensor"] or ""))
    expected = mmgguf.inspect.stats(model)
    assert [row["tensor"] for row in found] == [*sorted(expected), None]
    assert all(row["rms"] == expected[row["tensor"]].rms for row in found[:-1])
    assert found[-1]["error"].startswith("TruncatedError: ")


def rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """As in the guide."""
    nothing = {"tensor": None, "type": None, "rms": None, "error": None}
    try:
        with mmgguf.open(row["item"]) as f:
            statistics = mmgguf.inspect.stats(f, threads=1)
            return [
                {**row, **nothing, "tensor": name, "type": one.type.name, "rms": one.rms}
                for name, one in statistics.items()
                if one is not None
            ]
    except (OSError, mmgguf.GGUFError) as error:
        return [{**row, **nothing, "error": f"{type(error).__name__}: {error}"}]
