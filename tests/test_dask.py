"""mmgguf.dask: equal numbers, tasks that carry references, and no more read than a task's part, in one process."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.types import LAYOUTS, GGMLType

from .support.build import Build
from .support.cases import BY_ID
from .support.readers import joined, write_large
from .support.server import Server, files

pytest.importorskip("dask.array", reason="dask is not installed")

import dask
import dask.array as da

from mmgguf.dask import compare_values, from_gguf, map_files, stats

ROWS, COLUMNS = 96, 512


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    size = LAYOUTS[GGMLType.Q8_0].row_size(COLUMNS)
    blocks = rng.integers(0, 120, (ROWS, size), np.uint8)
    numbers = rng.standard_normal((4, 6, COLUMNS)).astype(np.float32)
    tensors = {"q": mmgguf.TypedTensor(blocks, GGMLType.Q8_0, (ROWS, COLUMNS)), "x": numbers, "i": np.arange(7)}
    mmgguf.write(tmp_path / "m.gguf", {"general.architecture": "test"}, tensors)
    return tmp_path / "m.gguf"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tensor of three pieces of 2**20 numbers, one of one, and an empty one."""
    rng = np.random.default_rng(1)
    rows, size = 2600, LAYOUTS[GGMLType.Q8_0].row_size(1024)
    blocks = rng.integers(0, 120, (rows, size), np.uint8)
    numbers = rng.standard_normal((40, 1024)).astype(np.float32)
    numbers[3, 5:9] = np.nan, np.inf, -np.inf, 0
    tensors = {
        "q": mmgguf.TypedTensor(blocks, GGMLType.Q8_0, (rows, 1024)),
        "x": numbers,
        "none": np.zeros((0, 32), np.float32),
    }
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    mmgguf.write(path, {"general.architecture": "test"}, tensors)
    return path


@pytest.fixture(scope="module")
def changed(large: Path) -> Path:
    """The same with other numbers, types and metadata, one tensor less and one more."""
    with mmgguf.open(large) as f:
        numbers = f["q"].dequantize()
    numbers[1] += 1
    tensors = {"q": numbers, "none": np.zeros((0, 32), np.float16), "y": np.arange(3)}
    mmgguf.write(large.with_name("changed.gguf"), {"general.architecture": "other"}, tensors)
    return large.with_name("changed.gguf")


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big"])
@pytest.mark.parametrize("chunks", ["auto", "512 B", 1])
@pytest.mark.parametrize("dtype", [None, np.float16])
def test_numbers_are_those_of_load_file(case_id: str, chunks: Any, dtype: Any, tmp_path: Path) -> None:
    path = BY_ID[case_id].write(tmp_path)
    expected = mmgguf.load_file(path, dtype=dtype)
    arrays = from_gguf(path, dtype=dtype, chunks=chunks)
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        result = array.compute(scheduler="sync")
        assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name
        assert result.tobytes() == expected[name].astype(array.dtype).tobytes(), name


def test_blocks_as_they_are_stored(model: Path) -> None:
    with mmgguf.open(model) as f:
        array = from_gguf(f, names="q", dequantize=False, chunks="2 KiB")["q"]
        assert (array.shape, array.dtype) == (f["q"].data.shape, f["q"].data.dtype)
        assert array.npartitions > 10
        assert array.compute(scheduler="sync").tobytes() == f["q"].data.tobytes()


@pytest.mark.parametrize(
    ("name", "chunks", "expected"),
    [
        ("q", 10, ((10,) * 9 + (6,), (512,))),
        ("q", "20 KiB", ((10,) * 9 + (6,), (512,))),  # 10 rows of 512 float32
        ("q", "1 B", ((1,) * 96, (512,))),  # never less than a row
        ("q", (48, 256), ((48, 48), (256, 256))),
        ("x", "4 KiB", ((1,) * 4, (2, 2, 2), (512,))),  # one range of the file each
        ("x", "30 KiB", ((2, 2), (6,), (512,))),
        ("x", "auto", ((4,), (6,), (512,))),
        ("i", "16 B", ((7,),)),
    ],
)
def test_chunks(name: str, chunks: Any, expected: Any, model: Path) -> None:
    array = from_gguf(model, names=name, chunks=chunks)[name]
    assert array.chunks == expected
    assert np.array_equal(array.compute(scheduler="sync"), mmgguf.load_file(model)[name])


