"""Replace a file atomically: write a temporary file beside it, then rename it.

A crash leaves the old file or the new one, never half of one, and a process that has the old file mapped keeps reading
the old bytes.  The temporary file, ``.mmgguf-<digest of the target's name>-<random>.tmp``, goes away with any
exception, `KeyboardInterrupt` among them.  A process that is killed leaves it: by SIGKILL or a loss of power; by
SIGTERM and SIGHUP too, unless the program turns them into exceptions, as the command line does.  The next `replacing`
of the same target removes it.  Each process holds a lock (``flock``) on the file that it writes, and only what nobody
holds is removed, whatever its age; where a file system has no locks, nothing is.

What a file that is replaced hands on: its permissions, with the owner, group and access list that they speak of, as far
as the system lets this process set them.  What it does not: the bits set-user-ID, set-group-ID and sticky, which were
given to other contents; its other extended attributes, likewise; its other hard links, which keep the old contents.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final, cast

if sys.platform != "win32":
    import fcntl

__all__ = ["Path", "replacing", "require_other_file"]

Path = str | os.PathLike[str]

_HAS_LOCKS: Final = sys.platform != "win32"
#: Linux: where the access list of a file is kept.
_ACCESS_LIST: Final = "system.posix_acl_access"


@contextlib.contextmanager
def replacing(path: Path, sources: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """A new file that takes the path's name if the block succeeds, and is removed if it fails.

    Parameters
    ----------
    path : path-like
        The file to make or to replace; a symbolic link is followed.
    sources : iterable of path-like, optional
        Files that the new one is made from, and which it must therefore not replace.

    Yields
    ------
    binary file
        Open for writing, and private to this process until it is whole.

    Raises
    ------
    OSError
        What the system refuses, always with a file's name; for a path that ends in a separator, for a folder, a device
        or a pipe, and for one of `sources`, before anything is made.
    """
    shown = os.fsdecode(path)
    target = _resolve(shown)
    old = _status(target, shown)
    require_other_file(path, sources)
    _remove_stale(target)
    temporary, file = _create_beside(target, shown, old)
    try:
        with file:
            yield file
            file.flush()
            with _naming(shown):
                os.fsync(file.fileno())
        with _naming(shown):
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(target))


def require_other_file(path: Path, sources: Iterable[Path]) -> None:
    """Raise `OSError` if the file at `path` is one of `sources`, by whatever name or link."""
    for source in sources:
        same = False
        with contextlib.suppress(OSError, ValueError):  # the target need not exist, and a source may be a URL
            same = os.path.samefile(path, source)
        if same:
            text = f"Is the same file as the source {os.fsdecode(source)}, which would be lost"
            raise OSError(errno.EINVAL, text, os.fsdecode(path))


# ---------------------------------------------------------------- the target


def _resolve(shown: str) -> str:
    """The path that the new file will take: absolute, links followed."""
    folder, name = os.path.split(shown)
    with _naming(shown):
        if name in ("", os.curdir, os.pardir):
            # Of `folder/` and `file/.`, `realpath` would drop what says that a folder is meant.
            os.stat(shown)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.stat(folder or os.curdir)  # the system's word on `file/../name`, in which `realpath` sees no fault
        return os.path.realpath(shown)


def _status(target: str, shown: str) -> os.stat_result | None:
    """The status of the file that will be replaced, None where there is none."""
    try:
        with _naming(shown):
            status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), shown)
    if not stat.S_ISREG(status.st_mode):
        # A rename would put a file in the place of, say, /dev/null.
        raise OSError(errno.EINVAL, "Not a regular file, so it cannot be replaced", shown)
    return status


# ---------------------------------------------------------------- the temporary file


class _NamedFile(io.FileIO):
    """A file whose errors name the file that the caller asked for: no space left, quota, input/output error."""

    shown: str

    def write(self, data: Any, /) -> int:
        with _naming(self.shown):
            return cast(int, super().write(data))  # never None, which is for files that do not block


@contextlib.contextmanager
def _naming(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = shown, None
        raise


def _prefix(target: str) -> str:
    import hashlib  # takes longer to load than most of this package

    digest = hashlib.blake2b(os.fsencode(os.path.basename(target)), digest_size=6).hexdigest()
    return f".mmgguf-{digest}-"


def _create_beside(target: str, shown: str, old: os.stat_result | None) -> tuple[str, BinaryIO]:
    # Not `tempfile`: its files are private (0600), and asking for the umask is not thread-safe.  Here the system
    # applies the umask itself.
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o700 | 0o200
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = os.path.join(os.path.dirname(target), f"{_prefix(target)}{os.urandom(8).hex()}.tmp")
        try:
            with _naming(shown):
                descriptor = os.open(temporary, flags, mode)
        except FileExistsError:
            continue
        try:
            if _lock(descriptor) is False or not os.fstat(descriptor).st_nlink:
                # Another process came between, took it for a stale one, and removes it.
                os.close(descriptor)
                continue
            if old is not None:
                _hand_on(descriptor, target, old)
            raw = _NamedFile(descriptor, "wb")
        except BaseException:
            os.close(descriptor)
            os.unlink(temporary)
            raise
        raw.shown = shown
        return temporary, io.BufferedWriter(raw)


def _hand_on(descriptor: int, target: str, old: os.stat_result) -> None:
    """Give the new file the old one's owner, group, permissions and access list, before anything is written to it."""
    if not hasattr(os, "fchown"):
        return
    mode, new = stat.S_IMODE(old.st_mode) & 0o777, os.fstat(descriptor)
    for owner, group in ((old.st_uid, old.st_gid), (-1, old.st_gid)):
        if (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid):
            break
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, group)
            new = os.fstat(descriptor)
    access_list = None
    if new.st_gid != old.st_gid:
        mode &= ~0o070 | (mode & 0o007) << 3  # what was granted to that group is not for ours
    elif hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            access_list = os.getxattr(target, _ACCESS_LIST)
    with contextlib.suppress(OSError):  # some file systems have no permissions to set
        os.fchmod(descriptor, mode)
        if access_list is not None:
            os.setxattr(descriptor, _ACCESS_LIST, access_list)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file for as long as it is open; False if another process has it, None if there are no locks."""
    if not _HAS_LOCKS:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_stale(target: str) -> None:
    """Remove the temporary files that processes left when they were killed while they wrote this target."""
    prefix = _prefix(target)
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(target)) as entries:
        stale = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(".tmp")]
        for path in stale:
            with contextlib.suppress(OSError):
                _remove_unless_locked(path)


def _remove_unless_locked(path: str) -> None:
    if not _HAS_LOCKS:
        os.unlink(path)  # Windows refuses what is open
        return
    # In a folder for everybody it may be a link or a pipe by now: neither followed nor waited for.
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _lock(descriptor):
            os.unlink(path)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, as far as the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
