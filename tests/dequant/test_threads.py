"""Spreading parts of work over threads that stay."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from mmgguf.dequant import threads
from mmgguf.dequant.threads import spread

ROOT = Path(__file__).resolve().parents[2]


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

    class Memory:
        pass

    memory = Memory()
    gone = weakref.ref(memory)
    threads._pool.cache_clear()  # the next one has no threads yet
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []

    def work(part: int, memory: Memory = memory) -> None:
        done.append(part)

    try:
        spread(work, range(10), 4)
        assert done == list(range(10))
        del work, memory
        assert gone() is None  # a task that nobody takes would hold the caller's arrays
    finally:
        threads._pool.cache_clear()


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

    calls = []

    def interrupted(futures: Any) -> Any:
        """The first wait is interrupted, as by Ctrl-C."""
        calls.append(futures)
        if len(calls) == 1:
            may_end.set()
            raise KeyboardInterrupt
        return wait(futures)

    monkeypatch.setattr("concurrent.futures.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spread(work, range(2), 2)
    assert ended.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    spread(lambda part: None, range(2), 2)
    # Behind the installed package on the path, so that this one is tested.
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from tests.dequant.test_threads import in_a_child; in_a_child()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def in_a_child() -> None:
    """Fork after the pool has threads, and use two in the child."""
    test_as_many_threads_as_asked_for_and_the_caller_is_one()
    child = os.fork()
    if not child:
        test_as_many_threads_as_asked_for_and_the_caller_is_one()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
