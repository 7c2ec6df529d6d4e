"""One file of a model as memory: mapped, or read on request.

Lifetimes.  `MappedFile` makes one read-only uint8 array over the whole mapping with `np.frombuffer`, and everything
handed out is a view of that array.  A view keeps the mapping alive, so closing never pulls memory from under it, and
the mapping goes away with the last view.  Two shorter ways are traps: arrays made with ``np.ndarray(buffer=mmap)`` do
not hold the mapping, and crash the interpreter after `mmap.close`; `np.memmap` runs Python code on every slice.

What mapping cannot give is safety from another process that truncates the file: touching the lost pages ends the
process with SIGBUS.  Each access compares the file's size with the one at opening, which catches a file that has
already changed; `ReadFile` turns a change at any time into an exception.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import ClosedError, FileChangedError

__all__ = ["Backend", "MappedFile", "Mode", "ReadFile", "StorageFile", "open_descriptor"]

Backend = Literal["mmap", "read"]
Mode = Literal["r", "c"]
Shape = tuple[int, ...]


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading and give its descriptor.

    Raises
    ------
    OSError
        What the system says; and for a directory, pipe or device, at once instead of waiting for a writer.
    """
    name = os.fspath(path)
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    # A pipe is opened without waiting for its other end, and a terminal without becoming ours.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(name, flags)
    except ValueError:  # a NUL, or a character that file names cannot have
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        raise OSError(errno.EINVAL, "Not a regular file", name)
    return descriptor


class StorageFile:
    """An open file from which arrays are taken; the base of `MappedFile` and `ReadFile`.

    Parameters
    ----------
    descriptor : int
        A readable file descriptor, owned from now on and closed by `close`.
    path : str
        For messages.
    mode : {"r", "c"}
        ``"r"``: arrays are read-only.  ``"c"``: they are writable, and the file never changes.

    Attributes
    ----------
    size : int
        Size of the file in bytes at opening.
    """

    __slots__ = ("_descriptor", "mode", "path", "size")

    def __init__(self, descriptor: int, path: str, mode: Mode) -> None:
        self._descriptor: int | None = descriptor
        self.path = path
        self.mode: Mode = mode
        self.size = os.fstat(descriptor).st_size

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The array stored at byte `offset`; its end must lie inside the file (the header's checks saw to it).

        Raises
        ------
        ClosedError
            The file was closed.
        FileChangedError
            The file has another size than at opening.
        """
        raise NotImplementedError

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes at `offset` as a uint8 array, shape (nbytes,)."""
        return self.array(offset, (nbytes,), np.dtype(np.uint8))

    @property
    def descriptor(self) -> int:
        """The open file descriptor; raises `ClosedError` after `close`."""
        if self._descriptor is None:
            raise ClosedError(f"{self.path}: the file is closed")
        return self._descriptor

    def require_unchanged(self) -> None:
        """Raise `FileChangedError` if the file has grown or shrunk since it was opened."""
        size = os.fstat(self.descriptor).st_size
        if size != self.size:
            raise FileChangedError(
                f"{self.path}: had {self.size} bytes when it was opened, has {size} now; open it again"
            )

    def close(self) -> None:
        """Close the descriptor and drop the mapping; arrays handed out before stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


class MappedFile(StorageFile):
    """Arrays are zero-copy views of the mapped file."""

    __slots__ = ("_base",)

    def __init__(self, descriptor: int, path: str, mode: Mode) -> None:
        super().__init__(descriptor, path, mode)
        access = mmap.ACCESS_COPY if mode == "c" else mmap.ACCESS_READ
        if sys.version_info >= (3, 13):
            # Keeps mmap from duplicating the descriptor, which would stay open as long as the views live.
            mapping = mmap.mmap(descriptor, self.size, access=access, trackfd=False)
        else:
            mapping = mmap.mmap(descriptor, self.size, access=access)
        self._base: npt.NDArray[np.uint8] | None = np.frombuffer(mapping, np.uint8)

    @property
    def base(self) -> npt.NDArray[np.uint8]:
        """The whole file as one uint8 array, shape (size,)."""
        if self._base is None:
            raise ClosedError(f"{self.path}: the file is closed")
        return self._base

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.require_unchanged()
        # The buffer is the base array, not the mapping: the array holds the one, and that one holds the other.
        return np.ndarray(shape, dtype, self.base, offset)

    def close(self) -> None:
        self._base = None
        super().close()


class ReadFile(StorageFile):
    """Arrays are read into fresh memory, each time that they are asked for."""

    __slots__ = ()

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.require_unchanged()
        array = np.empty(shape, dtype)
        # As bytes: a structured array has no buffer that preadv takes, and an empty one cannot be viewed as bytes.
        if array.size:
            self._fill(array.reshape(-1).view(np.uint8).data, offset)
        array.flags.writeable = self.mode == "c"
        return array

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            if hasattr(os, "preadv"):
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            else:  # Windows
                part = os.pread(self.descriptor, min(len(buffer) - done, 1 << 24), offset + done)
                count = len(part)
                buffer[done : done + count] = part
            if not count:
                raise FileChangedError(
                    f"{self.path}: needs {len(buffer)} bytes at byte {offset}, {done} there: "
                    "the file was cut off after it was opened"
                )
            done += count
