"""Bytes of this process as a storage: buffers, and binary file objects of any kind.

A buffer (bytes, bytearray, memoryview, mmap, an array of numpy) is used without a copy, and kept alive by the arrays.
A file of the operating system is opened again through its descriptor, so that it is mapped as by its path and the
caller's position stays where it was.  Any other seekable object is read, one range at a time, under a lock; it stays
open, and the caller's.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, FileChangedError, shown
from .base import Mode, Shape, Storage, StorageKind
from .descriptors import Descriptor, open_descriptor
from .local import LOCAL_KINDS, LocalFile

__all__ = ["FileObject", "MemoryStorage", "is_buffer", "open_object"]


class MemoryStorage(Storage):
    """Arrays are views of a buffer; with ``mode="c"`` copies.

    Parameters
    ----------
    buffer : bytes-like
        The file's content, contiguous.  Whoever changes it changes the arrays.
    """

    is_memory = True
    __slots__ = ("_base",)

    def __init__(self, buffer: Any, mode: Mode) -> None:
        view = memoryview(buffer)
        base = np.frombuffer(view.cast("B"), np.uint8) if view.nbytes else np.empty(0, np.uint8)
        base.flags.writeable = False
        super().__init__(f"<{type(buffer).__name__} of {len(base)} bytes>", mode, len(base))
        self._base: npt.NDArray[np.uint8] | None = base

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        base = self._base
        if base is None:
            raise ClosedError(f"{self.path}: the file is closed")
        # An empty tensor may lie past the last byte, in padding that was left out; numpy takes no such offset.
        view = np.ndarray(shape, dtype, base, min(offset, len(base)))
        return view.copy() if self.mode == "c" else view

    def reader(self) -> Any:
        if self._base is None:
            raise ClosedError(f"{self.path}: the file is closed")
        return _BufferReader(self._base.data)

    def resident(self, offset: int, nbytes: int) -> int:
        return nbytes

    def close(self) -> None:
        self._base = None


class _BufferReader:
    """A file object over a buffer; `io.BytesIO` would copy it."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._position = 0

    def read(self, count: int) -> bytes:
        data = self._buffer[self._position : self._position + count].tobytes()
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self._buffer[self._position : self._position + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, len(self._buffer))[whence]
        return self._position

    def tell(self) -> int:
        return self._position


class FileObject(Storage):
    """Arrays are read from a file object into fresh memory, each time that they are asked for.

    Parameters
    ----------
    file : binary file object
        With ``read`` or ``readinto``, ``seek`` and ``tell``.  Its first byte is the file's; its position is undefined
        from now on, and it must not be used by others while an array is read.

    Raises
    ------
    TypeError
        A text file, or no file object at all.
    io.UnsupportedOperation
        It cannot seek.
    """

    __slots__ = ("_file", "_lock")

    def __init__(self, file: Any, mode: Mode) -> None:
        if isinstance(file, io.TextIOBase):
            raise TypeError("a binary file is needed, got a text file: open it with mode 'rb'")
        if not all(hasattr(file, name) for name in ("read", "seek", "tell")):
            kinds = "a path, a URL, bytes, a seekable binary file object or a GGUFFile"
            raise TypeError(f"{kinds} is needed, got {type(file).__name__}")
        seekable = getattr(file, "seekable", None)
        if seekable is not None and not seekable():
            raise io.UnsupportedOperation("a seekable file is needed; read a pipe or socket into io.BytesIO first")
        name = getattr(file, "name", None)
        path = f"<{type(file).__name__}{f' {shown(name)}' if isinstance(name, str) else ''}>"
        size = file.seek(0, os.SEEK_END)
        super().__init__(path, mode, int(file.tell() if size is None else size))
        self._file: Any = file
        self._lock = threading.Lock()

    def _open_file(self) -> Any:
        file = self._file
        if file is None:
            raise ClosedError(f"{self.path}: the file is closed")
        if getattr(file, "closed", False):
            raise ClosedError(f"{self.path}: the file object was closed before the last array was read from it")
        return file

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        file = self._open_file()
        array = np.empty(shape, dtype)
        if array.size:
            buffer = array.reshape(-1).view(np.uint8).data
            with self._lock:
                done = _read_at(file, offset, buffer)
            if done != len(buffer):
                raise FileChangedError(
                    f"{self.path}: needs {len(buffer)} bytes at byte {offset}, {done} there: "
                    "the file was cut off after it was opened"
                )
        array.flags.writeable = self.mode == "c"
        return array

    def reader(self) -> Any:
        file = self._open_file()
        file.seek(0)
        return file

    def close(self) -> None:
        """Drop the reference to the file object, which stays open and belongs to the caller."""
        self._file = None


