"""mmgguf.dask: equal numbers, tasks that carry references, and no more read than a task's part."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.types import LAYOUTS, GGMLType

from .support.cases import BY_ID

pytest.importorskip("dask.array", reason="dask is not installed")

from mmgguf.dask import from_gguf, map_files

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


def test_a_task_is_a_small_reference(model: Path) -> None:
    graph = dict(from_gguf(model, names="q", chunks=10)["q"].__dask_graph__())
    assert len(graph) == 10
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


def test_a_task_reads_its_rows_only(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmgguf.open(model, storage="read") as f:
        array = from_gguf(f, names="q", chunks=10)["q"]
        read: list[int] = []
        original = type(f["q"].storage).array

        def counted(file: Any, offset: int, shape: Any, dtype: Any) -> Any:
            result = original(file, offset, shape, dtype)
            read.append(result.nbytes)
            return result

        monkeypatch.setattr(type(f["q"].storage), "array", counted)
        array[20:30].compute(scheduler="sync")
    assert sum(read) == 10 * LAYOUTS[GGMLType.Q8_0].row_size(COLUMNS)


def test_dask_takes_a_tensor_as_it_is(model: Path) -> None:
    import dask.array as da

    with mmgguf.open(model) as f:
        array = da.from_array(f["q"], chunks=(48, 256))
        assert array.dtype == np.float32
        assert np.array_equal(array.compute(scheduler="sync"), np.asarray(f["q"]))


def test_a_bad_file_is_a_record(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    sources = [model, tmp_path / "bad.gguf", tmp_path / "none.gguf"]
    good, bad, none = map_files(lambda f: (f.architecture, len(f)), sources).compute(scheduler="sync")
    assert (good["source"], good["result"], good["error"]) == (model, ("test", 3), None)
    assert bad["result"] is None
    assert bad["error"].startswith("TruncatedError: ")
    assert none["error"].startswith("FileNotFoundError: ")


def test_a_graph_of_large_proportions_has_one_task_a_chunk(tmp_path: Path) -> None:
    """80 layers of 9 tensors as in a model of 70B parameters: a sparse file, of which only the header is read."""
    shapes = [(8192, 8192)] * 4 + [(28672, 8192)] * 3 + [(8192,)] * 2
    path = tmp_path / "large.gguf"
    block = LAYOUTS[GGMLType.Q4_K]
    infos = {f"blk.{i}.{j}": shape for i in range(80) for j, shape in enumerate(shapes)}
    header, offset = write_sparse_header(infos), 0
    for shape in infos.values():
        offset += (block.nbytes(shape) + 31) // 32 * 32
    with path.open("wb") as file:
        file.write(header)
        file.truncate((len(header) + 31) // 32 * 32 + offset)
    arrays = from_gguf(path)
    # 128 MiB of float32 are 4096 rows of 8192.
    assert [array.npartitions for array in list(arrays.values())[:9]] == [2] * 4 + [7] * 3 + [1] * 2
    assert sum(array.npartitions for array in arrays.values()) == 80 * 31


def write_sparse_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    from .support.build import Build

    build, offset = Build().start(len(shapes), 0), 0
    for name, shape in shapes.items():
        build.tensor(name.encode(), shape[::-1], int(GGMLType.Q4_K), offset)
        offset += (LAYOUTS[GGMLType.Q4_K].nbytes(shape) + 31) // 32 * 32
    return bytes(build)


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
        victim = next(iter(client.scheduler_info()["workers"].values()))["nanny"]
        cluster.workers[next(k for k, w in cluster.workers.items() if w.address == victim)].process.process.kill()
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
