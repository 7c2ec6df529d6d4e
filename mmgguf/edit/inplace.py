"""Change the first bytes of a file in place, so that a crash leaves either the old ones or the new ones."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import numpy as np

from ..errors import FileChangedError
from ..storage.journal import Journal, journal_path, read_journal, remove_journal, write_journal

__all__ = ["overwrite", "recover", "require_own"]

#: Names that are digests of the content: ollama's blobs, and those of Hugging Face's cache.
_DIGEST_NAME: Final = re.compile(r"sha256-[0-9a-f]{64}|[0-9a-f]{64}|[0-9a-f]{40}")


def require_own(path: str) -> None:
    """Refuse to change a file in place that a store of models knows by its digest.

    Raises
    ------
    PermissionError
        Its name is a digest.
    """
    name = os.path.basename(os.path.realpath(path))
    if _DIGEST_NAME.fullmatch(name):
        text = f"is the file {name} of a store, which knows it by that digest: write a new file, or force it"
        raise PermissionError(errno.EPERM, text, path)


def overwrite(path: str, old: bytes, new: bytes) -> int:
    """Replace the first bytes of a file.

    Parameters
    ----------
    path : str
        The file; links are followed, and hard links all see the change.
    old, new : bytes
        What is there, and what will be; of one length.

    Returns
    -------
    int
        Bytes that were written: from the first that differs to the last.

    Raises
    ------
    FileChangedError
        The file does not begin with `old`, or a journal is there that is not its.
    OSError
        What the operating system refuses; another process is editing the file.
    """
    with _locked(path) as descriptor:
        _settle(path, descriptor)
        if _read(descriptor, len(old), 0) != old:
            raise FileChangedError(f"{path}: has changed since it was read; nothing was written")
        differ = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
        if not len(differ):
            return 0
        start, end = int(differ[0]), int(differ[-1]) + 1
        journal = Journal(os.fstat(descriptor).st_size, start, old[start:end], new[start:end])
        write_journal(path, journal)
        _write(descriptor, journal.new, start)
        os.fsync(descriptor)
        remove_journal(path)
        return end - start


def recover(path: str | os.PathLike[str]) -> Literal["nothing", "undone", "finished"]:
    """Finish or undo an edit in place that was interrupted.

    Parameters
    ----------
    path : path-like
        The file that was being edited.

    Returns
    -------
    {"nothing", "undone", "finished"}
        No edit was interrupted; it had not begun, and the old bytes are there; or the new bytes are there, of which
        this call may have written some.

    Raises
    ------
    FileChangedError
        The journal is damaged, or the file was changed by others meanwhile.
    OSError
        What the operating system refuses; another process is editing the file right now.

    Examples
    --------
    >>> recover("model.gguf")
    'nothing'
    """
    name = os.fsdecode(path)
    if read_journal(name) is None:
        return "nothing"
    with _locked(name) as descriptor:
        return _settle(name, descriptor)


def _settle(path: str, descriptor: int) -> Literal["nothing", "undone", "finished"]:
    journal = read_journal(path)
    if journal is None:
        return "nothing"
    if os.fstat(descriptor).st_size != journal.size:
        text = f"had {journal.size} bytes when an edit of it was interrupted, has another size"
        raise FileChangedError(f"{path}: {text}; if it is as it should be, remove {journal_path(path)}")
    state = journal.state(_read(descriptor, len(journal.old), journal.offset))
    if state == "foreign":
        text = "was changed by others after an edit of it was interrupted"
        raise FileChangedError(f"{path}: {text}; if it is as it should be, remove {journal_path(path)}")
    if state == "torn":
        _write(descriptor, journal.new, journal.offset)
        os.fsync(descriptor)
    remove_journal(path)
    return "undone" if state == "old" else "finished"


@contextmanager
def _locked(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        with contextlib.suppress(ImportError):  # Windows has no such lock
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "is being edited by another process", path) from None
            except OSError:
                pass  # a file system without locks
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, nbytes: int, offset: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        file.seek(offset)
        parts = []
        while nbytes:
            part = file.read(nbytes)
            if not part:
                break
            parts.append(part)
            nbytes -= len(part)
        return b"".join(parts)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """In one call, unless the system takes less at a time."""
    view = memoryview(data)
    while len(view):
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, view, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            count = os.write(descriptor, view)
        view, offset = view[count:], offset + count
