"""Broken and hostile files: a clear error, bounded memory, nothing misread."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGUFError
from mmgguf.errors import FileChangedError, FormatError, SplitError, TruncatedError, UnknownTypeError

from .support import touch
from .support.build import F32, FLOAT32, INT32, Q8_0, STRING, UINT16, UINT32, UINT64, Build, small
from .support.hostile_cases import ORDERS, TABLE, Hostile

STORAGES = ("mmap", "read")
VERSIONS = (1, 2, 3)


@pytest.fixture(autouse=True)
def _without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGGUF_BACKEND", "numpy")


def refused(data: bytes | Path, error: type[GGUFError], match: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        mmgguf.open(data, **options) if isinstance(data, Path) else mmgguf.read_header(io.BytesIO(data), **options)
    assert type(caught.value) is error
    message = touch.bounded(str(caught.value))
    if isinstance(data, Path):
        assert message.startswith(f"{data}: ")
        message = message.removeprefix(f"{data}: ")
    assert re.search(match, message), message


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_read_header(row: Hostile) -> None:
    for example in row.examples():
        for buffer_size in (64 * 1024, 0):
            if row.error is not None:
                refused(example, row.error, row.match, buffer_size=buffer_size)
                continue
            header = mmgguf.read_header(io.BytesIO(example), buffer_size=buffer_size)
            touch.header(header)
            if row.check is not None:
                row.check(header)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_open(row: Hostile, tmp_path: Path) -> None:
    path = tmp_path / "case.gguf"
    for example in row.examples():
        path.write_bytes(example)
        for storage in STORAGES:
            if row.error is not None:
                refused(path, row.error, row.match, storage=storage)
                continue
            with mmgguf.open(path, storage=storage) as f:
                touch.file(f)
                if row.check is not None:
                    row.check(f.shards[0].header)


def test_every_case_has_its_own_name() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE)


def test_refusing_costs_no_memory() -> None:
    """Counts and lengths of up to 2^64 are refused before anything is allocated."""
    tracemalloc.start()
    try:
        for row in TABLE:
            for example in row.examples() if row.error is not None else ():
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                with pytest.raises(GGUFError):
                    mmgguf.read_header(io.BytesIO(example))
                peak = tracemalloc.get_traced_memory()[1] - before
                # The largest are the seeker's buffer, the window for strings, and names of the file's own length.
                assert peak < 640 * 1024 + 12 * len(example), f"{row.id}: {peak} bytes"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_cut_of_a_file(version: int, order: Any, tmp_path: Path) -> None:
    b = small(version, order)
    data = bytes(b)
    end = len(data) - 20  # the last tensor has 12 bytes and 20 of padding
    path = tmp_path / "cut.gguf"
    for cut in range(len(data)):
        if cut >= end:
            header = mmgguf.read_header(io.BytesIO(data[:cut]))
            assert list(header.tensors) == ["blk.0.w", "out"]
            continue
        refused(data[:cut], TruncatedError, r"(needs?|file has) .*\d+.*download incomplete\?")
        if cut % 7 == 0 or cut > end - 4:
            path.write_bytes(data[:cut])
            for storage in STORAGES:
                refused(path, TruncatedError, r"(needs?|file has) .*\d+.*download incomplete\?", storage=storage)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_file_that_is_cut_is_read_right(version: int, order: Any, storage: Any, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(bytes(small(version, order)))
    with mmgguf.open(path, storage=storage) as f:
        touch.file(f)
        assert f["blk.0.w"].data["d"].astype("f4").ravel().tolist() == [0.5, 2.0]
        assert f["blk.0.w"].data["qs"].ravel().tolist() == [*range(32), *range(-32, 0)]
        assert f["out"].data.tolist() == [1, 2, 3]
        assert list(f.metadata["tokenizer.ggml.tokens"]) == ["a", "", "hello", "x" * 300]
        assert f.metadata["tokenizer.ggml.scores"].tolist() == [0.5, -1, 2, 0]
        assert f.config.get_int("block_count") == 1


def test_a_tensor_without_dimensions_is_dequantized() -> None:
    b = Build().start(1, 0).tensor(b"scalar", [], F32, 0).pad().scalar(FLOAT32, 2.5)
    with NamedTemporaryFile(suffix=".gguf") as file:
        file.write(bytes(b))
        file.flush()
        with mmgguf.open(file.name) as f:
            for dtype in (np.float32, np.float16, np.float64):
                values = f["scalar"].dequantize(dtype)
                assert (values.shape, values.dtype, float(values)) == ((), dtype, 2.5)
            out = np.zeros((), np.float32)
            assert f["scalar"].dequantize(out=out) is out
            assert out == 2.5


def test_many_little_arrays_are_not_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each array looks a little ahead in the buffer, not through all of it."""
    b = Build().start(0, 5000)
    for i in range(5000):
        b.texts(b"%d" % i, [b"", b"x"] * 5)
    looked_at = 0
    readinto = mmgguf.format.seeker.BufferedSeeker.readinto

    def counting(self: mmgguf.format.seeker.BufferedSeeker, buffer: Any, what: str = "") -> None:
        nonlocal looked_at
        looked_at += len(buffer)
        readinto(self, buffer, what)

    monkeypatch.setattr(mmgguf.format.seeker.BufferedSeeker, "readinto", counting)
    header = mmgguf.read_header(io.BytesIO(bytes(b)))
    assert list(header.metadata["4999"]) == ["", "x"] * 5
    assert 0 < looked_at < 4 * len(b)


