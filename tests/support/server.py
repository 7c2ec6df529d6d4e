"""An http server on 127.0.0.1 for tests and benchmarks, which serves ranges as a good server does, or as it is told.

It runs on an event loop in a thread of its own and ends with the ``with`` block.  What it answers is decided by a
function from `Request` to `Reply`; `files` makes one that behaves.

As a program, ``server.py FILE LATENCY RATE PADDING`` serves a file, with so many zeros behind it, as ``/model.gguf``.
It prints its URL, then for each line that it reads the ranges that were asked for since the last one and the bytes
that were sent, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

__all__ = ["Reply", "Request", "Server", "files", "ranged", "redirecting", "whole"]


@dataclass(frozen=True)
class Request:
    """What was asked; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    number: int  # from 0

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and one more than the last."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else None


@dataclass(frozen=True)
class Reply:
    """What is answered, and how."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    cut: int | None = None  # the connection is closed after this many bytes of the body
    stall: float = 0.0  # seconds of silence after that many bytes, or before the head


def ranged(request: Request, data: bytes, etag: str | None = '"1"', **headers: str) -> Reply:
    """The answer of a good server: 206 and the range, 416 behind the end, 200 and all where no range is asked for."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if etag is not None:
        headers["ETag"] = etag
    if request.range is None:
        return Reply(200, headers, data)
    start, stop = request.range
    if start >= len(data):
        return Reply(416, headers | {"Content-Range": f"bytes */{len(data)}"})
    stop = min(stop, len(data))
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Reply(206, headers, memoryview(data)[start:stop])


def whole(request: Request, data: bytes) -> Reply:
    """The answer of a server that does not know ranges."""
    return Reply(200, {}, data)


def files(contents: Mapping[str, bytes]) -> Callable[[Request], Reply]:
    """A good server of files by their paths."""

    def respond(request: Request) -> Reply:
        data = contents.get(request.path.partition("?")[0])
        return Reply(404) if data is None else ranged(request, data)

    return respond


class Server:
    """The running server.

    Parameters
    ----------
    respond : callable
        From `Request` to `Reply`.
    latency : float, default 0
        Seconds before each answer.
    rate : float, optional
        Bytes per second of each connection.

    Attributes
    ----------
    url : str
        ``http://127.0.0.1:port``.
    requests : list of Request
        All that were received.
    sent : int
        Bytes of bodies that were sent.
    most_at_once : int
        Requests that were answered at the same time.
    """

    def __init__(self, respond: Callable[[Request], Reply], latency: float = 0.0, rate: float | None = None) -> None:
        self.respond = respond
        self.latency = latency
        self.rate = rate
        self.requests: list[Request] = []
        self.sent = 0
        self._open = 0
        self.most_at_once = 0

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                while await self._answer(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self._stop.wait()
        server.close()
        await asyncio.sleep(0.01)  # in which connections that were just made begin
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # in which the connections are closed

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False when the connection is to end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines if line)
        request = Request(method, path, {k.strip().lower(): v.strip() for k, v in pairs}, len(self.requests))
        self.requests.append(request)
        if length := int(request.headers.get("content-length", 0)):
            await reader.readexactly(length)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            return await self._reply(request, writer)
        finally:
            self._open -= 1

    async def _reply(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        if self.latency:
            await asyncio.sleep(self.latency)
        reply = self.respond(request)
        if reply.stall and reply.cut is None:
            await asyncio.sleep(reply.stall)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        text = f"HTTP/1.1 {reply.status} Any\r\n{lines}\r\n"
        writer.write(text.encode("latin-1"))
        body = memoryview(reply.body)[: reply.cut] if request.method != "HEAD" else memoryview(b"")
        await self._send(writer, body)
        if reply.cut is not None:
            await asyncio.sleep(reply.stall)
            return False
        return request.headers.get("connection", "").lower() != "close"

    async def _send(self, writer: asyncio.StreamWriter, body: memoryview) -> None:
        step = 256 << 10
        began = asyncio.get_running_loop().time()
        for start in range(0, len(body), step):
            part = body[start : start + step]
            writer.write(part)
            await writer.drain()
            self.sent += len(part)
            if self.rate is not None:
                due = began + (start + len(part)) / self.rate
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        await writer.drain()

    def with_range(self, path: str | None = None) -> list[tuple[int, int]]:
        """The ranges that were asked for, in order (of one path)."""
        return [r.range for r in self.requests if r.range is not None and (path is None or r.path == path)]


def redirecting(respond: Callable[[Request], Reply], to: str, **headers: str) -> Callable[[Request], Reply]:
    """Send everybody who asks for a path without ``/cdn`` to the same path below `to`."""

    def answer(request: Request) -> Reply:
        if request.path.startswith("/cdn"):
            return respond(replace(request, path=request.path.removeprefix("/cdn")))
        return Reply(302, {"Location": to + request.path, **headers})

    return answer


def _main(path: str, latency: str, rate: str, padding: str) -> None:
    with open(path, "rb") as file:
        data = file.read() + bytes(int(padding))
    with Server(files({"/model.gguf": data}), float(latency), float(rate) or None) as server:
        print(server.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({"ranges": server.with_range(), "sent": server.sent}), flush=True)
            server.requests.clear()
            server.sent = 0


if __name__ == "__main__":
    _main(*sys.argv[1:])
