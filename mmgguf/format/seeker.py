"""`BufferedSeeker`: exact, bounded reads over any seekable binary file object.

`io.BufferedReader` does the buffering in C.  What is added here is what a parser of untrusted bytes needs on top:
a read gives all the bytes asked for or raises, a large read is compared with the file's size before anything is
allocated, and the caller's file object is never closed.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from ..errors import FormatError, TruncatedError

__all__ = ["DEFAULT_BUFFER_SIZE", "BufferedSeeker"]

DEFAULT_BUFFER_SIZE: Final = 64 * 1024


class _Raw(io.RawIOBase):
    """The caller's file as a raw stream that stays open: `io.BufferedReader` closes what it wraps.

    The position is counted here: `io.BufferedReader` asks for it with every ``tell``, a file would ask the system.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._readinto = getattr(file, "readinto", None)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int | None
        if self._readinto is not None:
            count = self._readinto(buffer)
        else:
            data = self._file.read(len(buffer))
            count = None if data is None else len(data)
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "the file object has nothing to read yet; a blocking one is needed")
        if count > len(buffer):
            raise OSError(errno.EIO, f"the file object gave {count} bytes where {len(buffer)} were asked for")
        if self._readinto is None:
            buffer[:count] = data
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        result = self._file.seek(offset, whence)
        # Some file-likes return nothing from seek().
        self._position = int(self._file.tell() if result is None else result)
        return self._position

    def tell(self) -> int:
        return self._position


class BufferedSeeker:
    """Buffered reads with exact counts over a seekable binary file object.

    Parameters
    ----------
    file : binary file object
        Anything with ``read`` (or ``readinto``), ``seek`` and ``tell``: a raw or buffered file, `io.BytesIO`, an
        fsspec file.  It stays open, and the caller's; its position is undefined while the seeker is used.
    buffer_size : int, default 65536
        Bytes to fetch at a time.  0 reads unbuffered: one read of the file for each read of the caller.

    Attributes
    ----------
    size : int
        Size of the file in bytes when the seeker was made.

    Raises
    ------
    TypeError
        The file object gives text, or lacks a method that is needed.
    OSError
        The file cannot seek (a pipe, a socket).
    ValueError
        A negative buffer size.
    """

    __slots__ = ("_raw", "_reader", "expect", "size", "typical")

    def __init__(self, file: BinaryIO | Any, buffer_size: int = DEFAULT_BUFFER_SIZE) -> None:
        if buffer_size < 0:
            raise ValueError(f"buffer_size must not be negative, got {buffer_size}")
        if isinstance(file, io.TextIOBase):
            raise TypeError("a binary file is needed, got a text file: open it with mode 'rb'")
        if not all(hasattr(file, name) for name in ("read", "seek", "tell")):
            raise TypeError(f"a seekable binary file object is needed, got {type(file).__name__}")
        seekable = getattr(file, "seekable", None)
        if seekable is not None and not seekable():
            raise io.UnsupportedOperation("a seekable file is needed; read a pipe or socket into io.BytesIO first")
        self._raw = _Raw(file)
        self.size = self._raw.seek(0, os.SEEK_END)
        self._raw.seek(0)
        self._reader = io.BufferedReader(self._raw, buffer_size) if buffer_size else None
        #: Takes the position up to which bytes will be read, as far as can be told, where the file wants to know it.
        self.expect: Callable[[int], object] | None = getattr(file, "expect", None)
        #: Bytes that a string and its length took in the last array of strings.
        self.typical = 0.0

    def tell(self) -> int:
        """The logical position: that of the next byte to be read."""
        return self._raw.tell() if self._reader is None else self._reader.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; inside the buffered window the buffer is kept.

        Returns
        -------
        int
            The new logical position, whatever `whence` was.  It may lie past the end of the file; reading there
            raises.
        """
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            offset += self.size
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, got {whence}")
        if offset < 0:
            raise ValueError(f"cannot seek to the negative position {offset}")
        # Absolute always: BufferedReader keeps its buffer then, which for SEEK_END it would throw away.
        return self._raw.seek(offset) if self._reader is None else self._reader.seek(offset)

    @property
    def remaining(self) -> int:
        """Bytes from the current position to the end of the file; 0 past the end."""
        return max(0, self.size - self.tell())

    @property
    def buffered(self) -> int:
        """Bytes that can be read without touching the file; an empty buffer is filled first (0 at the end)."""
        return 0 if self._reader is None else len(self._reader.peek(1))

    def read(self, count: int, what: str = "") -> bytes:
        """Read exactly `count` bytes.

        Parameters
        ----------
        count : int
            Bytes wanted; ValueError if it is negative.
        what : str, optional
            What they are, for the message of the error.

        Raises
        ------
        TruncatedError
            The file ends before; nothing was allocated for the bytes that are not there.
        FormatError
            They are there, but memory cannot hold them.
        """
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        # The buffered reader allocates what it is asked for, so a large count is held against the file first.
        if count > DEFAULT_BUFFER_SIZE and count > self.remaining:
            raise self._short(self.tell(), count, what)
        try:
            if self._reader is not None:
                data = self._reader.read(count)
                if len(data) == count:
                    return data
                raise self._short(self._reader.tell() - len(data), count, what)
            unbuffered = bytearray(count)
            self.readinto(unbuffered, what)
            return bytes(unbuffered)
        except MemoryError:  # a sparse file has any size
            text = f"{what or 'read'}: {count} bytes at byte {self.tell()} are more than memory holds"
            raise FormatError(text) from None

    def readinto(self, buffer: bytearray | memoryview | Any, what: str = "") -> None:
        """Fill the whole writable buffer, or raise `TruncatedError`."""
        view = memoryview(buffer).cast("B")
        source = self._raw if self._reader is None else self._reader
        done = 0
        while done < len(view):
            count = source.readinto(view[done:])
            if not count:
                raise self._short(self.tell() - done, len(view), what)
            done += count

    def unpack(self, layout: struct.Struct, what: str = "") -> tuple[Any, ...]:
        """Read one record of a compiled `struct.Struct`."""
        return layout.unpack(self.read(layout.size, what))

    def _short(self, position: int, count: int, what: str) -> TruncatedError:
        there = max(0, self.size - position)
        return TruncatedError(
            f"{what or 'read'}: needs {count} bytes at byte {position}, {there} there "
            f"(file has {self.size}): download incomplete?"
        )
