"""Threads that stay: starting one takes as long as a compiled kernel needs for a megabyte.

The caller takes part in its own work.  So it never waits for a thread to wake up before it can begin, and when
all helpers are busy with other callers' parts it simply does everything itself.  The ways are short on purpose:
`concurrent.futures` would add a tenth to what two threads need for a tensor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from itertools import chain, islice
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["spread"]

_Part = TypeVar("_Part")


def spread(work: Callable[[_Part], None], parts: Iterable[_Part], threads: int) -> None:
    """Call ``work`` with each of ``parts``, on at most ``threads`` threads, of which the caller is one.

    Parts are taken from the iterable one by one, as there are hands for them.

    The first exception, in any thread, ends the work: parts that nobody has begun are dropped, and it is raised
    once those under way are finished, so that no thread writes to the caller's memory afterwards.
    """
    iterator = iter(parts)
    # No more helpers than there are parts for.
    first = list(islice(iterator, threads))
    task = _Task(work, chain(first, iterator))
    try:
        if len(first) > 1:
            _helpers.ask(task, len(first) - 1)
        task.take()
    finally:
        task.close()
    if task.error is not None:
        raise task.error


class _Task(Generic[_Part]):
    """Parts of one caller's work, and who is at it."""

    __slots__ = ("_closed", "_helping", "_last", "_lock", "_parts", "error", "work")

    def __init__(self, work: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
        self.work = work
        self._parts = iter(parts)
        #: What went wrong in a helper.
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._helping = 0
        self._closed = False
        #: Held until the last helper leaves a closed task.
        self._last = threading.Lock()
        self._last.acquire()

    def take(self) -> None:
        """Do parts until none is left."""
        try:
            while True:
                with self._lock:
                    try:
                        part = next(self._parts)
                    except StopIteration:
                        return
                self.work(part)
        except BaseException:
            with self._lock:
                self._parts = iter(())
            raise

    def help(self) -> None:
        """Take parts in a helper, unless the caller has finished already."""
        with self._lock:
            if self._closed:
                return
            self._helping += 1
        try:
            self.take()
        except BaseException as error:
            self.error = error
        with self._lock:
            self._helping -= 1
            if self._closed and not self._helping:
                self._last.release()

    def close(self) -> None:
        """Let no more helpers in, and wait for those that are; a Ctrl-C meanwhile is raised afterwards."""
        interrupt: BaseException | None = None
        while True:
            try:
                with self._lock:
                    self._closed = True
                    if not self._helping:
                        break
                self._last.acquire()
            except BaseException as error:
                self._parts = iter(())
                interrupt = error
        if interrupt is not None:
            raise interrupt


class _Helpers:
    """Daemon threads that wait for tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._tasks: SimpleQueue[_Task[object]] = SimpleQueue()

    def ask(self, task: _Task[_Part], count: int) -> None:
        """Offer a task to so many threads; as many are started as were ever asked for at a time."""
        while self._count < count:
            with self._lock:
                if self._count < count:
                    try:
                        threading.Thread(target=self._run, name="mmgguf-dequantize", daemon=True).start()
                    except RuntimeError:
                        break  # none can be had: the others, or the caller alone, do the work
                    self._count += 1
        for _ in range(min(count, self._count)):
            self._tasks.put(task)  # type: ignore[arg-type]  # whatever its parts are

    def _run(self) -> None:
        while True:
            task = self._tasks.get()
            task.help()
            del task  # it holds the caller's arrays


_helpers = _Helpers()


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
