"""Spread parts of work over threads, of which the caller is one.

The caller takes part in its own work.  So it never waits for a thread to wake up before it can begin, and when all
helpers are busy with other callers' parts it simply does everything itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:  # imported where threads are needed: half of what `import mmgguf` would load beside numpy
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["MOST_THREADS", "cores", "spread"]

#: The most helpers that all callers have together, and the most threads that one may ask for.
MOST_THREADS: Final = max(64, os.cpu_count() or 1)

_Part = TypeVar("_Part")


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: starting one takes as long as a compiled kernel needs for a megabyte."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MOST_THREADS, "mmgguf-dequantize")


if hasattr(os, "register_at_fork"):
    # A forked child has none of its parent's threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(work: Callable[[_Part], None], parts: Iterable[_Part], threads: int) -> None:
    """Call ``work`` with each of ``parts``, on at most ``threads`` threads, of which the caller is one.

    Parts are taken from the iterable one by one, as there are hands for them.

    The first exception, in any thread, ends the work: parts that nobody has begun are dropped, and it is raised
    once those under way are finished, so that no thread writes to the caller's memory afterwards.
    """
    iterator = iter(parts)
    # No more helpers than there are parts for.
    first = list(islice(iterator, threads))
    remaining = chain(first, iterator)
    lock = threading.Lock()
    ended = False

    def take() -> None:
        """Do parts until none is left."""
        nonlocal ended
        try:
            while not ended:
                with lock:
                    try:
                        part = next(remaining)  # noqa: F821  # deleted when nobody takes any more
                    except StopIteration:
                        return
                work(part)  # noqa: F821
        except BaseException:
            ended = True
            raise

    helpers: list[Future[None]] = []
    try:
        try:
            for _ in range(len(first) - 1):
                helpers.append(_pool().submit(take))  # noqa: PERF401  # what was submitted before an error counts
        except RuntimeError:
            pass  # no thread can be had: the others, or the caller alone, do the work
        take()
    finally:
        ended = True
        begun = [helper for helper in helpers if not helper.cancel()]
        _wait(begun)
        # What still waits in the pool's queue keeps nothing of the caller's alive.
        del work, remaining
    for helper in begun:
        helper.result()


def _wait(begun: list[Future[None]]) -> None:
    """Return when all are done; a Ctrl-C meanwhile is raised afterwards."""
    if not begun:
        return
    from concurrent.futures import wait

    interrupt: BaseException | None = None
    while True:
        try:
            wait(begun)
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