# What a file says of itself, behind a typed getter.


def with_pairs(path: Path, fill: Callable[[Build], object], pairs: int = 1) -> Path:
    b = Build().start(1, pairs)
    fill(b)
    path.write_bytes(bytes(b.tensor(b"w", [2], F32, 0).data(bytes(8))))
    return path


@pytest.mark.parametrize(
    ("fill", "use", "match"),
    [
        (
            lambda b: b.number(b"general.architecture", UINT32, 5),
            lambda f: f.architecture,
            "general.architecture: a string was asked for, got the int 5",
        ),
        (
            lambda b: b.text(b"general.file_type", b"\x1b[31mQ4_0"),
            lambda f: f.file_type,
            r"general.file_type: an integer was asked for, got the str '\\x1b\[31mQ4_0'",
        ),
        (
            lambda b: b.text(b"k", b"v" * 100_000),
            lambda f: f.metadata.get_float("k"),
            r"k: a float was asked for, got the str 'v{1,60}$",
        ),
        (
            lambda b: b.texts(b"k", [b"1"] * 2000),
            lambda f: f.metadata.get_int("k"),
            "k: an integer was asked for, got an array of 2000 strings",
        ),
        (
            lambda b: b.number(b"k" * 70_000, UINT32, 1),
            lambda f: f.metadata.get_bool("k" * 70_000),
            r"'k{100}'… \(70000 characters\): a bool was asked for, got the int 1",
        ),
        (
            lambda b: b.text(b"general.architecture", b"\x1b]0;" + b"a" * 70_000),
            lambda f: f.config["block_count"],
            r"no metadata key '\\x1b\]0;a{96}'… \(70016 characters\)",
        ),
    ],
    ids="int-for-str str-for-int str-for-float array-for-int long-key long-architecture".split(),  # noqa: SIM905
)
def test_metadata_of_the_wrong_type(fill: Any, use: Any, match: str, tmp_path: Path) -> None:
    with mmgguf.open(with_pairs(tmp_path / "a.gguf", fill)) as f:
        touch.file(f)
        with pytest.raises(GGUFError) as caught:
            use(f)
        assert re.search(match, touch.bounded(str(caught.value))), str(caught.value)


# Splits.


def shard(path: Path, no: int, count: Any, name: bytes = b"", type_: int = UINT16, total: int | None = None) -> Path:
    pairs = 2 + (total is not None)
    b = Build().start(1, pairs).number(b"split.no", UINT16, no)
    if type_ == STRING:
        b.text(b"split.count", count)
    else:
        b.number(b"split.count", type_, count)
    if total is not None:
        b.number(b"split.tensors.count", INT32, total)
    path.write_bytes(bytes(b.tensor(name or b"w%d" % no, [2], F32, 0).data(bytes(8))))
    return path


def names(folder: Path, count: int, of: int | None = None) -> list[Path]:
    return [folder / f"m-{no:05d}-of-{of or count:05d}.gguf" for no in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "type_", "match"),
    [
        (3, UINT16, r"named as one of 2 shards, split\.count says 3"),
        (65535, UINT16, r"named as one of 2 shards, split\.count says 65535"),
        ((1 << 64) - 1, UINT64, "named as one of 2 shards, split.count says 18446744073709551615"),
    ],
)
def test_split_count_that_the_name_contradicts(count: int, type_: int, match: str, tmp_path: Path) -> None:
    paths = names(tmp_path, 2)
    for no, path in enumerate(paths):
        shard(path, no, count, type_=type_)
    for path in paths:
        refused(path, SplitError, match)