def test_chunks_that_cut_blocks_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"q: chunks of .* cut blocks; use multiples of 32"):
        from_gguf(model, names="q", chunks=(96, 100))


# ---------------------------------------------------------------- statistics and comparisons


@pytest.mark.parametrize("chunks", ["1 B", "1500 KiB", "32 MiB"])
def test_statistics_are_those_of_one_process(chunks: str, large: Path) -> None:
    expected = mmgguf.inspect.stats(large)
    (found,) = dask.compute(stats(large, chunks=chunks), scheduler="sync")
    assert list(found) == list(expected)
    for name, one in found.items():
        # As text, since of an empty tensor the mean is NaN.
        assert repr(one) == repr(expected[name])
        assert np.array_equal(one.histogram.counts, expected[name].histogram.counts)
    assert len(stats(large, names="q", chunks=chunks)["q"].dask) == {"1 B": 4, "1500 KiB": 4, "32 MiB": 1}[chunks]


def test_statistics_of_every_type(all_types: Path) -> None:
    (found,) = dask.compute(stats(all_types), scheduler="sync")
    assert repr(found) == repr(mmgguf.inspect.stats(all_types))


def test_an_unknown_type_has_no_statistics(tmp_path: Path) -> None:
    build = Build().start(1, 0).tensor(b"t", (32,), 99, 0)
    (tmp_path / "unknown.gguf").write_bytes(bytes(build).ljust(256, b"\0"))
    assert dask.compute(stats(tmp_path / "unknown.gguf"), scheduler="sync") == ({"t": None},)
    compared = compare_values(tmp_path / "unknown.gguf", tmp_path / "unknown.gguf").compute(scheduler="sync")
    assert [d.change for d in compared.structure] == ["unknown"]


@pytest.mark.parametrize("chunks", ["1 B", "32 MiB"])
def test_a_comparison_is_that_of_one_process(chunks: str, large: Path, changed: Path) -> None:
    for a, b in ((large, changed), (changed, large), (large, large)):
        expected = mmgguf.inspect.compare_values(a, b)
        found = compare_values(a, b, chunks=chunks).compute(scheduler="sync")
        assert repr(found) == repr(expected)
        assert (found.structure, repr(found.tensors), found.types) == (
            expected.structure,
            repr(expected.tensors),
            expected.types,
        )
    assert len(found.tensors) == 3


def test_a_comparison_of_some_tensors(large: Path, changed: Path) -> None:
    found = compare_values(large, changed, names="q").compute(scheduler="sync")
    assert found.summary == mmgguf.inspect.compare_values(large, changed, names="q").summary
    assert [t.name for t in found.tensors] == ["q"]
    for function in (stats, lambda f, names: compare_values(f, large, names=names)):
        with pytest.raises(mmgguf.errors.NameNotFoundError):
            function(large, names="nothing")


def test_what_is_sent_between_tasks_is_small(large: Path) -> None:
    """A part's sums, with a table of 2048 rows, of which weights use some hundred."""
    part = f"{stats(large, names='q', chunks='1 B')['q'].key}-0"
    (sums,) = dask.get(dict(stats(large, names="q", chunks="1 B")["q"].dask), [part])
    sent = pickle.dumps(sums)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    again.merge(pickle.loads(sent))  # whose table is full now
    twice = pickle.loads(pickle.dumps(again)).result("q", GGMLType.Q8_0, (2600, 1024))
    once = sums.result("q", GGMLType.Q8_0, (2600, 1024))
    assert (twice.count, twice.mean, twice.std) == (2 * once.count, once.mean, once.std)


# ---------------------------------------------------------------- what a task carries, and what it reads


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_task_is_a_small_reference(is_remote: bool, large: Path) -> None:
    with Server(files({"/large.gguf": large.read_bytes()})) as server:
        source = server.url + "/large.gguf" if is_remote else large
        arrays = list(from_gguf(source, chunks=10).values())
        summed = [*stats(source, chunks="1 B").values(), compare_values(source, source, chunks="1 B")]
        for graph in (dict(collection.__dask_graph__()) for collection in [*arrays, *summed]):
            assert max(len(pickle.dumps(task)) for task in graph.values()) <= 1024


