"""Time, system calls, the page cache and memory, measured so that contestants can be compared."""

from __future__ import annotations

import errno
import gc
import io
import mmap
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Contestant",
    "Timing",
    "compare",
    "evict",
    "is_cached",
    "warm_up",
    "why_not_cold",
]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work that is compared.

    Attributes
    ----------
    run : callable
        Does the work and returns its result.
    finish : callable, optional
        Takes the result and gives up what it holds; not timed.
    prepare : callable, optional
        Called before each run; not timed.
    """

    run: Callable[[], Any]
    finish: Callable[[Any], Any] | None = None
    prepare: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that runs took.

    Attributes
    ----------
    best, median : float
        Of the wall clock.  On a machine that does other things too the best says most: it was disturbed least.
    cpu : float
        The least processor time of this thread.
    rounds : int
        How many runs there were.
    """

    best: float
    median: float
    cpu: float
    rounds: int


def compare(
    contestants: Mapping[str, Contestant],
    seconds: float = 1.0,
    max_rounds: int = 200,
    advance: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Time contestants in turns, so that changes of the machine's speed affect all of them.

    Parameters
    ----------
    contestants : mapping of str to Contestant
        By name.
    seconds : float
        For each contestant: it runs at least once, and no more when this time is used up.
    max_rounds : int
        The most runs of each.
    advance : callable, optional
        Called after each round.

    Returns
    -------
    dict of str to Timing
        In the order of `contestants`.
    """
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    cpus: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(max_rounds):
        ran = False
        for name, contestant in contestants.items():
            if walls[name] and sum(walls[name]) > seconds:
                continue
            ran = True
            if contestant.prepare is not None:
                contestant.prepare()
            wall, cpu = time.perf_counter(), time.thread_time()
            result = contestant.run()
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            if contestant.finish is not None:
                contestant.finish(result)
            del result
            walls[name].append(wall)
            cpus[name].append(cpu)
        if advance is not None:
            advance()
        if not ran:
            break
    return {
        name: Timing(min(wall), statistics.median(wall), min(cpus[name]), len(wall)) for name, wall in walls.items()
    }


# ---------------------------------------------------------------- the page cache


def is_cached(path: str | os.PathLike[str], samples: int = 64) -> float:
    """The share of a file's pages that are in the page cache, from pages spread evenly over it.

    Asks with ``preadv2(RWF_NOWAIT)``, which gives up where it would have to wait for the disk.  The kernel may then
    read that page by itself, so asking again about the same places tells nothing.

    Raises
    ------
    OSError
        The system or the file system cannot answer.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        raise OSError(errno.ENOSYS, "this system has no preadv2 with RWF_NOWAIT")
    size = os.path.getsize(path)
    places = sorted({size * i // samples // mmap.PAGESIZE * mmap.PAGESIZE for i in range(samples)})
    present = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Read ahead would answer for the next sample.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        buffer = bytearray(1)
        for place in places:
            try:
                present += os.preadv(descriptor, [buffer], place, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                continue
    finally:
        os.close(descriptor)
    return present / max(len(places), 1)


def warm_up(path: str | os.PathLike[str]) -> None:
    """Read the whole file, so that it is in the page cache as far as memory allows."""
    buffer = bytearray(1 << 20)
    with io.FileIO(path) as file:
        while file.readinto(buffer):
            pass


def evict(path: str | os.PathLike[str]) -> None:
    """Drop a file from the page cache, and make sure that it is gone.

    Raises
    ------
    OSError
        The system has no ``posix_fadvise``, or pages stayed: another process maps them, or the file system (tmpfs) is
        the memory itself.
    """
    if not hasattr(os, "posix_fadvise"):
        raise OSError(errno.ENOSYS, "this system has no posix_fadvise")
    deadline = time.monotonic() + 5
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages are dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        share = is_cached(path)
        if share <= 0.02:
            return
        if time.monotonic() > deadline:
            break
        # Mappings that wait in reference cycles hold their pages, and so does a kernel that is looking at them.
        gc.collect()
        time.sleep(0.05)
    raise OSError(errno.EBUSY, f"{share:.0%} of the file stayed in the page cache", os.fspath(path))


def why_not_cold(path: str | os.PathLike[str]) -> str | None:
    """Why a file cannot be measured with a cold cache on this system; None if it can."""
    try:
        evict(path)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        warm_up(path)
    return None