@pytest.mark.parametrize("count", [0, 1])
def test_split_count_of_one_or_none_is_a_file_of_its_own(count: int, tmp_path: Path) -> None:
    with mmgguf.open(shard(tmp_path / "m-00001-of-00002.gguf", 0, count)) as f:
        assert list(f) == ["w0"]


def test_split_count_of_a_wrong_type(tmp_path: Path) -> None:
    path = shard(tmp_path / "m-00001-of-00002.gguf", 0, b"2", type_=STRING)
    refused(path, mmgguf.errors.MetadataTypeError, r"split\.count: an integer was asked for, got the str '2'")


def test_all_shards_are_missing_but_one(tmp_path: Path) -> None:
    (tmp_path / "m-00007-of-65535.gguf").write_bytes(shard(tmp_path / "x", 6, 65535).read_bytes())
    with pytest.raises(SplitError, match=r"m-00001-of-65535\.gguf and at least 99 more: missing"):
        mmgguf.open(tmp_path / "m-00007-of-65535.gguf")


@pytest.mark.parametrize("no", ["00000", "00003", "٠٠٠٠١"])
def test_a_shard_number_that_does_not_exist(no: str, tmp_path: Path) -> None:
    """Neither counted from 1 nor in ASCII: it must not be swapped for the shards that are named right."""
    for i, path in enumerate(names(tmp_path, 2)):
        shard(path, i, 2)
    refused(shard(tmp_path / f"m-{no}-of-00002.gguf", 0, 2), SplitError, "named|not named")


def _named_shard(no: int, architecture: bytes | None, b: Build | None = None) -> Build:
    b = (
        (b or Build())
        .start(1, 2 + bool(architecture))
        .number(b"split.no", UINT16, no)
        .number(b"split.count", UINT16, 2)
    )
    if architecture is not None:
        b.text(b"general.architecture", architecture)
    return b.tensor(b"w%d" % no, [2], F32, 0).data(bytes(8))


def _foreign(paths: list[Path], what: str) -> str:
    """Make the second of two shards foreign; the pattern of the message."""
    match what:
        case "number":
            shard(paths[1], 0, 2, b"w1")
            return "foreign shard: split.no is 0, the file's name asks for 1"
        case "count":
            shard(paths[1], 1, 3)
            return "foreign shard: split.count is 3, the file's name asks for 2"
        case "tensor":
            shard(paths[1], 1, 2, b"w0")
            return "duplicate tensor 'w0', "
        case "total":
            shard(paths[1], 1, 2, total=3)
            return "split.tensors.count is 3, the shards have 2 tensors together"
        case "byte order":
            b = Build(3, "big").start(1, 2).number(b"split.no", UINT16, 1).number(b"split.count", UINT16, 2)
            paths[1].write_bytes(bytes(b.tensor(b"w1", [2], F32, 0).data(bytes(8))))
            return "foreign shard: byte_order big, "
        case "version":
            paths[1].write_bytes(bytes(_named_shard(1, None, Build(2))))
            return "foreign shard: version 2, "
        case "architecture":
            for no, name in enumerate((b"llama", b"other")):
                paths[no].write_bytes(bytes(_named_shard(no, name)))
            return "foreign shard: general.architecture is 'other', "
        case "type of the architecture":
            b = Build().start(1, 3).number(b"split.no", UINT16, 1).number(b"split.count", UINT16, 2)
            b.numbers(b"general.architecture", UINT32, [1, 2]).tensor(b"w1", [2], F32, 0)
            paths[1].write_bytes(bytes(b.data(bytes(8))))
            return "general.architecture: a string was asked for, got an array of 2 uint32"
        case "no split":
            paths[1].write_bytes(bytes(small()))
            return "foreign shard: split.no is missing"
        case _:
            paths[1].write_bytes(bytes(small())[:100])
            return "download incomplete"


@pytest.mark.parametrize(
    "what",
    [
        "number",
        "count",
        "tensor",
        "total",
        "byte order",
        "version",
        "architecture",
        "type of the architecture",
        "no split",
        "cut",
    ],
)
def test_shards_that_disagree(what: str, tmp_path: Path) -> None:
    paths = names(tmp_path, 2)
    for no, path in enumerate(paths):
        shard(path, no, 2)
    with mmgguf.open(paths[1]) as f:
        assert list(f) == ["w0", "w1"]
    match = _foreign(paths, what)
    with pytest.raises(GGUFError, match=match):
        mmgguf.open(paths[0])


