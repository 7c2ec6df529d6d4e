"""Files on remote file systems that are replaced in one step, or not at all."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

from ..errors import RemoteError
from .sources import file_system
from .urls import hide, shown_url

__all__ = ["ATOMIC", "replacing_remote"]

#: Where an object appears when its upload is complete, and an upload can be given up.
ATOMIC: Final = frozenset({"s3", "s3a", "gs", "gcs", "memory"})


@contextmanager
def replacing_remote(url: str, options: Mapping[str, Any] | None = None) -> Iterator[BinaryIO]:
    """A new object that replaces the one at the URL if the block succeeds, and is removed if it fails.

    Parameters
    ----------
    url : str
        ``s3://``, ``gs://`` or ``memory://``.
    options : dict, optional
        Of the file system.

    Raises
    ------
    io.UnsupportedOperation
        The file system cannot replace a file in one step.
    OSError, RemoteError
        It refuses.
    """
    fs, path = file_system(url, options or {})
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    shown = shown_url(url)
    if not protocols & ATOMIC:
        raise io.UnsupportedOperation(
            f"{shown}: files there cannot be replaced in one step: write to a path, and upload the file"
        )
    if "memory" in protocols:
        buffer = io.BytesIO()
        yield buffer
        fs.pipe_file(path, buffer.getvalue())
        return
    with _translating(url):
        file = fs.open(path, "wb", autocommit=False)
    try:
        yield file
        with _translating(url):
            file.close()
            file.commit()
    except BaseException:
        with suppress(Exception):
            file.discard()
        raise


@contextmanager
def _translating(url: str) -> Iterator[None]:
    """Raise a file system's errors as OSError or `RemoteError`, without secrets."""
    failure: Exception
    try:
        yield
        return
    except Exception as error:
        failure = _translated(error, url, shown_url(url))
    raise failure


def _translated(error: Exception, url: str, shown: str) -> Exception:
    text = hide(str(error), url)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, f"No such bucket or folder ({text:.200})", shown)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return PermissionError(errno.EACCES, f"Access refused ({text:.200})", shown)
    return RemoteError(f"{shown}: {type(error).__name__}: {text:.300}")
