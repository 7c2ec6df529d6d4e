"""Copy bytes of open files into new ones, by `copy_file_range` where the system has it.

That call shares blocks where the file system can, and never brings data into the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Final

from ..format.target import replacing
from ..selection import Progress

__all__ = ["Copier", "check_output", "new_files", "pad"]

#: Bytes that are copied between two calls of `progress`, and looks for a Ctrl-C.
_STEP: Final = 64 << 20
#: Bytes that go through the process at a time.
_CHUNK: Final = 4 << 20
#: What the kernel says when it cannot copy between two files by itself.
_REFUSED: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM, errno.ETXTBSY}
)


class Copier:
    """Copies ranges of open files to the ends of new ones, and counts.

    Parameters
    ----------
    total : int
        Bytes that will be copied in all.
    progress : callable, optional
        Called with the bytes done and those in all.
    """

    def __init__(self, total: int, progress: Progress | None = None) -> None:
        self.total, self.done = total, 0
        self.progress = progress
        self._kernel = hasattr(os, "copy_file_range")
        if progress is not None:
            progress(0, total)

    def copy(self, source: Any, offset: int, nbytes: int, target: BinaryIO) -> None:
        """Append `nbytes` bytes at `offset` of a storage to a file."""
        target.flush()
        end = offset + nbytes
        while offset < end:
            step = min(_STEP, end - offset)
            copied = self._by_kernel(source, offset, step, target) if self._kernel else 0
            if not copied:
                self._kernel = False
                step = min(_CHUNK, step)
                # What was cut off meanwhile is an exception of the storage's.
                target.write(source.region(offset, step).data)
                copied = step
            offset += copied
            self.done += copied
            if self.progress is not None:
                self.progress(self.done, self.total)

    def _by_kernel(self, source: Any, offset: int, nbytes: int, target: BinaryIO) -> int:
        descriptor = getattr(source, "descriptor", None)
        if descriptor is None:
            return 0
        source.require_unchanged()
        target.flush()
        position = target.tell()
        try:
            count = os.copy_file_range(descriptor, target.fileno(), nbytes, offset, position)
        except OSError as error:
            if error.errno in _REFUSED:
                return 0
            raise
        target.seek(position + count)
        return count


def pad(file: BinaryIO, nbytes: int) -> None:
    """Write zeros, in pieces."""
    while nbytes:
        step = min(nbytes, _CHUNK)
        file.write(bytes(step))
        nbytes -= step


def check_output(outputs: Iterable[str], sources: Iterable[str], nbytes: int, force: bool) -> None:
    """Refuse outputs that exist or are a source, and a disk that is too full, before anything is written.

    Raises
    ------
    FileExistsError
        An output is there, and `force` is false; or it is one of the sources, by whatever name.
    OSError
        The disk has less than `nbytes` bytes free.
    """
    known = []
    for source in sources:
        with contextlib.suppress(OSError):  # a URL, or in memory
            known.append(os.stat(source))
    folder = None
    for output in outputs:
        folder = os.path.dirname(os.path.realpath(output))
        try:
            found = os.stat(output)
        except FileNotFoundError:
            continue
        if any(os.path.samestat(found, one) for one in known):
            raise FileExistsError(errno.EEXIST, "is the file that is read; it cannot be the output too", output)
        if not force:
            raise FileExistsError(errno.EEXIST, "already exists; force replaces it", output)
    if folder is not None:
        # What is replaced counts as not free: it stays until the new file is complete.
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise OSError(errno.ENOSPC, f"needs {nbytes} bytes, {free} are free on its disk", folder)


@contextmanager
def new_files(paths: list[str], like: str | None) -> Iterator[list[BinaryIO]]:
    """New files that take their names together if the block succeeds, and are removed if it fails.

    Parameters
    ----------
    paths : list of str
        Their names.
    like : str or None
        A file whose permissions new ones get; one that is replaced keeps its own.
    """
    fresh = [path for path in paths if not os.path.lexists(path)]
    mode = None
    if like is not None:
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(os.stat(like).st_mode) & 0o777
    inodes: dict[str, tuple[int, int]] = {}
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(replacing(path)) for path in paths]
            for path, file in zip(paths, files, strict=True):
                status = os.fstat(file.fileno())
                inodes[path] = status.st_dev, status.st_ino
            if mode is not None and hasattr(os, "fchmod"):
                for path, file in zip(paths, files, strict=True):
                    if path in fresh:
                        with contextlib.suppress(OSError):  # some file systems have no permissions to set
                            os.fchmod(file.fileno(), mode)
            yield files
    except BaseException:
        # Some may have got their names before the others could not.
        for path in fresh:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if inodes.get(path) == (status.st_dev, status.st_ino):
                    os.unlink(path)
        raise
