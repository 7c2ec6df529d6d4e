"""Contestants in turns: the time of each run of each, with the rounds of slow ones spread among those of fast ones.

Whatever changes the machine's speed meets all contestants of a case alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Contestant", "summary", "take_turns"]

#: Seconds from which a first run is a result, and no warm-up.
SLOW = 1.0
#: Least seconds of a sample; what is shorter runs several times in a row, and a sample is their mean.
SHORTEST = 50e-6
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of a case.

    Attributes
    ----------
    run : callable
        Does the work; what it returns is checked once, and let go.
    prepare, finish : callable, optional
        Before each run, and with its result after it; not timed.
    tells : bool
        `run` returns the seconds that it took itself, as a fresh process does.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    tells: bool = False


def sample(contestant: Contestant, iterations: int = 1, check: Callable[[Any], Any] | None = None) -> float:
    """Seconds of one run."""
    if contestant.prepare is not None:
        contestant.prepare()
    run = contestant.run
    began = time.perf_counter()
    for _ in range(iterations - 1):
        run()
    result = run()
    seconds = (time.perf_counter() - began) / iterations
    if contestant.tells:
        seconds = float(result)
    if check is not None:
        check(result)
    if contestant.finish is not None:
        contestant.finish(result)
    return seconds


def rounds_of(seconds: float, budget: float, whole: float) -> int:
    """How often a contestant runs whose first run took so long, and so long with all that is not timed.

    At least five times, three or once where it is slow; what is not timed may take twice the budget.
    """
    least = 5 if whole < SLOW / 2 else 3 if whole < 2 * SLOW else 1
    return max(least, min(MOST_ROUNDS, int(budget / max(seconds, 1e-9)), int(2 * budget / max(whole, 1e-9))))


def take_turns(
    contestants: Mapping[str, Contestant],
    budget: float,
    check: Callable[[str, Any], Any] | None = None,
    once: bool = False,
    refused: Callable[[str, Exception], bool] = lambda name, error: False,
) -> dict[str, tuple[list[float], int]]:
    """Run all contestants.

    Parameters
    ----------
    contestants : mapping of str to Contestant
        By name.
    budget : float
        Seconds that each should take, all its runs together.
    check : callable, optional
        Called with the name and the result of each contestant's first run; raises where the result is wrong.
    once : bool
        Only that first run.
    refused : callable, optional
        Called with the name and what a first run raised; true if the contestant is to be left out for it.

    Returns
    -------
    dict
        By name: the seconds of each run, and how many times the work was done in a row in each.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    iterations = dict.fromkeys(contestants, 1)
    rounds = {}
    for name, contestant in contestants.items():
        began = time.perf_counter()
        checking: list[float] = []

        def checked(result: Any, name: str = name, checking: list[float] = checking) -> None:
            if check is not None:
                started = time.perf_counter()
                check(name, result)
                checking.append(time.perf_counter() - started)

        try:
            first = sample(contestant, check=checked)
        except AssertionError:
            raise
        except Exception as error:
            if not refused(name, error):
                raise
            continue
        whole = time.perf_counter() - began - sum(checking)
        if not once and SLOW <= first < 5 * SLOW:
            # What was slow once may have compiled something.
            began = time.perf_counter()
            second = sample(contestant)
            whole = time.perf_counter() - began
            if second < first / 2:
                first = second
            else:
                taken[name].append(second)
        rounds[name] = rounds_of(first, budget, max(first, whole)) - len(taken[name])
        if once or first >= SLOW:
            taken[name].insert(0, first)
            rounds[name] -= 1
        elif contestant.prepare is None and contestant.finish is None and not contestant.tells and first < SHORTEST:
            # The first run has cold caches; the second tells how many fit.
            second = sample(contestant)
            iterations[name] = max(1, round(SHORTEST / max(second, 1e-8)))
            rounds[name] = MOST_ROUNDS
    ready = {name: contestant for name, contestant in contestants.items() if name in rounds}
    most = 0 if once else max([0, *rounds.values()])
    for turn in range(most):
        for name, contestant in ready.items():
            # So many of `most` turns, evenly.
            if (turn + 1) * rounds[name] // most > turn * rounds[name] // most:
                taken[name].append(sample(contestant, iterations[name]))
    return {name: (taken[name], iterations[name]) for name in ready}


def summary(seconds: list[float], iterations: int = 1) -> dict[str, Any]:
    """What is kept of runs, under the names that pytest-benchmark gives these numbers."""
    ordered = sorted(seconds)
    q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    mean = statistics.fmean(ordered)
    numbers = {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": statistics.stdev(ordered) if len(ordered) > 1 else 0.0,
        "median": median,
        "q1": q1,
        "q3": q3,
        "iqr": q3 - q1,
        "ops": 1 / mean if mean else 0.0,
        "total": sum(ordered) * iterations,
    }
    far = sum(abs(value - mean) > numbers["stddev"] for value in ordered)
    outside = sum(not q1 - 1.5 * (q3 - q1) <= value <= q3 + 1.5 * (q3 - q1) for value in ordered)
    return {
        **{name: float(f"{value:.5g}") for name, value in numbers.items()},
        "outliers": f"{far};{outside}",
        "stddev_outliers": far,
        "iqr_outliers": outside,
        "rounds": len(ordered),
        "iterations": iterations,
    }
