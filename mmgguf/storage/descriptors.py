"""Descriptors of local files: opened without waiting, closed with their last user, read at any position."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import Final, NoReturn, SupportsIndex

from .journal import require_settled

__all__ = ["Descriptor", "open_descriptor", "read_at"]


class Descriptor(int):
    """A file descriptor that is closed with the last reference to it.

    A thread that is reading while another closes the file reads on: were the number free meanwhile, the next file
    that is opened anywhere would get it, and be read in place of this one.
    """

    def __del__(self) -> None:
        os.close(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # A copy would close the number a second time, when it may be another file's.
        raise TypeError("an open file cannot be copied or pickled: send the GGUFFile or the Tensor")


def open_descriptor(path: str | os.PathLike[str]) -> Descriptor:
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
        descriptor = Descriptor(os.open(name, flags))
    except ValueError:  # a NUL, or a character that file names cannot have
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        raise OSError(errno.EINVAL, "Not a regular file", name)
    require_settled(os.fsdecode(name), descriptor)
    return descriptor


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a writable buffer of bytes from a file, and tell how much there was."""
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):
            # No more at a time than macOS takes.
            count = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], offset + done)
        else:
            part = _pread(descriptor, min(len(buffer) - done, 1 << 24), offset + done)
            count = len(part)
            buffer[done : done + count] = part
        if not count:
            break
        done += count
    return done


#: Windows has neither preadv nor pread.  One for all files, as descriptors may share a position.
_position: Final = threading.Lock()


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)
