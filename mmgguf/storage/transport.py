"""How bytes of a remote file are asked for: `Transport`, with what all of them share.

A transport asks for exact ranges.  What may pass (a lost connection, a server that is busy or stalls, a body that ends
early) is tried again with growing pauses, from the byte that was reached, and at most `RETRIES` times for one range.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from ..errors import FileChangedError, RemoteError
from .base import Transfer

__all__ = ["DroppedError", "Transient", "Transport"]

#: How often a range is asked for again.
RETRIES: Final = 4
#: The first pause before another try in seconds; each further one is twice as long.
PAUSE = 0.25
#: The longest pause that a server may ask for; whoever asks for more is not waited for.
LONGEST_PAUSE: Final = 30.0
#: Bytes of progress after which a range that came in part is continued as if nothing had happened.
LEAST_PROGRESS: Final = 64 << 10
#: Bytes per second below which a transfer counts as stalled.
LEAST_RATE: Final = 16 << 10


class Transient(Exception):
    """A failure that may pass.

    Parameters
    ----------
    reason : str
        What happened, for the message if it does not pass.
    pause : float, optional
        Seconds that the server asks to wait.
    free : bool, default False
        Another try is due at once, and does not count.
    """

    def __init__(self, reason: str, pause: float | None = None, free: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.free = free


class DroppedError(Exception):
    """A range was no longer wanted when its turn came."""


class Transport(ABC):
    """A remote file, from which ranges are read on an event loop.

    Attributes
    ----------
    shown : str
        The URL without credentials, for messages.
    size : int
        Of the file in bytes; -1 before `probe`.
    validator : str
        What the server gives to tell one state of the file from another; empty if nothing.
    """

    def __init__(self, shown: str, loop: asyncio.AbstractEventLoop, transfer: Transfer) -> None:
        self.shown = shown
        self.loop = loop
        self.transfer = transfer
        self.size = -1
        self.validator = ""
        self._slots = asyncio.Semaphore(transfer.max_concurrency)

    @abstractmethod
    async def _attempt(self, start: int, stop: int, into: memoryview) -> int:
        """Read a range into memory, and tell how much came; raises `Transient` for what may pass."""

    async def probe(self, count: int) -> bytes:
        """The first `count` bytes of the file; sets `size` and `validator`, which each answer tells."""
        buffer = bytearray(count)

        async def attempt() -> int:
            return await self._attempt(0, count, memoryview(buffer))

        done: int = await self._retrying(attempt)
        if done < min(count, self.size):
            await self._read(done, min(count, self.size), memoryview(buffer)[done:])
        return bytes(memoryview(buffer)[: min(count, self.size)])

    async def read(self, start: int, stop: int, into: memoryview, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Fill a buffer with the bytes from `start` to `stop`.

        Raises
        ------
        DroppedError
            It was no longer wanted when its turn came.  What has begun is finished: aiohttp leaves sockets behind when
            a request is cancelled while it connects.
        """
        async with self._slots:
            if not is_wanted():
                raise DroppedError
            await self._read(start, stop, into)

    async def _read(self, start: int, stop: int, into: memoryview) -> None:
        done = 0

        async def attempt() -> None:
            nonlocal done
            while start + done < stop:
                count = await self._attempt(start + done, stop, into[done:])
                done += count
                if count < LEAST_PROGRESS and start + done < stop:
                    raise Transient(f"{count} bytes came where {stop - start - done + count} were asked for")

        await self._retrying(attempt)

    async def _retrying(self, attempt: Any) -> Any:
        """Run a coroutine function until it succeeds or has failed too often."""
        failures = free = 0
        while True:
            try:
                # A server that drips holds nobody for ever.
                return await attempt()
            except Transient as transient:
                failure = transient
            except TimeoutError:
                failure = Transient(f"nothing came for {self.transfer.timeout:g} s")
            if failure.free and not free:
                free += 1
                continue
            failures += 1
            pause = min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
            if failure.pause is not None:
                pause = max(pause, failure.pause)
            if failures > RETRIES or pause > LONGEST_PAUSE * 1.25:
                break
            await asyncio.sleep(pause)
        tries = f"{failures} tries" if failures > 1 else "1 try"
        text = f"{self.shown}: {failure.reason} (after {tries}; timeout={self.transfer.timeout:g} s)"
        raise RemoteError(text)

    def _require_same(self, size: int, validator: str) -> None:
        """Raise `FileChangedError` unless an answer is about the file that was opened."""
        if self.size < 0:
            self.size, self.validator = size, validator
        elif size != self.size or (validator and self.validator and validator != self.validator):
            raise FileChangedError(
                f"{self.shown}: had {self.size} bytes ({self.validator or 'no ETag'}) when it was opened, has {size} "
                f"({validator or 'no ETag'}) now: open it again"
            )
