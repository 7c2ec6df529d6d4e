"""Files and tensors sent to other processes, and advice about memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.errors import ClosedError, FileChangedError
from mmgguf.storage import remote

from .support.cases import random_tensor
from .support.interleave import steps, with_change_at
from .support.readers import bytes_of, each_once, tag_requests, write_model
from .support.server import Server, files
from .test_file import write_split

STORAGES = pytest.mark.parametrize("storage", ["mmap", "read"])
MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.gguf"
    rng = np.random.default_rng(3)
    blocks = random_tensor(GGMLType.Q4_K, (6, 8))
    tensors = {
        "big": rng.standard_normal((512, 1024), np.float32),
        "blocks": mmgguf.TypedTensor(blocks.blocks, GGMLType.Q4_K),
        "small": np.arange(5, dtype=np.int32),
        "last": rng.standard_normal((256, 1024), np.float32),
    }
    mmgguf.write(target, {"general.architecture": "llama"}, tensors)
    return target


def checksum(tensor: mmgguf.Tensor) -> float:
    return float(tensor.data.view(np.uint8).sum())


def checksums(file: mmgguf.GGUFFile) -> dict[str, float]:
    with file:
        return {name: checksum(tensor) for name, tensor in file.items()}


# ---------------------------------------------------------------- by reference


@STORAGES
@pytest.mark.parametrize("mode", ["r", "c"])
def test_pickles_are_references(storage: Any, mode: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with mmgguf.open(path.name, storage=storage, mode=mode, access="random") as f:
        sent_file, sent_tensor = pickle.dumps(f), pickle.dumps(f["big"])
        assert max(len(sent_file), len(sent_tensor)) < 600
        monkeypatch.chdir("/")
        assert checksums(pickle.loads(sent_file)) == {name: checksum(t) for name, t in f.items()}
        tensor = pickle.loads(sent_tensor)
        np.testing.assert_array_equal(tensor.data, f["big"].data)
        assert tensor.data.flags.writeable == (mode == "c")
        assert type(tensor.storage) is type(f["big"].storage)
        assert (tensor.name, tensor.type, tensor.shape) == ("big", GGMLType.F32, (512, 1024))


def test_tensors_sent_one_by_one_share_a_mapping(path: Path) -> None:
    with mmgguf.open(path) as f:
        first, second = (pickle.loads(pickle.dumps(f[name])) for name in ("big", "small"))
    assert first.storage is second.storage
    assert second.data.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@STORAGES
def test_worker_processes(method: str, storage: Any, path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with mmgguf.open(path, storage=storage) as f:
        expected = {name: checksum(tensor) for name, tensor in f.items()}
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            assert dict(zip(f, pool.map(checksum, f.values()), strict=True)) == expected
            assert pool.submit(checksums, f).result() == expected


def test_a_split_model_travels_whole(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    with mmgguf.open(paths[1]) as f:
        with pickle.loads(pickle.dumps(f)) as again:
            assert list(again) == list(f)
        assert pickle.loads(pickle.dumps(f["c"])).data.tolist() == [1] * 5
        sent = pickle.dumps(f)
        os.utime(paths[2], ns=(0, 0))
        with pytest.raises(FileChangedError, match=r"00003-of-00003\.gguf: is not the file that was sent"):
            pickle.loads(sent)


@STORAGES
@pytest.mark.parametrize("change", ["touched", "replaced", "grown"])
def test_a_changed_file_is_refused(change: str, storage: Any, path: Path) -> None:
    with mmgguf.open(path, storage=storage) as f:
        sent = [pickle.dumps(f), pickle.dumps(f["big"])]
        alive = pickle.loads(sent[1])
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "grown":
        os.truncate(path, path.stat().st_size + 64)
    else:
        mmgguf.write(path, {}, {"big": np.zeros(3)})
    for data in sent:
        with pytest.raises(FileChangedError, match="is not the file that was sent"):
            pickle.loads(data)
    del alive
    path.unlink()
    for data in sent:
        with pytest.raises(FileNotFoundError):
            pickle.loads(data)


def replace_keeping_size_and_time(path: Path, content: bytes) -> None:
    status = path.stat()
    assert len(content) == status.st_size
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def overwrite_keeping_size_and_time(path: Path, content: bytes) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_data(content: bytes) -> bytes:
    return content[:-100] + bytes(100)


def other_header(content: bytes) -> bytes:
    return content.replace(b"llama", b"qwen2")


HERE, ELSEWHERE = None, b"elsewhere"


@STORAGES
@pytest.mark.parametrize(
    ("change", "content", "host", "message"),
    [
        (replace_keeping_size_and_time, other_header, HERE, "another header"),
        (replace_keeping_size_and_time, other_data, HERE, "another file (device and inode)"),
        (overwrite_keeping_size_and_time, other_header, HERE, "another header"),
        (replace_keeping_size_and_time, other_header, ELSEWHERE, "another header"),
        (replace_keeping_size_and_time, bytes, ELSEWHERE, None),  # an exact copy on another machine
    ],
)
def test_size_and_time_alone_are_no_identity(
    change: Any,
    content: Any,
    host: bytes | None,
    message: str | None,
    storage: Any,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mmgguf.open(path, storage=storage) as f:
        if host is not None:
            monkeypatch.setattr("mmgguf.storage.local.host", lambda: host)
        sent = [pickle.dumps(f), pickle.dumps(f["big"])]
        monkeypatch.undo()
        expected = checksum(f["big"])
    alive = pickle.loads(sent[1])  # its mapping is shared only with tensors of the same file
    change(path, content(path.read_bytes()))
    for data in sent:
        if message is None:
            received = pickle.loads(data)
            assert checksum(received if isinstance(received, mmgguf.Tensor) else received["big"]) == expected
            continue
        with pytest.raises(FileChangedError, match=re.escape(message)):
            pickle.loads(data)
    del alive


def test_a_header_that_was_cut_off_is_not_sent(path: Path) -> None:
    with mmgguf.open(path) as f:
        os.truncate(path, 40)
        with pytest.raises(FileChangedError, match="cut off"):
            pickle.dumps(f["big"])


def test_a_closed_file_is_not_sent(path: Path) -> None:
    f = mmgguf.open(path)
    tensor = f["big"]
    f.close()
    for what in (f, tensor):
        with pytest.raises(ClosedError):
            pickle.dumps(what)


def test_a_dask_cluster(path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        mmgguf.open(path) as f,
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        expected = {name: checksum(tensor) for name, tensor in f.items()}
        futures = client.map(checksum, list(f.values()), pure=False)
        assert dict(zip(f, [future.result(timeout=60) for future in futures], strict=True)) == expected
        assert client.submit(checksums, f, pure=False).result(timeout=60) == expected


def test_a_torch_data_loader(path: Path) -> None:
    data = pytest.importorskip("torch.utils.data")
    with mmgguf.open(path) as f:
        rows = Rows(f["big"])
        loader = data.DataLoader(rows, batch_size=64, num_workers=2, multiprocessing_context="spawn")
        batches = [batch.numpy() for batch in loader]
        np.testing.assert_array_equal(np.concatenate(batches), f["big"].data)


class Rows:
    def __init__(self, tensor: mmgguf.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Any:
        return self.tensor[index].copy()


# ---------------------------------------------------------------- shares of a tensor


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_ranks_share_a_tensor(world: int, path: Path) -> None:
    with mmgguf.open(path) as f:
        for name in ("big", "blocks", "small"):
            t = f[name]
            rows = [t.partition(rank, world) for rank in range(world)]
            columns = [t.partition(rank, world, axis=-1) for rank in range(world)]
            assert np.concatenate(rows).tobytes() == t.data.tobytes()
            assert np.concatenate(columns, axis=-1).tobytes() == t.data.tobytes()
            assert all(np.shares_memory(part, t.data) for part in rows + columns if part.size)
            assert max(map(len, rows)) - min(map(len, rows)) <= 1
        for rank in (-1, world):
            with pytest.raises(ValueError, match="rank"):
                t.partition(rank, world)


# ---------------------------------------------------------------- advice


def drop_from_page_cache(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system has no posix_fadvise")
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@STORAGES
def test_prefetch_release_and_resident(storage: Any, path: Path) -> None:
    drop_from_page_cache(path)
    with mmgguf.open(path, storage=storage) as f:
        # Reading the header has brought some neighbours along.
        if f.resident(["big"]) > f["big"].nbytes // 2:
            pytest.skip("this file system keeps its pages")
        calls: list[tuple[int, int]] = []
        f.prefetch(["big"], wait=True, progress=lambda done, total: calls.append((done, total)))
        assert f.resident(["big"]) == f["big"].nbytes
        assert calls[-1] == (f["big"].nbytes, f["big"].nbytes)
        f.prefetch(wait=True)
        assert f.resident() >= sum(t.nbytes for t in f.values())
        assert f.resident([]) == 0
        before = checksum(f["last"])
        f.release(["big"])
        assert f.resident(["big"]) < 8192  # pages shared with neighbours stay
        assert f.resident(["last"]) > f["last"].nbytes - 8192
        assert checksum(f["last"]) == before
        f.release()
        assert f.resident() < 16384
        assert checksum(f["last"]) == before


def test_release_keeps_changes_of_copy_on_write(path: Path) -> None:
    with mmgguf.open(path, mode="c") as f:
        f["big"].data[:] = 7
        f.release()
        assert (f["big"].data == 7).all()


@pytest.mark.parametrize("access", ["normal", "sequential", "random"])
@STORAGES
def test_access_patterns_change_no_results(access: Any, storage: Any, path: Path) -> None:
    with mmgguf.open(path) as plain, mmgguf.open(path, storage=storage, access=access) as f:
        assert {name: checksum(t) for name, t in f.items()} == {name: checksum(t) for name, t in plain.items()}
    with pytest.raises(ValueError, match="access must be one of"):
        mmgguf.open(path, access="backwards")  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_lock(path: Path) -> None:
    def locked() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmLck"))
        return int(line.split()[1]) * 1024

    import resource

    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < path.stat().st_size:
        pytest.skip("the limit for locked memory is too small")
    before = locked()
    with mmgguf.open(path, lock=True) as f:
        assert locked() - before >= path.stat().st_size
        assert f.resident() >= f["big"].nbytes
        f.release()  # of locked pages the kernel refuses it
    assert locked() == before


def test_names_that_are_not_there(path: Path) -> None:
    with mmgguf.open(path) as f:
        for method in (f.prefetch, f.release, f.resident):
            with pytest.raises(KeyError):
                method(["nothing"])
    for method in (f.prefetch, f.release, f.resident):
        with pytest.raises(ClosedError):
            method()


# ---------------------------------------------------------------- closing while others are at work


CALLS: dict[str, Callable[[mmgguf.GGUFFile], object]] = {
    "prefetch": lambda f: f.prefetch("big"),
    "prefetch and wait": lambda f: f.prefetch("big", wait=True),
    "release": lambda f: f.release("big"),
    "resident": lambda f: f.resident("big"),
    "load_file": lambda f: mmgguf.load_file(f, names="small"),
    "dequantize_all": lambda f: list(f.dequantize_all(names="small")),
    "data": lambda f: f["small"].data,
    "index": lambda f: f["small"][1:3],
    "array metadata": lambda f: f.metadata["numbers"],
    "string metadata": lambda f: f.metadata["strings"],
    "pickle": pickle.dumps,
}


@STORAGES
@pytest.mark.parametrize("name", CALLS)
def test_closing_at_any_step_of_a_call(name: str, storage: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    metadata = {"numbers": np.arange(9), "strings": ["a", "b"]}
    mmgguf.write(path, metadata, {"big": np.zeros(9999), "small": np.arange(4)})
    modules = (mmgguf.file, mmgguf.tensor, mmgguf.selection, mmgguf.storage.local, mmgguf.format.metadata)
    call, outcomes = CALLS[name], set()
    with mmgguf.open(path, storage=storage) as f:
        call(f)  # the first of a process may do more
    with mmgguf.open(path, storage=storage) as f:
        every = steps(lambda: call(f), modules)
    for step in every:
        f = mmgguf.open(path, storage=storage)
        try:
            with_change_at(step, lambda f=f: call(f), f.close, modules)
            outcomes.add("done")
        except ClosedError:
            outcomes.add("closed")
        assert f.closed
        with pytest.raises(ClosedError):
            f.metadata["numbers"]
    assert outcomes == {"done", "closed"}


# ---------------------------------------------------------------- many readers of one remote file


@pytest.mark.slow
def test_four_processes_ask_a_server_for_each_byte_once(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf")
    spawn = multiprocessing.get_context("spawn")
    with (
        Server(files({"/model.gguf": model.read_bytes()})) as server,
        mmgguf.open(server.url + "/model.gguf") as f,
        ProcessPoolExecutor(4, mp_context=spawn, initializer=start_together, initargs=(spawn.Barrier(4),)) as pool,
    ):
        first = min(tensor.file_offset for tensor in f.values())
        server.requests.clear()
        parts = list(pool.map(load_quarter, [f] * 4, range(4)))
        headers = each_once(server, f.values())
        asked = bytes_of(server, header=first)
        assert sum(len(part) for part in parts) == sum(tensor.nbytes for tensor in f.values())
    # Nobody reads more than its own.
    assert sorted(asked.values()) == sorted(len(part) for part in parts)
    # Each parses the header for itself, and stops a step behind it at most.
    assert headers <= 4 * (first + remote.FIRST_STEP)
    with mmgguf.open(model) as expected:
        pieces = [iter(split(part, rank, expected)) for rank, part in enumerate(parts)]
        for tensor in expected.values():
            assert b"".join(next(one) for one in pieces) == tensor.data.tobytes()


def start_together(barrier: Any) -> None:
    tag_requests()
    barrier.wait(60)  # so that each process gets one of the tasks


def load_quarter(f: mmgguf.GGUFFile, rank: int) -> bytes:
    return b"".join(tensor.partition(rank, 4).tobytes() for tensor in f.values())


def split(part: bytes, rank: int, f: mmgguf.GGUFFile) -> list[bytes]:
    """What a rank loaded, tensor by tensor."""
    pieces, start = [], 0
    for tensor in f.values():
        nbytes = tensor.partition(rank, 4).nbytes
        pieces.append(part[start : start + nbytes])
        start += nbytes
    return pieces
