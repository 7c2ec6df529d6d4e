"""Bytes and file objects as sources."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import pickle
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.errors import ClosedError, FileChangedError, NotGGUFError, SplitError, TruncatedError
from mmgguf.storage.local import LocalFile, MappedFile, ReadFile
from mmgguf.storage.memory import FileObject, MemoryStorage

Opened = tuple[Any, type]


@pytest.fixture
def content(all_types: Path) -> bytes:
    return all_types.read_bytes()


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "inside/model.gguf")
    return zipfile.ZipFile(path.with_suffix(".zip")).open("inside/model.gguf")


def _gzipped(path: Path) -> Any:
    with gzip.open(path.with_suffix(".gz"), "wb") as file:
        file.write(path.read_bytes())
    return gzip.open(path.with_suffix(".gz"))


def _temporary(path: Path) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # closed by the test
    file.write(path.read_bytes())
    return file


def _spooled(path: Path) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(path.read_bytes())
    return file


def _deleted(path: Path) -> Any:
    file = path.open("rb")
    path.unlink()
    return file


class _Reading:
    """The least that a file object can be: no readinto, no seekable, seek gives nothing, short reads."""

    def __init__(self, path: Path) -> None:
        self._file = io.BytesIO(path.read_bytes())

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, 1000))

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _mmapped(path: Path) -> Any:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _fsspec(path: Path) -> Any:
    fsspec = pytest.importorskip("fsspec")
    return fsspec.filesystem("local").open(str(path), "rb")


SOURCES: dict[str, tuple[Callable[[Path], Any], type]] = {
    "bytes": (Path.read_bytes, MemoryStorage),
    "bytearray": (lambda path: bytearray(path.read_bytes()), MemoryStorage),
    "memoryview": (lambda path: memoryview(b"xx" + path.read_bytes())[2:], MemoryStorage),
    "array": (lambda path: np.fromfile(path, np.uint8), MemoryStorage),
    "mmap": (_mmapped, MemoryStorage),
    "BytesIO": (lambda path: io.BytesIO(path.read_bytes()), FileObject),
    "buffered file": (lambda path: path.open("rb"), MappedFile),
    "raw file": (lambda path: path.open("rb", buffering=0), MappedFile),
    "file for updating": (lambda path: path.open("r+b"), MappedFile),
    "deleted file": (_deleted, MappedFile),
    "temporary file": (_temporary, MappedFile),
    "spooled file": (_spooled, FileObject),
    "zip member": (_zipped, FileObject),
    "gzip file": (_gzipped, FileObject),
    "fsspec file": (_fsspec, FileObject),
    "least object": (_Reading, FileObject),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, all_types: Path, content: bytes) -> Iterator[Opened]:
    make, kind = SOURCES[request.param]
    with ExitStack() as stack:
        made = make(all_types)
        if hasattr(made, "close") and not isinstance(made, mmap.mmap):  # which its arrays keep open
            stack.callback(made.close)
        yield made, kind


def test_same_as_from_the_path(source: Opened, content: bytes) -> None:
    made, kind = source
    position = made.tell() if kind is MappedFile else None
    with mmgguf.open(content) as expected, mmgguf.open(made) as f:
        assert type(f.shards[0].file) is kind
        assert list(f) == list(expected)
        assert f.metadata == expected.metadata
        for name, tensor in f.items():
            assert tensor.data.tobytes() == expected[name].data.tobytes()
            assert not tensor.data.flags.writeable
            if tensor.ndim:
                assert tensor[:1].tobytes() == expected[name][:1].tobytes()
    if position is not None:
        assert made.tell() == position


def test_sources_stay_open_and_arrays_live_on(source: Opened) -> None:
    made, _ = source
    f = mmgguf.open(made)
    name = next(iter(f))
    tensor, array = f[name], f[name].data
    before = array.tobytes()
    f.close()
    assert array.tobytes() == before
    with pytest.raises(ClosedError):
        _ = tensor.data
    if hasattr(made, "closed"):
        assert not made.closed
        made.seek(0)


def test_buffers_are_not_copied(content: bytes) -> None:
    tensor = next(iter(mmgguf.open(content).values()))
    memory = np.frombuffer(content, np.uint8)
    assert np.shares_memory(tensor.data, memory)
    assert not np.shares_memory(next(iter(mmgguf.open(content, storage="read").values())).data, memory)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "BytesIO", "buffered file"])
def test_copy_on_write(kind: str, all_types: Path, content: bytes) -> None:
    made = SOURCES[kind][0](all_types)
    with mmgguf.open(made, mode="c") as f:
        array = f["F32"].data if "F32" in f else next(t for t in f.values() if t.layout.is_plain).data
        array.view(np.uint8)[...] = 255
    if hasattr(made, "close"):
        made.close()
    assert all_types.read_bytes() == content
    if isinstance(made, bytes | bytearray):
        assert bytes(made) == content


def test_storage_read_reads_real_files(all_types: Path) -> None:
    with all_types.open("rb") as file, mmgguf.open(file, storage="read") as f:
        assert type(f.shards[0].file) is ReadFile


@pytest.mark.parametrize("kind", ["bytes", "BytesIO", "gzip file"])
def test_what_cannot_be_mapped_says_so(kind: str, all_types: Path) -> None:
    made = SOURCES[kind][0](all_types)
    with pytest.raises(ValueError, match=r"storage='mmap' maps files of this machine"):
        mmgguf.open(made, storage="mmap")
    with pytest.raises(ValueError, match=r"lock=True needs a file that is mapped"):
        mmgguf.open(made, lock=True)
    if hasattr(made, "close"):
        made.close()


REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("text file", lambda: io.StringIO("GGUF"), TypeError, "mode 'rb'"),
    ("number", lambda: 5, TypeError, "binary file object or a GGUFFile is needed, got int"),
    ("nothing", lambda: None, TypeError, "got NoneType"),
    ("no seek", lambda: type("Reader", (), {"read": lambda self, n: b""})(), TypeError, "got Reader"),
    ("empty", lambda: b"", TruncatedError, "<bytes of 0 bytes>: magic: needs 4 bytes, file has 0"),
    ("other bytes", lambda: b"model.gguf", NotGGUFError, "begins with b'mode'"),
    ("other file object", lambda: io.BytesIO(b"PK\3\4 and so on"), NotGGUFError, "<BytesIO>: not a GGUF file"),
    ("options", lambda: b"GGUF", TruncatedError, "version"),
]


@pytest.mark.parametrize(("make", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mmgguf.open(make())


def test_pipes_are_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as file, pytest.raises(io.UnsupportedOperation, match="seekable"):
        mmgguf.open(file)


def test_options_need_a_url(all_types: Path) -> None:
    for source in (all_types, str(all_types), b"GGUF"):
        with pytest.raises(ValueError, match="storage_options are for URLs"):
            mmgguf.open(source, storage_options={"anon": True})


def test_a_file_object_that_is_closed_or_cut_off(content: bytes) -> None:
    file = io.BytesIO(content)
    f = mmgguf.open(file)
    name = max(f, key=lambda name: f[name].file_offset)
    file.truncate(len(content) - 8 - f.alignment)
    with pytest.raises(FileChangedError, match="cut off"):
        _ = f[name].data
    file.close()
    with pytest.raises(ClosedError, match="file object was closed"):
        _ = f[name].data


def test_threads_share_a_file_object(content: bytes) -> None:
    f = mmgguf.open(io.BytesIO(content))
    expected = {name: tensor.data.tobytes() for name, tensor in mmgguf.open(content).items()}
    wrong: list[str] = []

    def read() -> None:
        wrong.extend(name for _ in range(5) for name, tensor in f.items() if tensor.data.tobytes() != expected[name])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickling(all_types: Path, content: bytes) -> None:
    for source in (content, io.BytesIO(content)):
        f = mmgguf.open(source)
        for thing in (f, next(iter(f.values()))):
            with pytest.raises(TypeError, match="in this process only"):
                pickle.dumps(thing)
    with all_types.open("rb") as file:
        f = mmgguf.open(file)
        assert list(pickle.loads(pickle.dumps(f))) == list(f)
    file = _deleted(all_types)
    with pytest.raises(TypeError, match="in this process only"):
        pickle.dumps(mmgguf.open(file))
    file.close()


def test_a_shard_without_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    metadata = {"split.no": np.uint16(0), "split.count": np.uint16(2), "split.tensors.count": np.int32(1)}
    mmgguf.write(path, metadata, {"a": np.zeros(4, np.float32)})
    with pytest.raises(SplitError, match="open it by path or URL"):
        mmgguf.open(path.read_bytes())
    with path.open("rb") as file, pytest.raises(SplitError, match=r"m-00002-of-00002\.gguf: missing"):
        mmgguf.open(file)
    assert len(mmgguf.read_header(path.read_bytes()).tensors) == 1


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "buffered file", "BytesIO", "open file"])
def test_read_header(kind: str, all_types: Path) -> None:
    made: Any
    if kind in ("path", "str"):
        made = all_types if kind == "path" else str(all_types)
    else:
        made = mmgguf.open(all_types) if kind == "open file" else SOURCES[kind][0](all_types)
    header = mmgguf.read_header(made)
    with mmgguf.open(all_types) as f:
        assert header.metadata == f.metadata
        assert list(header.tensors) == list(f)
    if hasattr(made, "close"):
        made.close()
    assert all(not isinstance(value, memoryview) for value in header.metadata.values())


def test_read_header_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(TruncatedError, match=r"model\.gguf: version"):
        mmgguf.read_header(path)


def test_writes_of_the_caller_are_flushed(tmp_path: Path, content: bytes) -> None:
    with (tmp_path / "new.gguf").open("w+b") as file:
        file.write(content)
        with mmgguf.open(file) as f:
            assert isinstance(f.shards[0].file, LocalFile)
            assert f.nbytes == len(content)
