"""mmgguf.dask on a cluster of processes: each worker reads its part only, and what a dead one did is done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf

from .support.readers import bytes_of, each_once, tag_requests, write_model
from .support.server import Server, files

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
pytest.importorskip("dask.array", reason="dask is not installed")

import dask  # noqa: E402
import dask.array as da  # noqa: E402

from mmgguf.dask import compare_values, from_gguf, map_files, stats  # noqa: E402

pytestmark = pytest.mark.slow
WORKERS = 4


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    options: dict[str, Any] = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(host="127.0.0.1", memory_limit=0, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf")


def test_numbers_of_a_local_file(client: Any, model: Path) -> None:
    expected = mmgguf.load_file(model)
    (found,) = dask.compute(from_gguf(model, chunks="1 MiB"))
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}
    with mmgguf.open(model) as f:
        array = da.from_array(f["blk.0.weight"], chunks=(128, -1))
        assert array.compute().tobytes() == expected["blk.0.weight"].tobytes()


def test_statistics_and_a_comparison(client: Any, model: Path, tmp_path: Path) -> None:
    (found,) = dask.compute(stats(model, chunks="1 B"))
    assert repr(found) == repr(mmgguf.inspect.stats(model))
    other = write_model(tmp_path / "other.gguf", seed=1)
    assert repr(compare_values(model, other, chunks="1 B").compute()) == repr(
        mmgguf.inspect.compare_values(model, other)
    )


@pytest.mark.parametrize("what", ["arrays", "statistics"])
def test_each_worker_asks_a_server_for_its_part_only(what: str, client: Any, model: Path) -> None:
    """Of what the server was asked for, byte by byte and worker by worker, beside what each worker computed."""
    client.run(tag_requests)
    with Server(files({"/model.gguf": model.read_bytes()})) as server, mmgguf.open(server.url + "/model.gguf") as f:
        if what == "arrays":
            arrays = from_gguf(f, chunks="256 KiB")
            tasks = {key: stored_nbytes(f[name], chunks) for name, a in arrays.items() for key, chunks in shapes(a)}
            collections: Any = list(arrays.values())
        else:
            collections = [d for d in stats(f, chunks="1 B", names="*.weight").values() if d is not None]
            tasks = {}
        server.requests.clear()
        kept = client.persist(collections)
        distributed.wait(kept)
        names = list(f) if what == "arrays" else [name for name in f if name.endswith(".weight")]
        headers = each_once(server, [f[name] for name in names])
        assert headers <= WORKERS * mmgguf.storage.remote.PROBE
        if tasks:
            places = client.who_has(futures_of(client, tasks))
            parts: dict[str, int] = {}
            for key, workers in places.items():
                parts[workers[0]] = parts.get(workers[0], 0) + tasks[key]
            assert len(parts) == WORKERS
            asked = bytes_of(server, header=mmgguf.storage.remote.PROBE)
            tags = client.run(os.getpid)
            for worker, part in parts.items():
                assert asked[str(tags[worker])] <= 1.05 * part
        if what == "statistics":
            expected = mmgguf.inspect.stats(model, names="*.weight")
            assert repr(client.gather(client.compute(kept))) == repr(list(expected.values()))


def shapes(array: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Keys of an array's chunks, and the shapes of these."""
    for index in np.ndindex(*array.numblocks):
        yield (array.name, *index), tuple(sizes[i] for sizes, i in zip(array.chunks, index, strict=True))


def stored_nbytes(tensor: mmgguf.Tensor, shape: tuple[int, ...]) -> int:
    return tensor.nbytes * int(np.prod(shape)) // tensor.size


def futures_of(client: Any, keys: Any) -> list[Any]:
    return [distributed.Future(key, client) for key in keys]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_workers_read_no_more_of_a_cold_file_than_they_compute(client: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "cold.gguf")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with mmgguf.open(path) as f:
        tensor = f["blk.0.weight"]
        array = from_gguf(f, names=tensor.name, chunks=tensor.shape[0] // 16)[tensor.name]
        f.release()  # what the kernel read ahead behind the header when this process read that
        before = f.resident()
        if before > f.nbytes // 20:
            pytest.skip("this file system keeps its pages")
        # Every fourth chunk, so that a read-ahead would show.
        dask.compute([array.blocks[i].sum() for i in range(0, 16, 4)])
        part = tensor.nbytes // 4
        after = f.resident()  # of what was there before, some may belong to the first chunk
        assert part <= after <= before + 1.05 * part


@pytest.mark.parametrize("what", ["arrays", "statistics"])
def test_what_a_dead_worker_did_is_done_again(what: str, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(host="127.0.0.1", **options) as cluster, distributed.Client(cluster) as client:
        if what == "arrays":
            array = from_gguf(model, names="blk.0.weight", chunks=64)["blk.0.weight"]
            dying = array.map_blocks(die_once, str(tmp_path / "died"), os.getpid(), meta=array._meta)
            assert dying.compute().tobytes() == mmgguf.load_file(model)["blk.0.weight"].tobytes()
            assert (tmp_path / "died").exists()
        else:
            kept = client.persist([slowly(d) for d in stats(model, chunks="1 B").values() if d is not None])
            next(iter(cluster.workers.values())).process.process.kill()
            assert repr(client.gather(client.compute(kept))) == repr(list(mmgguf.inspect.stats(model).values()))


def die_once(block: Any, marker: str, parent: int) -> Any:
    assert os.getpid() != parent
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), 9)
    except FileExistsError:
        pass
    return block


@dask.delayed
def slowly(value: Any) -> Any:
    time.sleep(0.05)
    return value


def test_an_audit_of_a_folder(client: Any, model: Path, tmp_path: Path) -> None:
    """Hundreds of files, some of which are bad, on workers that keep nothing of them."""
    data = write_model(tmp_path / "model.gguf", rows=64).read_bytes()
    for i in range(200):
        (tmp_path / f"{i:03}.gguf").write_bytes(data if i % 10 else data[: 20 + i])
    records = map_files(parameters, sorted(tmp_path.glob("[0-9]*.gguf"))).compute()
    assert [r["error"] is None for r in records] == [bool(i % 10) for i in range(200)]
    assert len({r["result"] for r in records if r["error"] is None}) == 1
    assert max(client.run(open_files).values()) == 0


def parameters(f: mmgguf.GGUFFile) -> int:
    return f.parameter_count


def open_files() -> int:
    """Of the audited ones, in this worker."""
    folder = Path("/proc/self/fd")
    found = [os.readlink(one) for one in folder.iterdir() if one.exists()] if folder.exists() else []
    return sum(name.endswith(".gguf") and Path(name).stem.isdigit() for name in found)
