"""Ranges of a file on any file system of fsspec that has no transport of its own."""

from __future__ import annotations

import asyncio
import errno
import re
import time
from typing import Any, Final

from ..errors import FileChangedError, GGUFError, RemoteError
from .base import Transfer
from .transport import LEAST_RATE, Transient, Transport
from .urls import hide

__all__ = ["FileSystemTransport", "S3Transport"]

#: What file systems call that which changes with a file's content.
_VALIDATORS: Final = (
    "ETag", "etag", "generation", "VersionId", "version_id", "md5Hash", "content_md5", "mtime", "LastModified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip
#: Seconds for which a remote file's state is taken as known.
_FRESH: Final = 5.0


class FileSystemTransport(Transport):
    """A file by its path on a file system.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
        Asynchronous or not; what is not runs in threads.
    path : str
        As the file system has it.
    url : str
        What it came from, for messages.
    """

    def __init__(self, fs: Any, path: str, url: str, shown: str, loop: Any, transfer: Transfer) -> None:
        super().__init__(shown, loop, transfer)
        self._fs = fs
        self._path = path
        self._url = url
        self._checked = 0.0

    async def probe(self, count: int) -> bytes:
        await self._check()
        buffer = bytearray(min(count, self.size))
        if buffer:
            await self._read(0, len(buffer), memoryview(buffer))
        return bytes(buffer)

    async def _check(self) -> None:
        """Ask for the file's size and state, unless that was done a moment ago."""
        if self._fs.async_impl and time.monotonic() - self._checked < _FRESH:
            return
        info = await self._call("info", self._path)
        size = info.get("size")
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "Is a directory", self.shown)
        if size is None:
            raise RemoteError(f"{self.shown}: the file system does not tell the file's size; download the file")
        self._require_same(int(size), str(next((info[key] for key in _VALIDATORS if info.get(key) is not None), "")))
        self._checked = time.monotonic()

    async def _attempt(self, start: int, stop: int, into: memoryview) -> int:
        await self._check()
        data = await self._call("cat_file", self._path, start=start, end=stop)
        return self._take(data, start, stop, into)

    def _take(self, data: bytes, start: int, stop: int, into: memoryview) -> int:
        if len(data) > stop - start:
            raise RemoteError(f"{self.shown}: {len(data)} bytes came where {stop - start} were asked for")
        into[: len(data)] = data
        return len(data)

    async def _call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of the file system; its errors become this library's."""
        size = options.get("end", 0) - options.get("start", 0)
        failure: Exception
        try:
            async with asyncio.timeout(self.transfer.timeout + size / LEAST_RATE):
                if self._fs.async_impl:
                    return await getattr(self._fs, f"_{name}")(*args, **options)
                return await asyncio.to_thread(getattr(self._fs, name), *args, **options)
        except GGUFError:
            raise
        except Exception as error:
            failure = self._translated(error)
        raise failure

    def _translated(self, error: Exception) -> Exception:
        """The error to raise in place of a file system's own, without secrets."""
        text = hide(str(error), self._url)
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, "No such file", self.shown)
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            return PermissionError(errno.EACCES, f"Access refused ({text:.200})", self.shown)
        if isinstance(error, IsADirectoryError):
            return IsADirectoryError(errno.EISDIR, "Is a directory", self.shown)
        if isinstance(error, TimeoutError | ConnectionError):
            return Transient(f"{type(error).__name__} {text:.200}".rstrip())
        return RemoteError(f"{self.shown}: {type(error).__name__}: {text:.300}")


class S3Transport(FileSystemTransport):
    """An object in S3 by s3fs: every range under the condition that the ETag is that of the first one."""

    async def probe(self, count: int) -> bytes:
        bucket, key, version = self._fs.split_path(self._path)
        self._object = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        if not key:
            raise IsADirectoryError(errno.EISDIR, "Is a bucket", self.shown)
        return await Transport.probe(self, count)

    async def _attempt(self, start: int, stop: int, into: memoryview) -> int:
        return self._take(await self._call("get", start=start, end=stop), start, stop, into)

    async def _call(self, name: str, *args: Any, **options: Any) -> Any:
        start, stop = options["start"], options["end"]
        condition = {"IfMatch": self.validator} if self.validator else {}
        failure: Exception
        try:
            async with asyncio.timeout(self.transfer.timeout + (stop - start) / LEAST_RATE):
                return await self._get(f"bytes={start}-{stop - 1}", condition)
        except GGUFError:
            raise
        except Exception as error:
            code = _code(error)
            if code == "InvalidRange" and self.size < 0:
                self.size = 0  # the only file without a first byte
                return b""
            if code in ("PreconditionFailed", "412"):
                failure = FileChangedError(f"{self.shown}: changed since it was opened (its ETag is another)")
            else:
                failure = self._translated(error)
        raise failure

    async def _get(self, byte_range: str, condition: dict[str, str]) -> bytes:
        response = await self._fs._call_s3("get_object", **self._object, Range=byte_range, **condition)
        body = response["Body"]
        try:
            match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.get("ContentRange") or "")
            if match is None:
                raise RemoteError(f"{self.shown}: the server ignores ranges; download the file")
            self._require_same(int(match[1]), response.get("ETag") or "")
            data: bytes = await body.read()
        finally:
            body.close()
        return data


def _code(error: BaseException | None) -> str:
    """The code that S3 gave for an error, which s3fs may have wrapped."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""
