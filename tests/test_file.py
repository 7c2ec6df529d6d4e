"""Opening, indexing and closing files; splits, lifetimes, threads and processes."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.errors import ClosedError, FileChangedError, NameNotFoundError, SplitError
from mmgguf.storage import local as memory

from .support.build import Build
from .support.cases import BY_ID

STORAGES = pytest.mark.parametrize("storage", ["mmap", "read"])
RNG = np.random.default_rng(7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.gguf"
    tensors = {
        "token_embd.weight": RNG.standard_normal((8, 64), np.float32),
        "blk.0.attn_q.weight": RNG.standard_normal((4, 32)).astype(np.float16),
        "blk.0.ffn.weight": RNG.integers(-9, 9, (2, 3, 4), np.int8),
        "blk.10.attn_q.weight": np.arange(6, dtype=np.int32),
        "v.blk.3.ln.bias": np.zeros(3, np.float64),
        "mm.2.weight": np.ones(3, np.int64),
        "mm.weight": np.ones(3, np.int16),
        "output": np.float32(3.0),
    }
    metadata = {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.block_count": 11,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(100)],
        "tokenizer.ggml.scores": np.arange(100, dtype=np.float32),
    }
    mmgguf.write(target, metadata, tensors)
    return target


@STORAGES
def test_a_file_at_a_glance(storage: Any, path: Path) -> None:
    with mmgguf.open(path, storage=storage) as f:
        assert f.architecture == "llama"
        assert f.config["block_count"] == f.config.get_int("block_count") == 11
        assert f.file_type is mmgguf.FileType.MOSTLY_Q4_K_M
        assert f.parameter_count == sum(t.size for t in f.values())
        assert (f.version, f.byte_order, f.alignment, f.nbytes) == (3, "little", 32, path.stat().st_size)
        assert f.path == str(path)
        assert repr(f) == f"<GGUFFile {path}: 8 tensors, 5 metadata keys>"
        assert "mm.weight" in f
        assert "mm" not in f
        assert f == f
        assert len({f, f}) == 1
        with pytest.raises(NameNotFoundError, match=r"no tensor 0$"):
            f[0]  # type: ignore[index]
        with pytest.raises(NameNotFoundError, match=r"no metadata key 0$"):
            f.metadata[0]  # type: ignore[index]
        with pytest.raises(NameNotFoundError, match="no tensor 'nothing'"):
            f["nothing"]
        assert f.get("nothing") is None
        assert copy.copy(f.metadata) is f.metadata
        for mapping in (f.metadata, f.config):
            with pytest.raises(TypeError, match="cannot be pickled: send the file, or dict"):
                pickle.dumps(mapping)


def test_layers_are_grouped_as_ollama_does(path: Path) -> None:
    with mmgguf.open(path) as f:
        assert {layer: list(tensors) for layer, tensors in f.layers().items()} == {
            "token_embd": ["weight"],
            "blk.0": ["attn_q.weight", "ffn.weight"],
            "blk.10": ["attn_q.weight"],
            "v.blk.3": ["ln.bias"],
            "mm.2": ["weight"],
            "mm": ["weight"],
            "output": [""],
        }
        assert f.layers()["blk.0"]["attn_q.weight"].name == "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("storage", "mode", "match"), [("file", "r", "storage"), ("mmap", "w", "mode"), ("mmap", "r+", "mode")]
)
def test_unknown_storages_and_modes(storage: Any, mode: Any, match: str, path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        mmgguf.open(path, storage=storage, mode=mode)


@pytest.mark.parametrize(("storage", "mode"), [("read", "r"), ("mmap", "c"), ("read", "c")])
def test_what_cannot_be_locked(storage: Any, mode: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="lock=True needs storage='mmap' and mode='r'"):
        mmgguf.open(path, storage=storage, mode=mode, lock=True)


@STORAGES
def test_an_open_file_is_not_copied(storage: Any, path: Path) -> None:
    """The copy would close the original's descriptor."""
    with mmgguf.open(path, storage=storage) as f:
        t = f["token_embd.weight"]
        for use in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                use(t.storage)
        assert t.data.nbytes == t.nbytes


