"""A remote file as a storage: the header in steps that grow, each tensor as one exact range, many in flight.

A header's length is unknown until it has been walked through.  It is read front to back, each step a quarter of what
was read so far or what the parser expects to need (`HeaderReader.expect`); these bytes stay, as metadata arrays are
taken from them.  A tensor that nobody asked for before is one request for its bytes and no more.  `RemoteFile.prefetch`
asks for ranges in parts, as many at a time as the `Transfer` allows, and holds them until they are released; what is
held is bounded, and what goes beyond is read when it is asked for.

All requests run on the event loop of fsspec, in a thread of its own.  When a file is closed, what has been asked for
and not begun is dropped, and what is in flight is finished (or times out) and forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import pickle
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, FileChangedError, FormatError
from .base import Mode, Reference, Shape, Storage, Transfer
from .transport import DroppedError, Transport
from .urls import shown_url, without_secrets

__all__ = ["HeaderReader", "RemoteFile", "RemoteReference"]

#: The first step into a file: the whole header of most files with a vocabulary of up to 50,000 tokens.  Half of it
#: costs such a file a second request, and spares others what a fast connection brings in the time of one.
FIRST_STEP: Final = 2 << 20
#: Bytes from the start that tell one file from another, where the server's ETag already does.
PROBE: Final = 4 << 10
#: The most bytes of a header that are read from afar.
MAX_HEADER: Final = 256 << 20
#: The size of the parts that a prefetched range is asked for in.
PART: Final = 4 << 20
#: Ranges with no more than this between them are neighbours: the padding of alignments that files have.
GAP: Final = 256
#: The most bytes that are held for prefetched ranges.
MAX_HELD: Final = 1 << 30
#: XLA uses memory of this alignment as it is.
_ALIGNMENT: Final = 64

Bytes = npt.NDArray[np.uint8]


class _Held:
    """A range that was asked for: its memory, and the parts that fill it."""

    __slots__ = ("buffer", "is_wanted", "once", "parts", "start", "stop")

    def __init__(self, start: int, stop: int, once: bool, buffer: Bytes) -> None:
        self.start = start
        self.stop = stop
        self.once = once
        self.is_wanted = True
        self.buffer = buffer
        self.parts: list[Future[None]] = []

    def overlapping(self, start: int, stop: int) -> list[Future[None]]:
        """The parts that a range needs."""
        if start >= stop:
            return []
        return self.parts[max(0, start - self.start) // PART : (min(stop, self.stop) - self.start - 1) // PART + 1]


class RemoteFile(Storage):
    """Arrays are fetched into fresh memory, each time that they are asked for, unless they were prefetched.

    Parameters
    ----------
    connect : callable
        Makes the transport; called again in the child of a fork.
    url : str
        Where the file is, with credentials.
    options : dict
        Of the file system.
    reopen : callable
        `storage.sources.open_url`, which another process calls with a reference's URL; passed, as it imports this
        module.
    """

    is_remote = True
    ahead = 128 << 20
    __slots__ = (
        "_connect", "_held", "_held_bytes", "_lock", "_options", "_pid", "_reopen", "_segments", "_tasks",
        "_transfer", "_transport", "_url",
    )  # fmt: skip

    def __init__(
        self,
        connect: Callable[[], Transport],
        url: str,
        options: dict[str, Any],
        mode: Mode,
        transfer: Transfer,
        reopen: Callable[..., Storage],
    ) -> None:
        self._connect = connect
        self._reopen = reopen
        self._url = url
        self._options = options
        self._transfer = transfer
        self._start_here(connect())
        transport = self._connected
        head = self._run(transport, transport.probe(transfer.first_step or FIRST_STEP))
        super().__init__(shown_url(url), mode, transport.size, url)
        # The header, as far as it was read: where each step began, and its bytes.
        self._segments: list[tuple[int, Bytes]] = [(0, np.frombuffer(head, np.uint8))]

    def _start_here(self, transport: Transport) -> None:
        self._pid = os.getpid()
        self._transport: Transport | None = transport
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0

    @property
    def _connected(self) -> Transport:
        transport = self._transport
        if transport is None:
            raise ClosedError(f"{self.path}: the file is closed")
        if self._pid != os.getpid():
            # The parent's loop, connections and tasks stayed with it.
            size, validator = transport.size, transport.validator
            self._start_here(transport := self._connect())
            transport.size, transport.validator = size, validator
        return transport

    @staticmethod
    def _run(transport: Transport, task: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a coroutine on the loop of the file system."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is transport.loop:
            task.close()
            raise RuntimeError("a remote file cannot be read on the event loop of fsspec itself: use another thread")
        future = asyncio.run_coroutine_threadsafe(task, transport.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # Arrays.

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        transport = self._connected
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            data = _empty(0)
        elif (known := self._known(offset, offset + nbytes)) is not None:
            data, is_ours = known
            if self.mode == "c" and not is_ours:
                data = data.copy()
        else:
            data = _empty(nbytes)
            self._run(transport, transport.read(offset, offset + nbytes, data.data))
        array = np.ndarray(shape, dtype, data)
        array.flags.writeable = self.mode == "c"
        return array

    def _known(self, start: int, stop: int) -> tuple[Bytes, bool] | None:
        """Bytes that are here or on their way, and whether they are the caller's alone."""
        with self._lock:
            held = self._holding(start, stop)
            if held is not None and held.once and stop == held.stop:
                self._drop(held)
        if held is None:
            return self._from_header(start, stop)
        try:
            for part in held.overlapping(start, stop):
                part.result()
        except DroppedError:  # released meanwhile
            return None
        except BaseException:
            with self._lock:
                self._drop(held)
            raise
        return held.buffer[start - held.start : stop - held.start], held.once

    def _holding(self, start: int, stop: int) -> _Held | None:
        held = self._held.get(start)
        if held is not None and stop <= held.stop:
            return held
        return next((held for held in self._held.values() if held.start <= start and stop <= held.stop), None)

    def _drop(self, held: _Held) -> None:
        if self._held.get(held.start) is held:
            del self._held[held.start]
            self._held_bytes -= held.stop - held.start

    def _from_header(self, start: int, stop: int) -> tuple[Bytes, bool] | None:
        pieces: list[Bytes] = []
        position = start
        for begin, segment in self._segments:
            if begin <= position < begin + len(segment):
                pieces.append(segment[position - begin : stop - begin])
                position += len(pieces[-1])
                if position == stop:
                    return (pieces[0], False) if len(pieces) == 1 else (np.concatenate(pieces), True)
        return None

    # What is asked for ahead.

    def prefetch(self, offset: int, nbytes: int, *, once: bool = False) -> None:
        self.prefetch_ranges([(offset, nbytes)], once=once)

    def prefetch_ranges(self, ranges: Sequence[tuple[int, int]], *, once: bool = False) -> None:
        transport = self._connected
        with self._lock:
            # Neighbours that are small together are one request: each takes a round trip.
            group: list[tuple[int, int]] = []
            for start, nbytes in ranges:
                stop = start + nbytes
                if not self._is_new(start, stop):
                    continue
                self._held_bytes += nbytes
                if group and not (0 <= start - group[-1][1] <= GAP and stop - group[0][0] <= PART):
                    self._ask(transport, group, once)
                    group = []
                group.append((start, stop))
            if group:
                self._ask(transport, group, once)

    def _is_new(self, start: int, stop: int) -> bool:
        """Whether a range may be asked for, and has to be."""
        if start == stop or self._held_bytes + stop - start > MAX_HELD or self._holding(start, stop) is not None:
            return False
        if (other := self._held.get(start)) is not None:
            self._drop(other)
        return self._from_header(start, stop) is None

    def _ask(self, transport: Transport, group: list[tuple[int, int]], once: bool) -> None:
        """Ask for ranges that lie beside each other: several in one part, or one in several."""
        begin, end = group[0][0], group[-1][1]
        buffer = _empty(end - begin)
        helds = [_Held(start, stop, once, buffer[start - begin : stop - begin]) for start, stop in group]

        def is_wanted() -> bool:
            return any(held.is_wanted for held in helds)

        parts: list[Future[None]] = []
        for start in range(begin, end, PART):
            stop = min(start + PART, end)
            read = transport.read(start, stop, buffer[start - begin : stop - begin].data, is_wanted)
            parts.append(asyncio.run_coroutine_threadsafe(read, transport.loop))
        for held in helds:
            held.parts = parts
            self._held[held.start] = held

    def wait(self, offset: int, nbytes: int) -> None:
        self._connected  # noqa: B018  # open, and in this process
        with self._lock:
            waited = [part for held in self._held.values() for part in held.overlapping(*_cut(held, offset, nbytes))]
        for part in waited:
            with contextlib.suppress(DroppedError):  # released meanwhile
                part.result()

    def release(self, offset: int, nbytes: int) -> None:
        self._let_go(lambda held: offset <= held.start and held.stop <= offset + nbytes)

    def forget(self) -> None:
        self._let_go(lambda held: held.once)

    def _let_go(self, which: Callable[[_Held], bool]) -> None:
        with self._lock:
            for held in [held for held in self._held.values() if which(held)]:
                held.is_wanted = False
                self._drop(held)

    def resident(self, offset: int, nbytes: int) -> int:
        self._connected  # noqa: B018
        there = [(begin, begin + len(segment)) for begin, segment in self._segments]
        with self._lock:
            for held in self._held.values():
                starts = range(held.start, held.stop, PART)
                done = (part.done() and not part.cancelled() and part.exception() is None for part in held.parts)
                there += [
                    (begin, min(begin + PART, held.stop))
                    for begin, is_done in zip(starts, done, strict=False)
                    if is_done
                ]
        total, position = 0, offset
        for start, stop in sorted(there):
            start, stop = max(start, position), min(stop, offset + nbytes)
            if start < stop:
                total += stop - start
                position = stop
        return total

    def close(self) -> None:
        if self._transport is not None and self._pid == os.getpid():
            self._let_go(lambda held: True)
        self._transport = None

    # The header.

    def reader(self) -> HeaderReader:
        self._connected  # noqa: B018
        return HeaderReader(self)

    def header_bytes(self, position: int, expected: int) -> Bytes:
        """Bytes of the header from `position` on, at least one, fetched if need be.

        Parameters
        ----------
        position : int
            Inside the file.
        expected : int
            How far the parser expects to read.
        """
        for begin, segment in reversed(self._segments):
            if begin <= position < begin + len(segment):
                return segment[position - begin :]
        fetched = sum(len(segment) for _, segment in self._segments)
        step = max(FIRST_STEP // 2, fetched // 4)
        if expected > position:
            # Nobody vouches for what a file announces: a step never more than doubles what was read, but for the first.
            step = min(expected - position, max(2 * FIRST_STEP, fetched))
        stop = min(position + step, self.size)
        if fetched + stop - position > MAX_HEADER:
            raise FormatError(
                f"{self.path}: a header of more than {MAX_HEADER >> 20} MiB is not read remotely: download the file"
            )
        data = _empty(stop - position)
        transport = self._connected
        self._run(transport, transport.read(position, stop, data.data))
        data.flags.writeable = False
        self._segments.append((position, data))
        self._segments.sort(key=lambda one: one[0])
        return data

    # Other processes.

    def reference(self) -> Reference:
        url, options = without_secrets(self._url, self._options)
        nbytes = min(self.header_nbytes, len(self._segments[0][1]))
        if self.validator.startswith('"'):  # a strong ETag, unlike a time of change
            nbytes = min(nbytes, PROBE)
        return RemoteReference(
            self._reopen,
            url,
            pickle.dumps(options),
            self.mode,
            self._transfer,
            self.size,
            self.validator,
            nbytes,
            self.digest(nbytes),
        )

    def digest(self, nbytes: int) -> bytes:
        """Digest of the first bytes of the file, as far as they are in the first step."""
        return hashlib.blake2b(self._segments[0][1][:nbytes].data, digest_size=16).digest()

    @property
    def validator(self) -> str:
        """What the server gives to tell one state of the file from another; empty if nothing."""
        return self._connected.validator


@dataclass(frozen=True, slots=True)
class RemoteReference(Reference):
    """A remote file by its URL, without credentials; the other process has to have its own."""

    reopen: Callable[..., Storage]
    url: str
    options: bytes
    mode: Mode
    transfer: Transfer
    size: int
    validator: str
    header_nbytes: int
    header: bytes

    def open(self, *, header: bool = True) -> Storage:
        transfer = self.transfer
        # A file that fits the first step may come from a server that knows no ranges.
        if not header and self.size > FIRST_STEP:
            transfer = replace(transfer, first_step=max(1, self.header_nbytes))
        # The options stand in what was unpickled just now: they come from whoever sent this reference.
        storage = self.reopen(self.url, None, self.mode, pickle.loads(self.options), transfer)
        try:
            self._require_same(storage)
        except BaseException:
            storage.close()
            raise
        return storage

    def _require_same(self, storage: Storage) -> None:
        problem = None
        if storage.size != self.size:
            problem = f"it had {self.size} bytes, now {storage.size}"
        elif isinstance(storage, RemoteFile):
            if storage.validator != self.validator:
                problem = f"its ETag was {self.validator or 'missing'}, is {storage.validator or 'missing'} now"
            elif storage.digest(self.header_nbytes) != self.header:
                problem = "it has the same size, but another header"
        if problem is not None:
            raise FileChangedError(f"{storage.path}: is not the file that was sent: {problem}")


class HeaderReader:
    """A file object over a remote file for the parser of headers: what it reads is fetched in growing steps."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._position = 0
        self._expected = 0

    def expect(self, stop: int) -> None:
        """Announce that bytes up to `stop`, as far as can be told, will be read; some margin is added."""
        self._expected = stop + (stop - self._position) // 5 + (64 << 10)

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._file.size:
            return 0
        data = self._file.header_bytes(self._position, self._expected)[: len(buffer)]
        buffer[: len(data)] = data.data
        self._position += len(data)
        return len(data)

    def read(self, count: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position


def _cut(held: _Held, offset: int, nbytes: int) -> tuple[int, int]:
    """The part of a range that is held."""
    return max(offset, held.start), min(offset + nbytes, held.stop)


def _empty(nbytes: int) -> Bytes:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[start : start + nbytes]
