"""One JSON of one run: what every figure in the README, in the documentation and in a chart comes from.

pytest-benchmark reads it, too: ``benchmarks`` holds an entry for each contestant of each case, whose ``fullname`` is an
id such as ``open/vocabulary: mmgguf``.  It names what is measured, not the function that measures it, so that runs can
be compared after the suite's functions were renamed.  `RENAMED` has the ids that changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .words import duration

__all__ = ["RENAMED", "TRACKED", "Panel", "Results", "Time", "empty", "entry"]

#: The run that the README and the documentation tell of.
TRACKED: Final = Path(__file__).parent / "results" / "results.json"

#: Old to new ids of cases: so that an old run can still be read.
RENAMED: Final[Mapping[str, str]] = {}


#: Programs for each processor, the suite's own included, above which figures say little.
BUSY: Final = 1.3


@dataclass(frozen=True)
class Time:
    """Seconds that a contestant took: the median of its rounds, and their quartiles."""

    median: float
    q1: float
    q3: float
    rounds: int


@dataclass
class Panel:
    """One part of a chart: contestants of one case.

    Attributes
    ----------
    title : str
        What they did.
    times : mapping of str to Time
        By contestant.
    values : callable, optional
        What to write beside a point; the median as a person writes it.
    absent : mapping of str to str
        Who could not take part, and why.
    """

    title: str
    times: Mapping[str, Time]
    values: Callable[[Time], str] = lambda time: duration(time.median)
    absent: Mapping[str, str] = field(default_factory=dict)


def empty(**about: Any) -> dict[str, Any]:
    """A run in which nothing was measured yet."""
    return {**about, "modules": [], "failed": [], "load": {}, "seconds": {}, "benchmarks": [], "cases": {}}


def entry(case: str, contestant: str, stats: Mapping[str, Any], module: str) -> dict[str, Any]:
    """What pytest-benchmark expects of a result."""
    name = f"{case}: {contestant}"
    return {
        "group": case,
        "name": name,
        "fullname": name,
        "params": None,
        "param": None,
        "extra_info": {"contestant": contestant, "module": module},
        "options": {},
        "stats": dict(stats),
    }


class Results:
    """A run, as it was written."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = {"load": {}, **data}  # runs of before had none
        self._times: dict[str, dict[str, Time]] = {}
        for bench in data["benchmarks"]:
            stats = bench["stats"]
            time = Time(stats["median"], stats["q1"], stats["q3"], stats["rounds"])
            case = RENAMED.get(bench["group"], bench["group"])
            self._times.setdefault(case, {})[bench["extra_info"]["contestant"]] = time
        self._cases = {RENAMED.get(id_, id_): case for id_, case in data["cases"].items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str] = TRACKED) -> Results:
        return cls(json.loads(Path(path).read_text("utf-8")))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, with each result in a line of its own."""
        data = self.data
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items() if key not in _LINEWISE]
        for key in _LINEWISE:
            items: Iterable[str]
            if isinstance(data[key], dict):
                items = (f"  {json.dumps(id_)}: {json.dumps(value)}" for id_, value in data[key].items())
                lines.append(f' "{key}": {{\n' + ",\n".join(items) + "\n }")
            else:
                lines.append(f' "{key}": [\n' + ",\n".join(f"  {json.dumps(one)}" for one in data[key]) + "\n ]")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")

    # What cases have.

    def __contains__(self, case: str) -> bool:
        return case in self._times or case in self._cases

    def cases(self, room: str) -> list[str]:
        """The ids of the cases in a room such as ``open``, in the order of measuring."""
        return [id_ for id_ in dict.fromkeys([*self._cases, *self._times]) if id_.startswith(room + "/")]

    def times(self, case: str) -> dict[str, Time]:
        """By contestant, in the order of the case; empty where it was not measured."""
        return self._times.get(case, {})

    def median(self, case: str, contestant: str) -> float:
        return self._times[case][contestant].median

    def ratio(self, case: str, one: str, other: str) -> float:
        """The median of `one` divided by that of `other`."""
        return self.median(case, one) / self.median(case, other)

    def facts(self, case: str) -> dict[str, Any]:
        """What else is known of a case: its ``title``, bytes, counts, and what was measured without a clock."""
        facts: dict[str, Any] = self._cases.get(case, {}).get("facts", {})
        return facts

    def absent(self, case: str) -> dict[str, str]:
        """Contestants that could not take part, and why."""
        absent: dict[str, str] = self._cases.get(case, {}).get("absent", {})
        return absent

    # What the run was.

    @property
    def date(self) -> str:
        return str(self.data["datetime"])[:10]

    @property
    def machine(self) -> dict[str, str]:
        machine: dict[str, str] = self.data["machine_info"]
        return machine

    @property
    def complete(self) -> bool:
        """Whether it has every module at full size on the suite's own files."""
        return not self.shortcomings

    @property
    def failed(self) -> list[str]:
        """The benchmarks that failed: nothing of them is kept."""
        return list(self.data.get("failed", []))

    @property
    def shortcomings(self) -> list[str]:
        """What it lacks of the whole suite, as sentences."""
        found = []
        if self.data["files"]:
            found.append(f"It measured only files that were given: {', '.join(self.data['files'])}.")
        if self.data["sizes"] != "full":
            found.append("Its files were small: this shows that the suite works, not how fast anything is.")
        if self.failed:
            found.append(f"These failed: {', '.join(self.failed)}.")
        loads = sorted(self.data.get("load", {}).values())
        if loads and (load := loads[len(loads) // 2]) > BUSY:
            found.append(
                f"Other programs kept the machine busy ({load:.0f} for each processor): figures are indicative."
            )
        missing = [name for name in self.data["all_modules"] if name not in self.data["modules"]]
        if missing and not self.data["files"]:
            found.append(f"It left out: {', '.join(missing)}.")
        return found


_LINEWISE: Final = ("load", "seconds", "cases", "benchmarks")