# Numbers that are large where nothing is.


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("ne", "type_", "key", "shape"),
    [
        ([1 << 50, 0], Q8_0, slice(None), (0, 1 << 50)),
        ([1 << 50, 0], Q8_0, (slice(None), slice(3, 40)), (0, 37)),
        ([1 << 50, 0], Q8_0, slice(5, 1, -1), (0, 1 << 50)),
        ([0, 1 << 50], F32, slice(None), (1 << 50, 0)),
        ([0, 1 << 50], F32, slice(None, None, -2), (1 << 49, 0)),
    ],
)
def test_empty_tensors_of_large_dimensions(
    ne: list[int], type_: int, key: Any, shape: Any, storage: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(Build().start(1, 0).tensor(b"w", ne, type_, 0)))
    with mmgguf.open(path, storage=storage) as f:
        assert f["w"][key].shape == shape


def test_the_length_of_what_is_only_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(Build().start(1, 0).tensor(b"w", [1 << 63], 99, 0)))
    with mmgguf.open(path) as f, pytest.raises(UnknownTypeError):
        len(f["w"])


@pytest.mark.parametrize("what", ["key", "value", "name"])
def test_a_sparse_file_makes_nobody_allocate_terabytes(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    size = struct.pack("<Q", 1 << 42)
    head = bytes(Build().start(0, 1)) if what != "name" else bytes(Build().start(1, 0))
    path.write_bytes(head + (struct.pack("<Q", 1) + b"k" + struct.pack("<I", 8) if what == "value" else b"") + size)
    try:
        os.truncate(path, 1 << 43)
    except OSError:
        pytest.skip("no sparse files of 8 TiB here")
    with pytest.raises(FormatError, match=r"of 4398046511104 bytes.*at most 1073741824"):
        mmgguf.open(path)
    with path.open("rb") as file, pytest.raises(FormatError, match=r"at most 1073741824"):
        mmgguf.read_header(file)


# Files that change.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of a few pages: two tensors of Q8_0 and F32, and strings."""
    b = Build().start(2, 1).texts(b"words", [b"word%d" % i for i in range(3000)])
    b.tensor(b"q", [32, 512], Q8_0, 0).tensor(b"f", [8192], F32, 512 * 34)
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(b.data(bytes(512 * 34), np.arange(8192, dtype="<f4").tobytes())))
    return path


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("change", [-1, -20_000, 1, 4096])
def test_a_file_that_shrinks_or_grows(storage: Any, change: int, model: Path) -> None:
    with mmgguf.open(model, storage=storage) as f:
        os.truncate(model, model.stat().st_size + change)
        touched = f.resident if storage == "read" else lambda: f.prefetch(wait=True)
        for use in (
            lambda: f["f"].data,
            lambda: f["q"].dequantize(),
            lambda: f.metadata["words"],
            lambda: f["q"][0],
            touched,
        ):
            with pytest.raises(FileChangedError, match=r"had \d+ bytes when it was opened, has \d+ now: open it again"):
                use()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("step", ["header", "map"])
