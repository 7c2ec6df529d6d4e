"""Open a storage from a path, a URL, a store's name, a file object or bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import GGUFError, MissingExtraError, RemoteError
from .base import Mode, Storage, StorageKind, Transfer
from .local import LOCAL_KINDS
from .urls import hide, is_url, require_fsspec, scheme_of, shown_url

if TYPE_CHECKING:
    from .transport import Transport

__all__ = ["Opener", "file_system", "open_url", "path_of"]


@dataclass(frozen=True, slots=True)
class Opener:
    """How the files of a model are opened, all shards alike.

    Attributes
    ----------
    kind : {"mmap", "read"} or None
        None: mapped where that is possible.
    mode : {"r", "c"}
        As of `Storage`.
    options : Mapping or None
        Of the file system, for URLs.
    transfer : Transfer
        Limits, for URLs.
    """

    kind: StorageKind | None
    mode: Mode
    options: Mapping[str, Any] | None = field(repr=False)  # which may hold credentials
    transfer: Transfer

    def open(self, source: Any) -> Storage:
        """The storage over a path, a URL, bytes or a file object.

        Raises
        ------
        ValueError
            Options for what has no file system, or ``kind="mmap"`` for what cannot be mapped.
        TypeError
            The source is none of these.
        OSError, GGUFError
            It cannot be opened.
        """
        if isinstance(source, str) and "://" in source and is_url(source):
            return open_url(source, self.kind, self.mode, self.options or {}, self.transfer)
        if self.options:
            raise ValueError("storage_options are for URLs: neither paths nor file objects have any")
        if not isinstance(source, str | os.PathLike):
            from .memory import open_object

            return open_object(source, self.kind, self.mode)
        path = os.fsdecode(source)
        try:
            return LOCAL_KINDS[self.kind](path, self.mode)
        except FileNotFoundError as error:
            missing = error
        # Outside of the handler, so that an error of the search for a hint would be no error of an error.
        from .names import hint

        if text := hint(path):
            raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)} ({text})", path)
        raise missing


def open_url(url: str, kind: StorageKind | None, mode: Mode, options: Mapping[str, Any], transfer: Transfer) -> Storage:
    """The storage over the file behind a URL or a store's name: mapped where it is on this machine."""
    transfer.check()
    scheme = scheme_of(url)
    if "::" not in url.partition("://")[0]:
        if scheme == "file":
            return LOCAL_KINDS[kind](path_of(url), mode)
        from .names import SCHEMES, find

        if scheme in SCHEMES:
            found = find(url, options, transfer)
            if found.path is not None:
                return LOCAL_KINDS[kind](found.path, mode)
            others = {name: value for name, value in options.items() if name != "token"}

            def connect() -> Transport:
                return _http(found.url, url, others, transfer, found.headers)

            storage = _open_remote(connect, url, kind, options, mode, transfer)
            storage.location = found.name
            return storage
    fs, path = file_system(url, options)
    local = _local_path(fs, path, url, options)
    if local is not None:
        return LOCAL_KINDS[kind](local, mode)
    return _open_remote(lambda: _transport(url, options, transfer), url, kind, options, mode, transfer)


def _open_remote(
    connect: Callable[[], Transport], url: str, kind: StorageKind | None, options: Mapping[str, Any], mode: Mode,
    transfer: Transfer,
) -> Storage:  # fmt: skip
    if kind == "mmap":
        raise ValueError(
            f"storage='mmap' maps files of this machine, and {shown_url(url)} is none: leave it out to read ranges, or "
            "open simplecache:: and the URL, which downloads it first"
        )
    from .remote import RemoteFile

    return RemoteFile(connect, url, dict(options), mode, transfer, open_url)


def path_of(url: str) -> str:
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{shown_url(url)}: the URL of a file of this machine begins with file:///")
    path = urllib.parse.unquote(parts.path, errors="surrogateescape")
    return path.lstrip("/") if os.name == "nt" else path


def file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """fsspec's file system and the path in it."""
    fsspec = require_fsspec()
    failure: Exception
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
        return fs, path
    except ImportError as error:
        if scheme_of(url) in ("http", "https"):
            failure = MissingExtraError("aiohttp", "remote")
        else:
            failure = ImportError(hide(str(error), url), name=error.name)
    except ValueError as error:
        failure = ValueError(f"{shown_url(url)}: {hide(str(error), url)}")
    except (OSError, GGUFError, TypeError) as error:
        failure = type(error)(hide(str(error), url))
    except Exception as error:
        failure = RemoteError(f"{shown_url(url)}: {type(error).__name__}: {hide(str(error), url)}")
    raise failure


def _local_path(fs: Any, path: str, url: str, options: Mapping[str, Any]) -> str | None:
    """The file of this machine that a URL stands for, made by a download if it says so; None if there is none."""
    fsspec = require_fsspec()
    names = {name for one in type(fs).__mro__ for name in [one.__name__]}
    if "LocalFileSystem" in names:
        return path
    if names & {"WholeFileCacheFileSystem", "SimpleCacheFileSystem"}:
        try:
            found = fsspec.open_local(url, **options)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "No such file", shown_url(url)) from None
        return str(found[0] if isinstance(found, list) else found)
    return None


def _transport(url: str, options: Mapping[str, Any], transfer: Transfer) -> Transport:
    fs, path = file_system(url, options)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if "https" in protocols or "http" in protocols:
        return _http(path, url, options, transfer, {})
    from .filesystem import FileSystemTransport, S3Transport

    loop = fs.loop if fs.async_impl else require_fsspec().asyn.get_loop()
    kind = S3Transport if "s3" in protocols and hasattr(fs, "_call_s3") else FileSystemTransport
    return kind(fs, path, url, shown_url(url), loop, transfer)


def _http(url: str, source: str, options: Mapping[str, Any], transfer: Transfer, headers: dict[str, str]) -> Transport:
    """The transport of an http URL; `source` is what it came from, as in messages."""
    fs, path = file_system(url, options)
    import yarl

    from .http import HttpTransport

    try:
        host = yarl.URL(path).host
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"{shown_url(source)}: not a valid URL: it has no host")
    return HttpTransport(path, shown_url(source), fs, transfer, headers)
