"""A journal beside a file, so that a crash in the middle of a change in place leaves the old bytes or the new ones.

Before a range of a file is overwritten, its old and its new bytes are written to ``.NAME.mmgguf-journal`` in the same
folder and synced; when the new bytes are synced too, the journal is removed.  Whoever finds a journal finds a change
that may be half done: the range then holds old bytes, new bytes or both, and either can be restored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import FileChangedError

__all__ = [
    "Journal",
    "journal_path",
    "read_journal",
    "remove_journal",
    "require_settled",
    "write_journal",
]

_MAGIC: Final = b"mmgguf journal 1"
#: Size of the file, where the range begins, how long it is.
_HEAD: Final = struct.Struct("<16sQQQ")
_DIGEST_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Journal:
    """A range of a file, before and after a change.

    Attributes
    ----------
    size : int
        Of the file, which the change does not touch.
    offset : int
        The byte where the range begins.
    old, new : bytes
        The range; of one length.
    """

    size: int
    offset: int
    old: bytes
    new: bytes

    def state(self, current: bytes) -> Literal["old", "new", "torn", "foreign"]:
        """What the range holds now; foreign: bytes that are neither."""
        if current == self.old:
            return "old"
        if current == self.new:
            return "new"
        if len(current) != len(self.old):
            return "foreign"
        mixed = all(c in (a, b) for a, b, c in zip(self.old, self.new, current, strict=True))
        return "torn" if mixed else "foreign"


def journal_path(path: str | os.PathLike[str]) -> str:
    """Where the journal of a file is; links are followed."""
    path = os.fsdecode(path)
    # Following a link takes several calls of the system, and almost nothing is one.
    folder, name = os.path.split(os.path.realpath(path) if os.path.islink(path) else path)
    return os.path.join(folder, f".{name}.mmgguf-journal")


def write_journal(path: str, journal: Journal) -> None:
    """Write and sync the journal of a file; it has its name only once it is complete.

    Raises
    ------
    FileExistsError
        There is one already.
    OSError
        What the operating system refuses.
    """
    import hashlib  # takes longer to load than most of this package

    place = journal_path(path)
    if os.path.lexists(place):
        raise FileExistsError(None, "the journal of an unfinished edit is there", place)
    head = _HEAD.pack(_MAGIC, journal.size, journal.offset, len(journal.old))
    digest = hashlib.sha256(head + journal.old + journal.new).digest()
    temporary = f"{place}.{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        # For the owner alone: the file itself may be.
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            for part in (head, journal.old, journal.new, digest):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(place)


def read_journal(path: str | os.PathLike[str]) -> Journal | None:
    """The journal of a file; None if there is none.

    Raises
    ------
    FileChangedError
        What lies there is not a journal, a damaged one, or one of a user who may not write to the file.
    """
    import hashlib  # takes longer to load than most of this package

    place = journal_path(path)
    # Not followed and not waited for: in a folder for everybody it may be a link or a pipe.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(place, flags)
        with os.fdopen(descriptor, "rb") as file:
            status, target = os.fstat(descriptor), os.stat(path)
            # Whoever may write to the file may write its journal, and nobody else.
            trusted = not hasattr(os, "geteuid") or status.st_uid in (os.geteuid(), target.st_uid, 0)
            head = file.read(_HEAD.size) if trusted and stat.S_ISREG(status.st_mode) else b""
            if len(head) == _HEAD.size:
                magic, file_size, offset, length = _HEAD.unpack(head)
                sizes = status.st_size == _HEAD.size + 2 * length + _DIGEST_SIZE and length <= target.st_size
                if magic == _MAGIC and sizes:
                    old, new, digest = file.read(length), file.read(length), file.read(_DIGEST_SIZE)
                    if hashlib.sha256(head + old + new).digest() == digest:
                        return Journal(file_size, offset, old, new)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link
            raise
    raise FileChangedError(
        f"{place}: is damaged, belongs to another user or is not a journal of mmgguf; look at it before you remove it"
    )


def require_settled(path: str, descriptor: int) -> None:
    """Refuse a file whose last edit in place was interrupted and not recovered.

    Nothing is asked of the system but whether there is a journal, as long as there is none.

    Raises
    ------
    FileChangedError
        Its bytes are partly old and partly new.
    """
    place = journal_path(path)
    if not os.path.lexists(place):
        return
    try:
        journal = read_journal(path)
    except (FileChangedError, OSError):
        return  # of something else
    if journal is None or os.fstat(descriptor).st_size != journal.size:
        return
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(journal.offset)
        current = file.read(len(journal.old))
        file.seek(0)
    if journal.state(current) == "torn":
        raise FileChangedError(
            f"{path}: an edit in place was interrupted; mmgguf.edit.recover, or `mmgguf edit --recover`, finishes it"
        )


def remove_journal(path: str | os.PathLike[str]) -> None:
    """Remove the journal of a file, durably."""
    place = journal_path(path)
    os.unlink(place)
    _sync_folder(place)


def _sync_folder(path: str) -> None:
    """Make the names in a file's folder durable, as far as the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
