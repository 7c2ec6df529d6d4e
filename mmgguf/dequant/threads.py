"""Threads that stay: starting one takes as long as a compiled kernel needs for a megabyte.

The caller takes part in its own work.  So it never waits for a thread to wake up before it can begin, and when
all workers are busy with other callers' parts it simply does everything itself.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["spread"]

_Part = TypeVar("_Part")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def spread(work: Callable[[_Part], None], parts: Iterable[_Part], threads: int) -> None:
    """Call ``work`` with each of ``parts``, on at most ``threads`` threads, of which the caller is one.

    The first exception, in any thread, ends the work: parts that nobody has begun are dropped, and it is raised
    once those under way are finished, so that no thread writes to the caller's memory afterwards.
    """
    left = deque(parts)

    def take() -> None:
        try:
            while True:
                try:
                    part = left.popleft()
                except IndexError:
                    return
                work(part)
        except BaseException:
            left.clear()
            raise

    helpers = _helpers(take, min(threads, len(left)) - 1)
    try:
        take()
    finally:
        # A helper that has not begun has nothing left to do.
        running = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in running]
    for error in errors:
        if error is not None:
            raise error


def _helpers(task: Callable[[], None], count: int) -> list[Future[None]]:
    # Imported with the first thread, since it brings logging along.
    from concurrent.futures import ThreadPoolExecutor

    global _pool
    helpers: list[Future[None]] = []
    try:
        for _ in range(count):
            with _lock:
                if _pool is None:
                    # Threads are only started when none is idle.
                    _pool = ThreadPoolExecutor(max(32, os.cpu_count() or 1), "mmgguf-dequantize")
                helpers.append(_pool.submit(task))
    except RuntimeError:
        # No thread can be had, or the interpreter is shutting down: the caller does the work.
        pass
    return helpers


def _forget() -> None:
    """A forked child has the pool, but not its threads."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