def test_metadata_and_headers_compare_by_value(tmp_path: Path) -> None:
    metadata = {"s": "x", "n": 3, "numbers": np.arange(5), "strings": ["a", "b"] * 10}
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    mmgguf.write(paths[0], metadata, {})
    mmgguf.write(paths[1], dict(reversed(metadata.items())), {})
    mmgguf.write(paths[2], metadata | {"numbers": np.arange(1, 6)}, {})
    a, b, c = (mmgguf.open(each).metadata for each in paths)
    assert a == b
    assert a != c
    assert a == metadata
    assert a != "x"
    assert a.section("n") == b.section("n")
    assert copy.deepcopy(a) is a
    headers = [mmgguf.read_header(io.BytesIO(each.read_bytes())) for each in paths]
    assert headers[0] == mmgguf.read_header(io.BytesIO(paths[0].read_bytes()))
    assert headers[0] != headers[2]


# ---------------------------------------------------------------- tensors as arrays

KEYS: list[Any] = [
    0, -1, slice(1, 3), slice(None, None, -1), slice(None, None, 2), [0, 1, 0], np.array([1, 0]), ..., (),
    (0, 0), (0, ...), (..., 0), (slice(None), 1), (0, slice(1, None)), (..., slice(1, 3)), (..., slice(3, 1)),
    (..., slice(None, None, -1)), (..., -1), ([0, 1], 1), ([0, 1], [1, 2]), (slice(None), [1, 0]), None, (None, 0),
    np.array([True, False]),
]  # fmt: skip


@STORAGES
def test_indexing_is_numpys(storage: Any, path: Path) -> None:
    with mmgguf.open(path, storage=storage) as f:
        t = f["blk.0.ffn.weight"]
        whole = np.array(t.data)
        for key in [*KEYS, (0, 1, 2), (1, slice(None), slice(0, 4, 3)), (..., 1, 2)]:
            got = t[key]
            np.testing.assert_array_equal(got, whole[key], err_msg=repr(key))
            assert np.shape(got) == np.shape(whole[key])
        for bad in (2, -3, (0, 0, 4), (0, 0, 0, 0), (0, 9), "x"):
            with pytest.raises(IndexError):
                t[bad]
        assert len(t) == 2
        assert [row.tolist() for row in t] == whole.tolist()
        with pytest.raises(TypeError):
            len(f["output"])


def test_asarray_is_a_view_of_plain_types(path: Path) -> None:
    with mmgguf.open(path) as f:
        t = f["token_embd.weight"]
        assert np.shares_memory(np.asarray(t), t.data)
        assert np.shares_memory(np.array(t, copy=False), t.data)
        assert not np.shares_memory(np.array(t, copy=True), t.data)
        assert np.asarray(t, np.float64).dtype == np.float64
        with pytest.raises(ValueError, match="copy"):
            np.asarray(t, np.float64, copy=False)
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(t)[0] = 1


