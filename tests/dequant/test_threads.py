"""Spreading parts of work over threads that stay."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mmgguf.dequant import threads
from mmgguf.dequant.threads import spread


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_each_part_is_done_once(count: int, n_threads: int) -> None:
    done: list[int] = []
    spread(done.append, range(count), n_threads)
    assert sorted(done) == list(range(count))


def test_as_many_threads_as_asked_for_and_the_caller_is_one() -> None:
    together = threading.Barrier(3, timeout=30)
    seen: set[int] = set()

    def work(part: int) -> None:
        together.wait()  # passes only if three threads work at a time
        seen.add(threading.get_ident())

    spread(work, range(3), 3)
    assert len(seen) == 3
    assert threading.get_ident() in seen


def test_one_thread_is_the_caller() -> None:
    seen: set[int] = set()
    spread(lambda part: seen.add(threading.get_ident()), range(10), 1)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("in_caller", [True, False])
def test_an_exception_ends_the_work(in_caller: bool) -> None:
    caller = threading.get_ident()
    both = threading.Barrier(2, timeout=30)
    running: set[int] = set()
    begun: list[int] = []

    def work(part: int) -> None:
        begun.append(part)
        if part > 1:
            return
        both.wait()
        if (threading.get_ident() == caller) == in_caller:
            raise IndexError(part)  # not to be taken for the end of the parts
        running.add(part)
        time.sleep(0.05)
        running.discard(part)

    with pytest.raises(IndexError):
        spread(work, range(1000), 2)
    # Whoever was still at work has finished, and hardly anything was begun after the failure.
    assert not running
    assert len(begun) < 1000


def test_many_callers_at_once() -> None:
    sums = [0] * 40

    def caller(index: int) -> None:
        done: list[int] = []
        spread(done.append, range(50), 4)
        sums[index] = sum(done)

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(caller, range(40)))
    assert sums == [sum(range(50))] * 40


def test_work_within_work() -> None:
    done: list[tuple[int, int]] = []
    spread(lambda i: spread(lambda j: done.append((i, j)), range(5), 3), range(50), 3)
    assert sorted(done) == [(i, j) for i in range(50) for j in range(5)]


def test_nothing_of_a_caller_is_kept() -> None:
    class Memory:
        pass

    memory = Memory()
    gone = weakref.ref(memory)
    together = threading.Barrier(2, timeout=30)

    def work(part: int, memory: Memory = memory) -> None:
        together.wait()

    spread(work, range(2), 2)
    del work, memory
    deadline = time.monotonic() + 30
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert gone() is None


def test_where_no_thread_can_be_had_the_caller_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    spread(done.append, range(10), 4)
    assert done == list(range(10))
    assert threads._helpers._tasks.empty()  # a task that nobody takes would hold the caller's arrays


def test_parts_are_taken_as_there_are_hands_for_them() -> None:
    drawn: list[int] = []

    def parts() -> Iterator[int]:
        for part in range(100):
            drawn.append(part)
            yield part

    behind: list[int] = []
    spread(lambda part: behind.append(len(drawn) - part), parts(), 2)
    assert sorted(drawn) == list(range(100))
    assert max(behind) <= 4


def test_an_interrupt_while_waiting_is_raised_after_the_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    caller = threading.current_thread()

    def work(part: int) -> None:
        if threading.current_thread() is not caller:
            started.set()
            may_end.wait(10)
            ended.set()
        else:
            started.wait(10)

    class Interrupted:
        """A lock whose first wait is interrupted, as by Ctrl-C."""

        def __init__(self, lock: Any) -> None:
            self.lock, self.waits = lock, 0

        def acquire(self) -> bool:
            self.waits += 1
            if self.waits == 1:
                may_end.set()
                raise KeyboardInterrupt
            return bool(self.lock.acquire())

        def release(self) -> None:
            self.lock.release()

    new = threads._Task.__init__

    def init(self: Any, *arguments: Any) -> None:
        new(self, *arguments)
        self._last = Interrupted(self._last)

    monkeypatch.setattr(threads._Task, "__init__", init)
    with pytest.raises(KeyboardInterrupt):
        spread(work, range(2), 2)
    assert ended.is_set()


def test_a_forked_child_has_threads_of_its_own() -> None:
    spread(lambda part: None, range(2), 2)
    parents = threads._helpers
    try:
        threads._forget()  # what the child of a fork calls
        test_as_many_threads_as_asked_for_and_the_caller_is_one()
        assert threads._helpers is not parents
    finally:
        threads._helpers = parents
