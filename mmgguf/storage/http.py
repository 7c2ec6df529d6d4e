"""Ranges of a file over http and https, with the connections of fsspec's file system.

Nothing is believed of a server that it has not shown: HEAD and ``Accept-Ranges`` are not asked for.  The first range is
the probe, and each answer has to be a 206 whose Content-Range is the range that was asked for, of a file of the same
size and the same ETag.  An answer with the whole file is cut off at once, unless the whole file was asked for.
"""

from __future__ import annotations

import asyncio
import email.utils
import errno
import re
import time
from typing import Any, Final

import aiohttp
import yarl

from ..errors import FileChangedError, RemoteError, human_size
from .base import Transfer
from .transport import LEAST_RATE, Transient, Transport
from .urls import hide, shown_url

__all__ = ["HttpTransport", "fetch_document"]

_CONTENT_RANGE: Final = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.IGNORECASE)
_MAY_PASS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What a server answers for an address that was good for a while only.
_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})
#: What never goes to another host than the one that was named.
_PRIVATE: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


class HttpTransport(Transport):
    """A file behind one URL.

    Parameters
    ----------
    url : str
        With whatever credentials it has.
    fs : fsspec.implementations.http.HTTPFileSystem
        Gives session, request options and event loop.
    headers : dict, optional
        Further request headers, such as a token; they are sent to the URL's own host only.
    """

    def __init__(
        self, url: str, shown: str, fs: Any, transfer: Transfer, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(shown, fs.loop, transfer)
        self._fs = fs
        self._url = url
        self._headers = headers or {}
        # Where redirects led: asked directly until it fails.
        self._location: yarl.URL | None = None

    async def _attempt(self, start: int, stop: int, into: memoryview) -> int:
        url = self._fs.encode_url(self._url)
        target = self._location or url
        options = dict(self._fs.kwargs)
        headers = {**options.pop("headers", {}), **self._headers}
        if target.origin() != url.origin():
            headers = {name: value for name, value in headers.items() if name.lower() not in _PRIVATE}
            options.pop("auth", None)
        # Of what is compressed, a range would be one of the compressed bytes.
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        seconds = self.transfer.timeout
        options.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds))
        session = await self._fs.set_session()
        failure: Exception
        try:
            async with (
                asyncio.timeout(seconds + (stop - start) / LEAST_RATE),
                session.get(target, headers=headers, **options) as response,
            ):
                expected = self._check(response, start, stop, target is not url)
                done = await _receive(response, into[:expected], self.shown)
            if response.history and self._may_go_directly(response.url, url):
                self._location = response.url
            return done
        except TimeoutError:
            failure = Transient(f"nothing, or too little, came for {seconds:g} s")
        except aiohttp.TooManyRedirects:
            failure = RemoteError(f"{self.shown}: too many redirects")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            failure = RemoteError(f"{self.shown}: redirects to an invalid address ({type(error).__name__})")
        except aiohttp.ClientConnectorCertificateError as error:
            failure = RemoteError(f"{self.shown}: {hide(str(error), self._url)}")
        except (aiohttp.ClientError, ConnectionError) as error:
            failure = Transient(f"{type(error).__name__}: {hide(str(error), self._url)}")
        # Outside of the handlers: the errors of aiohttp hold the request, with all its headers.
        raise failure

    def _may_go_directly(self, location: yarl.URL, url: yarl.URL) -> bool:
        # Headers of the client go to every host; a redirect drops them, a request of its own would not.
        return location.origin() == url.origin() or not self._fs.client_kwargs

    def _check(self, response: aiohttp.ClientResponse, start: int, stop: int, is_redirected: bool) -> int:
        """Compare the headers of a response with the request, and give how many bytes follow."""
        status = response.status
        if response.history and self._url.startswith("https:") and response.url.scheme != "https":
            raise RemoteError(f"{self.shown}: redirects from https to {response.url.scheme}, which is not followed")
        if is_redirected and status in _EXPIRED:
            self._location = None
            raise Transient(f"HTTP status {status} from where a redirect led", free=True)
        if status in _MAY_PASS:
            raise Transient(f"HTTP status {status} {response.reason or ''}".rstrip(), _retry_after(response))
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if status == 416 and match is not None and match[3] != "*":
            self._require_same(int(match[3]), _validator(response))
            if start < self.size:
                raise RemoteError(f"{self.shown}: refuses bytes {start} to {stop} of {self.size} (HTTP status 416)")
            return 0
        if status == 200:
            return self._check_whole(response, start, stop)
        if status != 206:
            raise self._refused(status)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            encoding = response.headers["Content-Encoding"]
            raise RemoteError(f"{self.shown}: ranges come encoded ({encoding[:40]!r}), which was not asked for")
        if match is None or match[1] is None or match[3] == "*":
            given = response.headers.get("Content-Range", "")[:60]
            raise RemoteError(
                f"{self.shown}: answers a range without telling where it lies and how long the file is "
                f"(Content-Range: {given!r}); download the file"
            )
        first, last, size = int(match[1]), int(match[2]), int(match[3])
        self._require_same(size, _validator(response))
        if first != start or last >= min(stop, size) or last < first:
            raise RemoteError(
                f"{self.shown}: sends bytes {first} to {last + 1} of {size}, bytes {start} to {stop} were asked for"
            )
        return last + 1 - first

    def _check_whole(self, response: aiohttp.ClientResponse, start: int, stop: int) -> int:
        size = response.content_length
        if size is None or "Content-Encoding" in response.headers:
            raise RemoteError(
                f"{self.shown}: the server ignores ranges and does not tell the file's size; download the file first, "
                f"or open simplecache::{self.shown}, which does that"
            )
        self._require_same(size, _validator(response))
        if start > 0 or stop < size:
            raise RemoteError(
                f"{self.shown}: the server ignores ranges and would send the whole file ({human_size(size)}); "
                f"download it first, or open simplecache::{self.shown}, which does that"
            )
        return size

    def _refused(self, status: int) -> Exception:
        if status in (404, 410):
            return FileNotFoundError(errno.ENOENT, f"No such file on the server (HTTP status {status})", self.shown)
        if status in (401, 403):
            text = f"The server refuses access (HTTP status {status}); it may want a token or other credentials"
            return PermissionError(errno.EACCES, text, self.shown)
        if status == 412:
            return FileChangedError(f"{self.shown}: changed since it was opened (HTTP status 412)")
        return RemoteError(f"{self.shown}: HTTP status {status} in answer to a range")