def test_keys_are_those_of_the_same_content_only(model: Path) -> None:
    first, again = (from_gguf(model, chunks=10)["q"].name for _ in range(2))
    assert first == again
    others = {
        from_gguf(model, chunks=11)["q"].name,
        from_gguf(model, chunks=10, dtype=np.float16)["q"].name,
        from_gguf(model, chunks=10, dequantize=False)["q"].name,
    }
    model.write_bytes(model.read_bytes())  # another time of change
    others.add(from_gguf(model, chunks=10)["q"].name)
    assert len(others | {first}) == 5


@pytest.mark.parametrize(
    ("name", "chunks", "index", "expected"),
    [
        ("q", 10, np.s_[20:30], 10 * LAYOUTS[GGMLType.Q8_0].row_size(COLUMNS)),
        ("x", "4 KiB", np.s_[1:2, 2:4], 2 * COLUMNS * 4),  # two rows of one matrix of several
        ("x", "30 KiB", np.s_[2:], 2 * 6 * COLUMNS * 4),
    ],
)
def test_a_task_reads_its_rows_only(
    name: str, chunks: Any, index: Any, expected: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmgguf.open(model, storage="read") as f:
        array = from_gguf(f, names=name, chunks=chunks)[name]
        read: list[int] = []
        original = type(f[name].storage).array

        def counted(file: Any, offset: int, shape: Any, dtype: Any) -> Any:
            result = original(file, offset, shape, dtype)
            read.append(result.nbytes)
            return result

        monkeypatch.setattr(type(f[name].storage), "array", counted)
        array[index].compute(scheduler="sync")
    assert sum(read) == expected


def test_of_a_remote_file_each_byte_is_asked_for_once(large: Path) -> None:
    data = large.read_bytes()
    with Server(files({"/large.gguf": data})) as server, mmgguf.open(server.url + "/large.gguf") as f:
        wanted = sorted((t.file_offset, t.file_offset + t.nbytes) for t in f.values() if t.nbytes)
        for make in (lambda: list(from_gguf(f, chunks="1 MiB").values()), lambda: stats(f, chunks="1 B")):
            collections = make()
            server.requests.clear()
            mmgguf.dask._files.clear()
            results = dask.compute(collections, scheduler="threads", num_workers=4)
            header, *ranges = sorted(server.with_range())
            assert header[0] == 0  # one for all tasks of a process
            assert header[1] <= mmgguf.storage.remote.PROBE
            assert joined(ranges) == joined(wanted)
            assert sum(stop - start for start, stop in ranges) == sum(stop - start for start, stop in wanted)
    assert np.array_equal(results[0]["q"].histogram.counts, mmgguf.inspect.stats(large)["q"].histogram.counts)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
@pytest.mark.parametrize("storage", ["mmap", "read"])
def test_of_a_cold_file_no_more_than_a_part_is_read(storage: Any, large: Path, tmp_path: Path) -> None:
    """The kernel's read-ahead, some MiB on many machines, would read other workers' parts."""
    path = tmp_path / "cold.gguf"  # which nobody has mapped
    path.write_bytes(large.read_bytes())
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with mmgguf.open(path, storage=storage) as f:
        before = f.resident(["q"])
        if before > f["q"].nbytes // 10:
            pytest.skip("this file system keeps its pages")
        array = from_gguf(f, names="q", chunks=260)["q"]
        array.blocks[7].compute(scheduler="sync")
        part = f["q"].nbytes // 10
        # And the header's last page, and two that stick out.
        assert part <= f.resident(["q"]) - before <= part + 3 * 4096
        array.blocks[2].std().compute(scheduler="sync")
        assert f.resident(["q"]) - before <= 2 * part + 6 * 4096


@pytest.mark.parametrize("chunks", ["auto", (48, 256), (10, -1)])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_dask_takes_a_tensor_as_it_is(chunks: Any, scheduler: str, model: Path) -> None:
    with mmgguf.open(model) as f:
        tensor = f["q"]
        array = da.from_array(tensor, chunks=chunks)
        assert (array.shape, array.dtype) == (tensor.shape, np.float32)
        assert np.array_equal(array.compute(scheduler=scheduler), np.asarray(tensor))
        assert np.array_equal(array[3:7, ::5].compute(scheduler=scheduler), tensor[3:7, ::5])
        assert float(array.mean().compute(scheduler=scheduler)) == pytest.approx(float(np.asarray(tensor).mean()))
        # The same name for the same tensor, and a graph that carries references.
        assert array.name == da.from_array(f["q"], chunks=chunks).name != da.from_array(f["x"]).name
        assert max(len(pickle.dumps(task)) for task in dict(array.__dask_graph__()).values()) <= 1024


def test_a_bad_file_is_a_record(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    sources = [model, tmp_path / "bad.gguf", tmp_path / "none.gguf"]
    good, bad, none = map_files(lambda f: (f.architecture, len(f)), sources).compute(scheduler="sync")
    assert (good["source"], good["result"], good["error"]) == (model, ("test", 3), None)
    assert bad["result"] is None
    assert bad["error"].startswith("TruncatedError: ")
    assert none["error"].startswith("FileNotFoundError: ")


def test_a_graph_of_large_proportions_has_one_task_a_chunk(tmp_path: Path) -> None:
    path = write_large(tmp_path / "large.gguf")
    arrays = from_gguf(path)
    # 128 MiB of float32 are 4096 rows of 8192.
    assert [array.npartitions for array in list(arrays.values())[:9]] == [2] * 4 + [7] * 3 + [1] * 2
    assert sum(array.npartitions for array in arrays.values()) == 80 * 31
    # 36 and 126 MiB of stored data in pieces of at most 32 MiB, and a task that puts them together.
    assert [len(one.dask) for one in list(stats(path).values())[:9]] == [3] * 4 + [5] * 3 + [1] * 2


# ---------------------------------------------------------------- hostile sources


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_source_makes_a_task_unpickle_what_it_holds(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    bomb = pickle.dumps(_Bomb(marker))
    text = bomb.decode("latin-1")
    (tmp_path / "bomb.gguf").write_bytes(bomb)
    metadata = {"general.architecture": "test", "tokenizer.ggml.tokens": [text, "x"], "general.name": text}
    mmgguf.write(tmp_path / "metadata.gguf", metadata, {"w": np.frombuffer(bomb, np.int8)})
    contents = {"/bomb.gguf": bomb, "/metadata.gguf": (tmp_path / "metadata.gguf").read_bytes()}
    with Server(files(contents)) as server:
        local = [tmp_path / "bomb.gguf", tmp_path / "metadata.gguf"]
        sources = [*local, server.url + "/bomb.gguf", server.url + "/metadata.gguf", text]
        records = map_files(lambda f: f.metadata.to_dict(), sources).compute(scheduler="sync")
        (read,) = dask.compute(from_gguf(server.url + "/metadata.gguf"), scheduler="sync")
    assert [record["error"] is None for record in records] == [False, True, False, True, False]
    assert read["w"].tobytes() == bomb
    assert not marker.exists()


@pytest.mark.slow
def test_a_cluster_of_processes(model: Path) -> None:
    """Workers get the right numbers, refuse a changed file, and a task of a worker that dies is done again."""
    distributed = pytest.importorskip("distributed")
    expected = mmgguf.load_file(model)["q"]
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(host="127.0.0.1", **options) as cluster, distributed.Client(cluster) as client:
        array = from_gguf(model, names="q", chunks=4)["q"]
        assert np.array_equal(array.compute(), expected)
        lazy = client.persist(array.map_blocks(_slowly, dtype=array.dtype))
        next(iter(cluster.workers.values())).process.process.kill()
        assert np.array_equal(lazy.compute(), expected)
        model.write_bytes(model.read_bytes() + bytes(32))
        with pytest.raises(mmgguf.errors.FileChangedError):
            array.compute()


def _slowly(block: Any) -> Any:
    import time

    time.sleep(0.05)
    return block


def test_importing_the_package_imports_no_dask() -> None:
    import subprocess

    code = "import sys, mmgguf; sys.exit('dask' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tensor_without_axes(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "a.gguf", {}, {"t": np.array(3, "f4")})
    array = from_gguf(tmp_path / "a.gguf")["t"]
    assert array.shape == array.compute().shape == ()