def _read_at(file: Any, offset: int, buffer: memoryview) -> int:
    """Fill a buffer from a file object, and tell how much there was."""
    file.seek(offset)
    readinto = getattr(file, "readinto", None)
    done = 0
    while done < len(buffer):
        if readinto is not None:
            count = readinto(buffer[done:])
        else:
            data = file.read(min(len(buffer) - done, 1 << 24))
            count = None if data is None else len(data)
        if not count:  # at the end, or a non-blocking one that has nothing
            break
        if count > len(buffer) - done:
            raise OSError(f"the file object gave {count} bytes where {len(buffer) - done} were asked for")
        if readinto is None:
            buffer[done : done + count] = data
        done += count
    return done


# ---------------------------------------------------------------- opening


def is_buffer(source: Any) -> bool:
    """Whether a source has the buffer protocol, and so holds the content itself."""
    try:
        memoryview(source).release()
    except TypeError:
        return False
    return True


def open_object(source: Any, kind: StorageKind | None, mode: Mode) -> Storage:
    """The storage over bytes or a file object.

    Raises
    ------
    ValueError
        ``kind="mmap"``, for something that cannot be mapped.
    TypeError, io.UnsupportedOperation
        As `FileObject`.
    """
    if (file := _as_local(source, kind, mode)) is not None:
        return file
    if kind == "mmap":
        what = f"a {type(source).__name__}"
        raise ValueError(f"storage='mmap' maps files of this machine, and {what} is none: leave it out to read {what}")
    if is_buffer(source):
        return MemoryStorage(source, mode) if kind is None else FileObject(io.BytesIO(source), mode)
    return FileObject(source, mode)


def _as_local(source: Any, kind: StorageKind | None, mode: Mode) -> LocalFile | None:
    """A real file's storage, over a descriptor of its own; None for any other object."""
    # Exactly these: a file that decompresses has the descriptor of what is compressed, and a subclass may do anything.
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and type(source) is tempfile._TemporaryFileWrapper:
        source = source.file
    if type(source) not in (io.BufferedReader, io.BufferedRandom, io.FileIO):
        return None
    raw = source if type(source) is io.FileIO else source.raw
    if type(raw) is not io.FileIO or not raw.readable():
        return None
    if raw.writable():
        source.flush()
    number, name = raw.fileno(), raw.name
    path = os.fsdecode(name) if isinstance(name, str | bytes) else f"<file descriptor {number}>"
    named = path if isinstance(name, str | bytes) else None
    # Not a duplicate, which would share the caller's position.
    for where in (f"/proc/self/fd/{number}", named):
        descriptor = None if where is None else _same(where, number)
        if descriptor is not None:
            findable = named is not None and _is_same(named, number)
            return LOCAL_KINDS[kind](path, mode, descriptor, findable)
    return None


def _same(path: str, number: int) -> Descriptor | None:
    """A new descriptor of the file that is open as `number`, if `path` leads there."""
    try:
        descriptor = open_descriptor(path)
    except OSError:
        return None
    return descriptor if os.path.samestat(os.fstat(descriptor), os.fstat(number)) else None


def _is_same(path: str, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except (OSError, ValueError):
        return False