class Capsule:
    """A consumer's view of an export made with certain options."""

    def __init__(self, tensor: mmgguf.Tensor, **options: Any) -> None:
        self.tensor, self.options = tensor, options

    def __dlpack__(self, **_: Any) -> Any:
        return self.tensor.__dlpack__(**self.options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


@STORAGES
def test_dlpack(storage: Any, path: Path) -> None:
    before = path.read_bytes()
    with mmgguf.open(path, storage=storage) as f:
        for t in f.values():
            array = np.from_dlpack(t)  # numpy asks for version 1, which knows read-only memory
            assert not array.flags.writeable
            assert array.tobytes() == t.data.tobytes()
            old = np.from_dlpack(Capsule(t))  # a consumer of the old kind takes all memory for writable
            # And so it is: what `writable_array` gives is what both got, where the file is mapped.
            writable = t.storage.writable_array(t.file_offset, t.shape, t.data.dtype)
            assert np.shares_memory(array, writable) == np.shares_memory(old, writable) == (storage == "mmap")
            writable.reshape(-1).view(np.uint8)[:] = 7
            assert not np.shares_memory(t.data, writable)
            assert t.__dlpack_device__() == (1, 0)
    assert path.read_bytes() == before
    assert (writable.reshape(-1).view(np.uint8) == 7).all()
    with pytest.raises(mmgguf.errors.ClosedError):
        t.__dlpack__()


def test_dlpack_of_a_file_that_is_copy_on_write(path: Path) -> None:
    with mmgguf.open(path, mode="c") as f:
        for t in f.values():
            for options in ({}, {"max_version": (1, 0)}):
                assert np.shares_memory(np.from_dlpack(Capsule(t, **options)), t.data)


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big"])
def test_dlpack_of_blocks_and_of_the_other_byte_order_is_a_copy(case_id: str, tmp_path: Path) -> None:
    with mmgguf.open(BY_ID[case_id].write(tmp_path)) as f:
        for name, t in f.items():
            if t.type == GGMLType.BF16:  # numpy takes none, torch's tests have it
                assert "dltensor_versioned" in repr(t.__dlpack__(max_version=(1, 0)))
                continue
            array = np.from_dlpack(t)
            assert (array.dtype, array.shape) == (t.dtype.newbyteorder("="), t.shape), name
            np.testing.assert_array_equal(array, np.asarray(t))
            if not t.layout.is_plain or not t.dtype.isnative:
                with pytest.raises(BufferError, match="only in a copy"):
                    t.__dlpack__(copy=False)


# ---------------------------------------------------------------- lifetimes


@STORAGES
def test_arrays_outlive_the_file(storage: Any, path: Path) -> None:
    f = mmgguf.open(path, storage=storage)
    tensor = f["token_embd.weight"]
    array, scores, tokens = tensor.data, f.metadata["tokenizer.ggml.scores"], f.metadata["tokenizer.ggml.tokens"]
    expected = array.copy()
    assert not f.closed
    f.close()
    f.close()
    assert f.closed
    del f
    gc.collect()
    os.unlink(path)
    np.testing.assert_array_equal(array, expected)
    assert scores[-1] == 99
    assert tokens[99] == "t99"
    with pytest.raises(ClosedError, match="closed"):
        _ = tensor.data


def test_a_closed_file_refuses_work(path: Path) -> None:
    f = mmgguf.open(path)
    f.close()
    uses: list[Callable[[], Any]] = [
        lambda: f["mm.weight"], lambda: f["nothing"], lambda: list(f), lambda: len(f), lambda: "a" in f,
        lambda: f.__enter__(), lambda: f.metadata["tokenizer.ggml.tokens"], f.layers, lambda: f.parameter_count,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ClosedError, match="the file is closed"):
            use()
    assert f.architecture == "llama"
    assert "closed" in repr(f)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@STORAGES
def test_close_gives_everything_back(storage: Any, path: Path) -> None:
    def in_use() -> tuple[int, int]:
        maps = sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        return maps, links.count(str(path))

    f = mmgguf.open(path, storage=storage)
    assert in_use() != (0, 0)
    array = f["token_embd.weight"].data
    f.close()
    assert in_use()[0] == (1 if storage == "mmap" else 0)
    del array
    gc.collect()
    assert in_use() == (0, 0)
    mmgguf.open(path, storage=storage)  # dropped without close
    gc.collect()
    assert in_use() == (0, 0)


@STORAGES
def test_copy_on_write_never_changes_the_file(storage: Any, path: Path) -> None:
    before = path.read_bytes()
    with mmgguf.open(path, storage=storage, mode="c") as f:
        f["token_embd.weight"].data[:] = 0
        f["blk.0.ffn.weight"].data[0, 0, 0] += 1
        with pytest.raises(ValueError, match="read-only"):
            f.metadata["tokenizer.ggml.scores"][0] = 1
    assert path.read_bytes() == before


@STORAGES
@pytest.mark.parametrize("change", [-40, 40])
def test_a_file_of_another_size_is_noticed(storage: Any, change: int, path: Path) -> None:
    with mmgguf.open(path, storage=storage) as f:
        size = path.stat().st_size
        os.truncate(path, size + change)
        with pytest.raises(FileChangedError, match=f"had {size} bytes when it was opened, has {size + change} now"):
            _ = f["output"].data


def test_a_file_cut_during_a_read_is_an_exception(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmgguf.open(path, storage="read") as f:
        monkeypatch.setattr(type(f.shards[0].file), "require_unchanged", lambda self: None)
        os.truncate(path, f["output"].file_offset)
        with pytest.raises(FileChangedError, match="cut off"):
            _ = f["output"].data


def test_a_replaced_file_keeps_its_old_bytes(path: Path) -> None:
    with mmgguf.open(path) as f:
        expected = f["output"].data.copy()
        mmgguf.write(path, {}, {"other": np.zeros(5, np.float32)})
        np.testing.assert_array_equal(f["output"].data, expected)


# ---------------------------------------------------------------- threads and processes


@STORAGES
def test_many_threads_read_one_file(storage: Any, path: Path) -> None:
    failures: list[BaseException] = []
    with mmgguf.open(path, storage=storage) as f:
        expected = {name: np.array(t.data) for name, t in f.items()}

        def work() -> None:
            try:
                for _ in range(30):
                    for name, t in f.items():
                        np.testing.assert_array_equal(t.data, expected[name])
                    assert f.metadata["tokenizer.ggml.tokens"][7] == "t7"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("lacking", [("preadv",), ("preadv", "pread", "posix_fadvise")], ids=["macOS", "Windows"])
def test_many_threads_read_one_file_where_the_system_lacks(
    lacking: tuple[str, ...], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mmgguf.digest(path), mmgguf.verify(path, data=True)
    for name in lacking:
        monkeypatch.delattr(os, name, raising=False)
    test_many_threads_read_one_file("read", path)
    assert (mmgguf.digest(path), mmgguf.verify(path, data=True)) == expected
    with mmgguf.open(path, storage="read", access="random") as f:
        f.prefetch(wait=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@STORAGES
def test_a_forked_child_can_go_on(storage: Any, path: Path) -> None:
    code = f"""
import os, mmgguf
f = mmgguf.open({str(path)!r}, storage={storage!r})
before = f["token_embd.weight"].data.sum()
child = os.fork()
assert f["token_embd.weight"].data.sum() == before
assert list(f.metadata["tokenizer.ggml.tokens"])[3] == "t3"
if child == 0:
    f.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert f["token_embd.weight"].data.sum() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[1])


# ---------------------------------------------------------------- large files


def sparse_model(path: Path, sizes: dict[str, int]) -> None:
    """A model of I8 tensors whose data is a hole in the file."""
    path.unlink(missing_ok=True)
    header, offset = Build().start(len(sizes), 0), 0
    for name, size in sizes.items():
        header.tensor(name.encode(), [size], GGMLType.I8, offset)
        offset += -(-size // 32) * 32
    path.write_bytes(bytes(header.pad()))
    os.truncate(path, len(header) + offset)


@pytest.mark.parametrize("gib", [5, 150])
def test_tensors_over_4_gib_and_files_over_100_gib(gib: int, tmp_path: Path) -> None:
    target = tmp_path / "large.gguf"
    size = gib << 30
    try:
        sparse_model(target, {"large": size, "after": 3})
    except OSError as error:
        pytest.skip(f"no sparse file of {gib} GiB here: {error}")
    with open(target, "r+b") as raw:
        raw.seek(-32, os.SEEK_END)
        raw.write(b"\1\2\3")
    with mmgguf.open(target) as f:
        assert f["large"].data.shape == (size,)
        assert f["large"].data[-1] == 0
        assert f["after"].data.tolist() == [1, 2, 3]
        assert f["large"][size - 2 :].tolist() == [0, 0]
    with mmgguf.open(target, storage="read") as f:
        assert f["after"].data.tolist() == [1, 2, 3]


# ---------------------------------------------------------------- splits


def write_split(folder: Path, **changes: Any) -> list[Path]:
    """Three shards; the first has no tensors.  `changes` maps a shard's number to a change of its metadata."""
    tensors: list[dict[str, Any]] = [
        {},
        {"a": np.arange(3, dtype=np.int8), "b": np.zeros(2, np.float32)},
        {"c": np.ones(5)},
    ]
    paths = [folder / f"model-{no:05d}-of-00003.gguf" for no in (1, 2, 3)]
    for i, target in enumerate(paths):
        metadata: dict[str, Any] = {
            "split.no": np.uint16(i), "split.count": np.uint16(3), "split.tensors.count": np.int32(3),
        }  # fmt: skip
        if i == 0:
            metadata |= {"general.architecture": "llama", "llama.block_count": 1}
        metadata |= changes.get(f"shard{i}", {})
        # Under a name that fits what it says, which is the only one that `write` takes.
        written = folder / f"written-{i + 1:05d}-of-{metadata['split.count']:05d}.gguf"
        mmgguf.write(
            written, {k: v for k, v in metadata.items() if v is not None}, tensors[i] | changes.get(f"tensors{i}", {})
        )
        written.rename(target)
    return paths


@STORAGES
@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_shards_path_opens_the_set(given: int, storage: Any, tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    with mmgguf.open(paths[given], storage=storage) as f:
        assert list(f) == ["a", "b", "c"]
        assert f.architecture == "llama"
        assert [shard.path for shard in f.shards] == [str(p) for p in paths]
        assert f["c"].path == str(paths[2])
        assert f["c"].data.tolist() == [1] * 5
        assert f["a"].data.tolist() == [0, 1, 2]
        assert f.nbytes == sum(p.stat().st_size for p in paths)
        assert "3 shards" in repr(f)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shard1": {"split.no": np.uint16(2)}}, r"00002-of-00003\.gguf: foreign shard: split\.no is 2, .* 1$"),
        ({"shard2": {"split.no": None}}, r"00003-of-00003\.gguf: foreign shard: split\.no is missing"),
        ({"shard1": {"split.count": np.uint16(4)}}, r"00002-of-00003\.gguf: foreign shard: split\.count is 4"),
        ({"shard1": {"general.architecture": "gemma"}}, r"00002-of.*foreign shard: general\.architecture is 'gemma'"),
        ({"shard2": {"split.tensors.count": np.int32(9)}}, r"00003-of.*split\.tensors\.count is 9, .* 3 tensors"),
        ({"tensors2": {"a": np.zeros(3)}}, r"split\.tensors\.count is 3, the shards have 4"),
        ({"shard0": {"split.count": np.uint16(2)}}, r"named as one of 3 shards, split\.count says 2"),
    ],
)
def test_shards_that_do_not_belong_together(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    paths = write_split(tmp_path, **changes)
    with pytest.raises(SplitError, match=match):
        mmgguf.open(paths[0])


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    total = {"split.tensors.count": np.int32(4)}
    paths = write_split(tmp_path, shard0=total, shard1=total, shard2=total, tensors2={"a": np.zeros(3)})
    with pytest.raises(
        SplitError, match=r"00003-of-00003\.gguf: duplicate tensor 'a', .*00002-of-00003\.gguf has it too"
    ):
        mmgguf.open(paths[0])


def test_missing_shards_and_other_names(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].unlink()
    with pytest.raises(SplitError, match=r"model-00002-of-00003\.gguf: missing; .*00003\.gguf is one shard of 3"):
        mmgguf.open(paths[2])
    paths[2].unlink()
    with pytest.raises(SplitError, match=r"model-00002-of-00003\.gguf and 1 more: missing"):
        mmgguf.open(paths[0])
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(SplitError, match=r"renamed\.gguf: one shard of 3 .*not named"):
        mmgguf.open(renamed)


@pytest.mark.parametrize("count", [0, 1])
def test_a_count_of_one_or_none_is_no_split(count: int, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    mmgguf.write(target, {"split.count": np.uint16(count)}, {"a": np.zeros(2)})
    with mmgguf.open(target) as f:
        assert list(f) == ["a"]


def test_a_read_is_completed_while_the_file_is_closed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(path.stat().st_size))
    with mmgguf.open(path) as f:
        expected = {name: t.data.tobytes() for name, t in f.items()}
    name = max(expected, key=lambda name: len(expected[name]))
    f = mmgguf.open(path, storage="read")
    numbers, read_at = [], memory.read_at

    def closing(descriptor: int, buffer: memoryview, offset: int) -> int:
        # What another thread may do just before the system is asked.
        f.close()
        numbers.append(int(descriptor))
        with open(other, "rb"):  # gets the lowest number that is free
            return read_at(descriptor, buffer, offset)

    monkeypatch.setattr(memory, "read_at", closing)
    assert f[name].data.tobytes() == expected[name]
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(numbers[0])
