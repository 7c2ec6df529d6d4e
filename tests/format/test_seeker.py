"""BufferedSeeker against plain slicing, over every kind of file object and buffer size."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgguf.errors import FormatError, TruncatedError
from mmgguf.format.seeker import BufferedSeeker

DATA = bytes(range(256)) * 20
BUFFER_SIZES = [0, 1, 7, 64, 4096, 1 << 20]


class CountingFile(io.BytesIO):
    """Counts the reads that reach the file."""

    reads = 0

    def readinto(self, buffer: Any) -> int:
        self.reads += 1
        return super().readinto(buffer)


class ReadOnlyReads:
    """A file-like object of the least kind: read, seek and tell, and seek gives nothing back."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.tell = self._file.tell

    def read(self, count: int = -1) -> bytes:
        return self._file.read(min(count, 5))  # short reads are allowed

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)


def files(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/seeker.bin", DATA)
    return {
        "raw": open(path, "rb", buffering=0),  # closed by the test
        "buffered": open(path, "rb"),
        "BytesIO": io.BytesIO(DATA),
        "fsspec": memory.open("/seeker.bin", "rb"),
        "fsspec-local": fsspec.open(str(path), "rb").open(),
        "least": ReadOnlyReads(DATA),
    }


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
@pytest.mark.parametrize("kind", ["raw", "buffered", "BytesIO", "fsspec", "fsspec-local", "least"])
def test_reads_and_seeks_over_any_file(kind: str, buffer_size: int, tmp_path: Path) -> None:
    opened = files(tmp_path)
    file = opened[kind]
    seeker = BufferedSeeker(file, buffer_size)
    assert (seeker.size, seeker.tell(), seeker.remaining) == (len(DATA), 0, len(DATA))
    assert seeker.read(10) == DATA[:10]
    assert seeker.read(0) == b""
    assert seeker.unpack(struct.Struct("<HI")) == struct.unpack("<HI", DATA[10:16])
    assert seeker.tell() == 16
    assert seeker.seek(-6, 1) == 10
    assert seeker.seek(-100, 2) == len(DATA) - 100
    assert seeker.read(100) == DATA[-100:]
    assert seeker.remaining == 0
    assert seeker.seek(300) == 300
    target = bytearray(4500)
    seeker.readinto(target)
    assert target == DATA[300:4800]
    assert seeker.seek(10**6) == 10**6
    assert seeker.remaining == 0
    with pytest.raises(TruncatedError):
        seeker.read(1)
    del seeker
    assert not getattr(file, "closed", False), "the file is the caller's"
    for other in opened.values():
        getattr(other, "close", lambda: None)()


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, "read"]), st.integers(-6000, 6000))), st.sampled_from(BUFFER_SIZES))
def test_any_walk_agrees_with_slicing(steps: list[tuple[Any, int]], buffer_size: int) -> None:
    seeker, position = BufferedSeeker(io.BytesIO(DATA), buffer_size), 0
    for step, number in steps:
        if step == "read":
            count = abs(number) % 700
            if position + count > len(DATA):
                if count:
                    with pytest.raises(TruncatedError):
                        seeker.read(count)
                seeker.seek(position)
                continue
            assert seeker.read(count) == DATA[position : position + count]
            position += count
        else:
            target = number + (0, position, len(DATA))[step]
            if target < 0:
                with pytest.raises(ValueError, match="negative"):
                    seeker.seek(number, step)
            else:
                assert seeker.seek(number, step) == target
                position = target
        assert seeker.tell() == position


def test_a_seek_inside_the_window_keeps_the_buffer() -> None:
    file = CountingFile(DATA)
    seeker = BufferedSeeker(file, 1024)
    seeker.read(10)
    assert file.reads == 1
    for offset, whence in [(1000, 0), (0, 0), (500, 1), (-400, 1), (1016 - len(DATA), 2)]:
        seeker.seek(offset, whence)
        seeker.read(8)
    assert file.reads == 1
    seeker.seek(1020)
    seeker.read(8)
    assert file.reads == 2


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
@pytest.mark.parametrize(
    ("position", "count", "there"),
    [(len(DATA) - 3, 4, 3), (len(DATA), 1, 0), (10, 1 << 62, len(DATA) - 10), (0, len(DATA) + 1, len(DATA))],
)
def test_an_error_says_where_how_much_and_how_much_there_was(
    position: int, count: int, there: int, buffer_size: int
) -> None:
    seeker = BufferedSeeker(io.BytesIO(DATA), buffer_size)
    seeker.seek(position)
    expected = f"^token: needs {count} bytes at byte {position}, {there} there"
    with pytest.raises(TruncatedError, match=expected):
        seeker.read(count, "token")
    with pytest.raises(TruncatedError, match="needs 8 bytes"):
        BufferedSeeker(io.BytesIO(DATA[:7]), buffer_size).unpack(struct.Struct("<Q"))


@pytest.mark.parametrize("buffer_size", [0, 1, 7, 65536])
def test_file_objects_that_do_not_keep_the_rules(buffer_size: int) -> None:
    class Odd:
        """Gives what it is told to."""

        def __init__(self, given: bytes | None) -> None:
            self.given = given

        def read(self, count: int) -> bytes | None:
            return self.given

        def seek(self, offset: int, whence: int = 0) -> int:
            return 1 << 20 if whence == 2 else offset

        def tell(self) -> int:
            return 0

    with pytest.raises(BlockingIOError, match="nothing to read yet"):
        BufferedSeeker(Odd(None), buffer_size).read(4)
    with pytest.raises(OSError, match="gave 100000 bytes where"):
        BufferedSeeker(Odd(bytes(100_000)), buffer_size).read(4)
    for seeker in (BufferedSeeker(io.BytesIO(DATA), buffer_size), BufferedSeeker(io.BytesIO(), buffer_size)):
        with pytest.raises(ValueError, match="must not be negative"):
            seeker.read(-1)


@pytest.mark.parametrize("buffer_size", [0, 4096])
def test_more_than_memory_holds(buffer_size: int) -> None:
    class Sparse(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            return 1 << 60 if whence == 2 else super().seek(offset, whence)

    with pytest.raises(FormatError, match="x: 1125899906842624 bytes at byte 0 are more than memory holds"):
        BufferedSeeker(Sparse(), buffer_size).read(1 << 50, "x")


def test_what_is_no_binary_file_is_refused() -> None:
    with pytest.raises(TypeError, match="binary"):
        BufferedSeeker(io.StringIO("GGUF"))
    with pytest.raises(TypeError, match="got int"):
        BufferedSeeker(3)
    with pytest.raises(ValueError, match="negative"):
        BufferedSeeker(io.BytesIO(), -1)

    class Pipe(io.RawIOBase):
        def seekable(self) -> bool:
            return False

        def read(self, count: int = -1) -> bytes:
            return b""

    with pytest.raises(OSError, match="seekable"):
        BufferedSeeker(Pipe())