def test_a_file_that_shrinks_while_it_is_opened(
    storage: Any, step: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the header and the mapping there is a moment, too."""
    import mmgguf.shard as module
    import mmgguf.storage.local as memory

    if step == "header":
        parse = module.parse_header

        def after(*args: Any, **options: Any) -> Any:
            header = parse(*args, **options)
            os.truncate(model, 30_000)
            return header

        monkeypatch.setattr(module, "parse_header", after)
    else:
        if storage == "read":
            return
        fstat = os.fstat

        def stale(descriptor: int) -> os.stat_result:
            result = fstat(descriptor)
            if sys._getframe(1).f_code.co_qualname == "LocalFile.__init__":
                os.truncate(model, 0)
            return result

        monkeypatch.setattr(memory.os, "fstat", stale)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with pytest.raises(FileChangedError, match=r"when it was opened, has 30000 now|was cut off after it was"):
        mmgguf.open(model, storage=storage)
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_that_is_replaced(storage: Any, model: Path) -> None:
    """By a rename: what was opened stays what it was."""
    with mmgguf.open(model, storage=storage) as f:
        other = model.with_name("other.gguf")
        other.write_bytes(bytes(small()))
        os.replace(other, model)
        assert f["f"].data[-1] == 8191
        assert f.metadata["words"][2999] == "word2999"
        touch.file(f)
    with mmgguf.open(model, storage=storage) as f:
        assert list(f) == ["blk.0.w", "out"]


def test_read_storage_notices_a_cut_in_the_middle_of_a_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmgguf.open(model, storage="read") as f:
        monkeypatch.setattr(type(f.shards[0].file), "require_unchanged", lambda self: os.truncate(model, 30_000))
        with pytest.raises(FileChangedError, match=r"needs 32768 bytes at byte \d+, \d+ there: the file was cut off"):
            _ = f["f"].data


@pytest.mark.parametrize("storage", STORAGES)
def test_strings_that_are_overwritten(storage: Any, model: Path) -> None:
    """The same size, other bytes: the chain of lengths is walked again, within bounds, and does not fit."""
    with mmgguf.open(model, storage=storage) as f:
        info = f.metadata.array_info("words")
        assert info is not None
        with model.open("r+b") as file:
            file.seek(info.offset)
            file.write(b"\xff" * 64)
        with pytest.raises(FileChangedError, match="array of 3000 strings: its bytes changed since"):
            list(f.metadata["words"])


TRUNCATED_UNDER_A_VIEW = """
import mmgguf, os, sys
path, storage = sys.argv[1:]
with mmgguf.open(path, storage=storage) as f:
    array = f["f"].data
    assert array[-1] == 8191
    os.truncate(path, 4096)
    print("touching", flush=True)
    print(array[-1], flush=True)
    try:
        f["f"].data
    except mmgguf.errors.FileChangedError:
        print("noticed", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not truncate a mapped file")
@pytest.mark.parametrize("storage", STORAGES)
def test_a_view_of_lost_pages_ends_the_process(storage: str, model: Path) -> None:
    """The one thing that mapping cannot do; ``storage="read"`` is there for it."""
    command = [sys.executable, "-c", TRUNCATED_UNDER_A_VIEW, str(model), storage]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(mmgguf.__file__).parents[1]),
    }
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    if storage == "read":
        assert (result.returncode, result.stdout.split()) == (0, ["touching", "8191.0", "noticed"])
    else:
        assert result.returncode < 0, result
        assert result.stdout.split() == ["touching"]


# Paths that are no files.


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _chain(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.skipif(os.name != "posix", reason="POSIX has these kinds of files")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (_folder, IsADirectoryError, "Is a directory"),
        (_fifo, OSError, "Not a regular file"),
        (_loop, OSError, "Too many levels of symbolic links"),
        (_chain, OSError, "Not a regular file"),
        (lambda p: Path("/dev/null"), OSError, "Not a regular file"),
        (lambda p: Path("/dev/zero"), OSError, "Not a regular file"),
        (lambda p: p, FileNotFoundError, "No such file"),
        (lambda p: Path(f"{p}/below"), FileNotFoundError, "No such file"),
        (lambda p: Path("x" * 300), OSError, "File name too long"),
        (lambda p: f"{p}\0.gguf", FileNotFoundError, "No such file"),
        (lambda p: f"{p}\ud800.gguf", FileNotFoundError, "No such file"),
    ],
    ids=[
        "directory",
        "fifo",
        "loop",
        "link-to-device",
        "null",
        "zero",
        "missing",
        "no-folder",
        "too-long",
        "nul",
        "surrogate",
    ],
)
def test_paths_that_are_no_files(make: Any, error: type[OSError], match: str, storage: Any, tmp_path: Path) -> None:
    with pytest.raises(error, match=match) as caught:
        mmgguf.open(make(tmp_path / "x.gguf"), storage=storage)
    assert not isinstance(caught.value, GGUFError)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX")
@pytest.mark.parametrize("storage", STORAGES)
def test_a_path_that_is_not_utf8(storage: Any, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9-\xff.gguf"
    Path(os.fsdecode(path)).write_bytes(bytes(small()))
    for given in (os.fsdecode(path), Path(os.fsdecode(path))):
        with mmgguf.open(given, storage=storage) as f:
            touch.metadata(f.metadata)
            assert f["out"].data[1] == 2


UNREADABLE = """
import mmgguf, os, sys
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    mmgguf.open("model.gguf", storage=sys.argv[1])
except PermissionError as error:
    print("refused", error.errno)
"""


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
@pytest.mark.parametrize("storage", STORAGES)
def test_an_unreadable_file(storage: str, model: Path) -> None:
    """In a process that gives up root's rights, where it has them."""
    model.chmod(0)
    script = textwrap.dedent(UNREADABLE)
    environment = {**os.environ, "PYTHONPATH": str(Path(mmgguf.__file__).parents[1])}
    command = [sys.executable, "-c", script, storage]
    result = subprocess.run(
        command, cwd=model.parent, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert result.stdout.split() == ["refused", "13"], result