async def _receive(response: aiohttp.ClientResponse, into: memoryview, shown: str) -> int:
    """The body of an answer; less than announced only where the connection broke."""
    done = 0
    try:
        while done < len(into):
            chunk = await response.content.readany()
            if not chunk:
                break
            if len(chunk) > len(into) - done:
                raise RemoteError(f"{shown}: sends more bytes than it announced")
            into[done : done + len(chunk)] = chunk
            done += len(chunk)
    except (aiohttp.ClientPayloadError, ConnectionError):
        if not done:
            raise
    return done


def _validator(response: aiohttp.ClientResponse) -> str:
    etag = response.headers.get("ETag")
    return etag if etag is not None else response.headers.get("Last-Modified", "")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class _Document(HttpTransport):
    """A small document, fetched whole."""

    def _check(self, response: aiohttp.ClientResponse, start: int, stop: int, is_redirected: bool) -> int:
        if response.status in _MAY_PASS:
            raise Transient(f"HTTP status {response.status}", _retry_after(response))
        if response.status not in (200, 206):
            raise self._refused(response.status)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RemoteError(f"{self.shown}: comes encoded, which was not asked for")
        size = response.content_length
        if size is not None and size > stop:
            raise RemoteError(f"{self.shown}: a document of {size} bytes, at most {stop} are read")
        self.size = stop
        return stop


async def fetch_document(url: str, fs: Any, transfer: Transfer, headers: dict[str, str], limit: int) -> bytes:
    """A small document over http: at most `limit` bytes; errors as of a file."""
    document = _Document(url, shown_url(url), fs, transfer, headers)
    buffer = bytearray(limit)

    async def attempt() -> int:
        return await document._attempt(0, limit, memoryview(buffer))

    done: int = await document._retrying(attempt)
    return bytes(buffer[:done])
