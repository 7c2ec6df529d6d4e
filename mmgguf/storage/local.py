"""One file of a model as memory: mapped, or read on request.

Lifetimes.  `MappedFile` makes one uint8 array over the whole mapping with `np.frombuffer`, and everything
handed out is a view of that array.  A view keeps the mapping alive, so closing never pulls memory from under it, and
the mapping goes away with the last view.  Two shorter ways are traps: arrays made with ``np.ndarray(buffer=mmap)`` do
not hold the mapping, and crash the interpreter after `mmap.close`; `np.memmap` runs Python code on every slice.

What mapping cannot give is safety from another process that truncates the file: touching the lost pages ends the
process with SIGBUS.  Each access compares the file's size with the one at opening, which catches a file that has
already changed; `ReadFile` turns a change at any time into an exception.

Writing.  The arrays of a file that was opened to be read are read-only, but numpy exports their memory through DLPack,
and some consumers ignore that flag.  On Linux the pages are therefore mapped copy-on-write in any case: who writes to
them all the same changes this process's memory, where a read-only mapping would end the process.

Advice to the kernel (prefetch, release, access pattern) changes speed, never results.  Where the system does not know a
call, or refuses it, it does nothing.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, FileChangedError
from .base import Access, Mode, Reference, Shape, Storage, StorageKind
from .descriptors import Descriptor, open_descriptor, read_at
from .identity import Identity, header_digest, host
from .pages import NO_RESERVE, PAGE, count_resident, lock_pages, map_range, reserves_nothing

__all__ = ["LOCAL_KINDS", "LocalFile", "MappedFile", "ReadFile"]


class LocalFile(Storage):
    """An open file of the operating system; the base of `MappedFile` and `ReadFile`.

    Parameters
    ----------
    path : str
        Where it is opened: for messages, and to find it again from another process.
    mode : {"r", "c"}
        ``"r"``: arrays are read-only.  ``"c"``: they are writable, and the file never changes.
    descriptor : Descriptor, optional
        The file, open for reading already; `close` drops it.
    is_findable : bool, default True
        Whether the path leads to this file.
    """

    __slots__ = ("_absolute_path", "_descriptor", "_identity", "_status")

    def __init__(self, path: str, mode: Mode, descriptor: Descriptor | None = None, is_findable: bool = True) -> None:
        if descriptor is None:
            descriptor = open_descriptor(path)
        self._status = os.fstat(descriptor)
        super().__init__(path, mode, self._status.st_size, path if is_findable else None)
        # Independent of later changes of the working directory.
        self._absolute_path = os.path.abspath(path) if is_findable else None
        self._identity: Identity | None = None
        self._descriptor: Descriptor | None = descriptor

    @property
    def identity(self) -> Identity:
        """What another process identifies the file by; computed at first use, since that reads the header.

        Raises
        ------
        ClosedError
            The file was closed.
        FileChangedError
            It is shorter than its header by now.
        """
        identity = self._identity
        if identity is None:
            status, nbytes = self._status, self.header_nbytes
            digest = header_digest(self.descriptor, nbytes, self.path)
            identity = self._identity = Identity(
                status.st_size, status.st_mtime_ns, host(), status.st_dev, status.st_ino, nbytes, digest
            )
        return identity

    def is_at(self, path: str) -> bool:
        """Whether the file at `path` is the one that was opened here, unchanged as far as its status tells."""
        now, then = os.stat(path), self._status
        # The time of the last change of the status too: nobody can set that one back.
        fields = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_dev", "st_ino")
        return all(getattr(now, field) == getattr(then, field) for field in fields)

    @property
    def descriptor(self) -> Descriptor:
        """The open file descriptor, which stays open as long as it is held; raises `ClosedError` after `close`."""
        descriptor = self._descriptor
        if descriptor is None:
            raise ClosedError(f"{self.path}: the file is closed")
        return descriptor

    def require_unchanged(self) -> None:
        """Raise `FileChangedError` if the file has grown or shrunk since it was opened."""
        # lseek takes a third of fstat's time, which makes a record.  Where there is pread, nobody uses the position.
        descriptor = self.descriptor
        size = os.lseek(descriptor, 0, os.SEEK_END) if hasattr(os, "pread") else os.fstat(descriptor).st_size
        if size != self.size:
            raise FileChangedError(
                f"{self.path}: had {self.size} bytes when it was opened, has {size} now: open it again"
            )

    def reader(self) -> io.FileIO:
        return io.FileIO(self.descriptor, closefd=False)

    def reference(self) -> Reference:
        if self._absolute_path is None:
            return super().reference()
        return LocalReference(self._absolute_path, self.kind, self.mode, self.identity)

    def advise(self, access: Access) -> None:
        """Tell the kernel how the file will be read."""
        self._fadvise(f"POSIX_FADV_{access.upper()}", 0, self.size)

    def prefetch(self, offset: int, nbytes: int, *, once: bool = False) -> None:
        """Ask the kernel to start reading a range into the page cache; does not wait."""
        self._fadvise("POSIX_FADV_WILLNEED", offset, nbytes)

    def wait(self, offset: int, nbytes: int) -> None:
        """Return when a range is in the page cache."""
        scratch = memoryview(bytearray(min(nbytes, 1 << 20)))
        for start in range(offset, offset + nbytes, len(scratch) or 1):
            read_at(self.descriptor, scratch[: offset + nbytes - start], start)

    def release(self, offset: int, nbytes: int) -> None:
        """Let go of the whole pages of a range: from this process, and from the page cache unless others use them."""
        self._fadvise("POSIX_FADV_DONTNEED", offset, nbytes)

    def resident(self, offset: int, nbytes: int) -> int:
        """Bytes of a range in the page cache; 0 where the system cannot tell."""
        self.require_unchanged()
        if not nbytes:
            return 0
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = offset + nbytes - start
        mapping = mmap.mmap(self.descriptor, length, access=mmap.ACCESS_READ, offset=start)
        return count_resident(np.frombuffer(mapping, np.uint8), offset - start, nbytes)

    def _fadvise(self, advice: str, offset: int, nbytes: int) -> None:
        if hasattr(os, "posix_fadvise") and nbytes:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.descriptor, offset, nbytes, getattr(os, advice))

    def close(self) -> None:
        """Close the descriptor and drop the mapping; arrays handed out before stay valid, and reads are completed."""
        self._descriptor = None


# Without trackfd, mmap duplicates the descriptor, which would stay open as long as the views live.
_TRACK: Final = {"trackfd": False} if sys.version_info >= (3, 13) and sys.platform != "win32" else {}
_READ_ONLY: Final[dict[str, Any]] = {"access": mmap.ACCESS_READ, **_TRACK}
# Without NO_RESERVE, Linux refuses a file larger than memory, though only pages that are written to need any.
_COPY_ON_WRITE: Final[dict[str, Any]] = _TRACK | (
    {"flags": mmap.MAP_PRIVATE | NO_RESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    if NO_RESERVE
    else {"access": mmap.ACCESS_COPY}
)


class MappedFile(LocalFile):
    """Arrays are zero-copy views of the mapped file."""

    kind = "mmap"
    is_memory = True
    __slots__ = ("_base", "_mapping", "_writable")

    def __init__(self, path: str, mode: Mode, descriptor: Descriptor | None = None, is_findable: bool = True) -> None:
        super().__init__(path, mode, descriptor, is_findable)
        self._mapping: mmap.mmap | None = None
        #: The same pages once more, copy-on-write; made when somebody needs memory to write to.
        self._writable: MappedFile | None = None
        self._base: npt.NDArray[np.uint8] | None = None
        if not self.size:  # what no system maps; the parser says what is wrong with it
            self._base = np.empty(0, np.uint8)
            return
        # Where pages that nobody writes to need no memory, read-only files are mapped copy-on-write, too.
        may_copy = mode == "c" or (bool(NO_RESERVE) and reserves_nothing())
        ways = [_COPY_ON_WRITE] * may_copy + [_READ_ONLY] * (mode == "r")
        for options in ways:
            try:
                self._mapping = mmap.mmap(self.descriptor, self.size, **options)
                break
            except ValueError as error:  # of no bytes, or of more than there are by now
                raise FileChangedError(f"{path}: was cut off after it was opened ({error})") from None
            except OSError:  # perhaps a limit on the memory that a process may write to
                if options is ways[-1]:
                    raise
        assert self._mapping is not None
        self._base = np.frombuffer(self._mapping, np.uint8)
        self._base.flags.writeable = mode == "c"

    @property
    def base(self) -> npt.NDArray[np.uint8]:
        """The whole file as one uint8 array, shape (size,)."""
        base = self._base  # once: another thread may close the file in the next line
        if base is None:
            raise ClosedError(f"{self.path}: the file is closed")
        return base

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        # `require_unchanged` and `base`, spelled out: this is what every access to a tensor waits for.
        base, descriptor = self._base, self._descriptor
        if base is None or descriptor is None:
            raise ClosedError(f"{self.path}: the file is closed")
        size = len(base)
        if os.lseek(descriptor, 0, os.SEEK_END) != size:
            self.require_unchanged()
        # The buffer is the base array, not the mapping: the array holds the one, and that one holds the other.
        # An empty tensor may lie past the last byte, in padding that was left out; numpy takes no such offset.
        return np.ndarray(shape, dtype, base, offset if offset < size else size)

    def writable_array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if self.mode == "c":
            return self.array(offset, shape, dtype)
        writable = self._writable
        if writable is None:
            writable = self._writable = self.copy_on_write()
        return writable.array(offset, shape, dtype)

    def copy_on_write(self) -> MappedFile:
        """Another mapping of the same file, whose pages are copied when they are written to.

        Raises
        ------
        ClosedError, FileChangedError
            The file was closed, or has another size than at opening.
        """
        self.require_unchanged()
        return MappedFile(self.path, "c", Descriptor(os.dup(self.descriptor)))

    def window(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """A range of the file in a copy-on-write mapping of its own, which goes away with the last view of it.

        For who uses a small part of a file: a fault brings no pages from outside the range.  Nor does it read ahead:
        whoever wants all of a range has it prefetched.
        """
        self.require_unchanged()
        array = map_range(self.descriptor, offset, nbytes)
        return self.writable_array(offset, (nbytes,), np.dtype(np.uint8)) if array is None else array

    def advise(self, access: Access) -> None:
        super().advise(access)
        self._madvise(f"MADV_{access.upper()}", 0, self.size)

    def prefetch(self, offset: int, nbytes: int, *, once: bool = False) -> None:
        self._madvise("MADV_WILLNEED", offset - offset % PAGE, nbytes + offset % PAGE)

    def wait(self, offset: int, nbytes: int) -> None:
        self.require_unchanged()
        # One byte of each page, so that the pages are in this process's tables as well.
        np.add.reduce(self.base[offset : offset + nbytes : PAGE])

    def release(self, offset: int, nbytes: int) -> None:
        # In whole pages, so that neighbours are left alone; and never changes that somebody made copy-on-write.
        start, end = -(-offset // PAGE) * PAGE, offset + nbytes
        if end < self.size:
            end -= end % PAGE
        if self.mode == "r" and start < end:
            self._madvise("MADV_DONTNEED", start, end - start)
        super().release(offset, nbytes)

    def resident(self, offset: int, nbytes: int) -> int:
        return count_resident(self.base, offset, nbytes)

    def lock(self) -> None:
        if self.mode == "r" and self.size:
            # To lock a page that could be written to, Linux copies it first.
            self.require_unchanged()
            self._mapping = mmap.mmap(self.descriptor, self.size, **_READ_ONLY)
            self._base = np.frombuffer(self._mapping, np.uint8)
        if code := lock_pages(self.base):
            raise OSError(code, f"cannot lock {self.size} bytes in memory: {os.strerror(code)}", self.path)

    def _madvise(self, advice: str, offset: int, nbytes: int) -> None:
        mapping = self._mapping  # once: another thread may close the file in the next line
        if mapping is None:
            raise ClosedError(f"{self.path}: the file is closed")
        if hasattr(mmap, advice) and nbytes:
            with contextlib.suppress(OSError):  # of locked pages Linux takes no MADV_DONTNEED, for one
                mapping.madvise(getattr(mmap, advice), offset, nbytes)

    def close(self) -> None:
        self._base = self._mapping = self._writable = None
        super().close()


class ReadFile(LocalFile):
    """Arrays are read into fresh memory, each time that they are asked for."""

    __slots__ = ()

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.require_unchanged()
        array = np.empty(shape, dtype)
        if array.size:
            # As bytes: a structured array has no buffer that preadv takes, and an empty one cannot be viewed as bytes.
            buffer = array.reshape(-1).view(np.uint8).data
            try:
                done = read_at(self.descriptor, buffer, offset)
            except OSError as error:  # input/output error
                error.filename = self.path
                raise
            if done != len(buffer):
                raise FileChangedError(
                    f"{self.path}: needs {len(buffer)} bytes at byte {offset}, {done} there: "
                    "the file was cut off after it was opened"
                )
        array.flags.writeable = self.mode == "c"
        return array

    def writable_array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        array = self.array(offset, shape, dtype)
        array.flags.writeable = True  # memory of its own, which nobody else has
        return array


# ---------------------------------------------------------------- opening


#: Mapped unless another kind is asked for.
LOCAL_KINDS: Final[dict[StorageKind | None, type[LocalFile]]] = {None: MappedFile, "mmap": MappedFile, "read": ReadFile}


@dataclass(frozen=True, slots=True)
class LocalReference(Reference):
    """A file by its absolute path."""

    path: str
    kind: StorageKind
    mode: Mode
    identity: Identity

    def open(self, *, header: bool = True) -> LocalFile:
        file = LOCAL_KINDS[self.kind](self.path, self.mode)
        try:
            file.header_nbytes = self.identity.header_nbytes
            if not header:  # nor is what the kernel would read ahead behind it
                LocalFile.advise(file, "random")
            require_identity(file, self.identity)
            if not header:
                LocalFile.advise(file, "normal")
        except BaseException:
            file.close()
            raise
        return file

    def is_current(self, storage: Storage) -> bool:
        return isinstance(storage, LocalFile) and storage.is_at(self.path)


def require_identity(file: LocalFile, identity: Identity) -> None:
    """Raise `FileChangedError` if an open file is not the one with that identity."""
    problem = None
    if (file.size, file._status.st_mtime_ns) != identity[:2]:
        problem = (
            f"it had {identity.size} bytes and was changed at {identity.mtime_ns} ns, "
            f"now {file.size} bytes and {file._status.st_mtime_ns} ns"
        )
    elif (found := file.identity).header != identity.header:
        problem = "it has the same size and time, but another header"
    elif found.host == identity.host and (found.device, found.inode) != (identity.device, identity.inode):
        problem = "it has the same size, time and header, but is another file (device and inode), perhaps a copy"
    if problem is not None:
        raise FileChangedError(f"{file.path}: is not the file that was sent: {problem}")
