"""Measure memory, and the time of first uses, in fresh processes.

Run as ``python -m benchmarks.process``, it does what the lines on its standard input say and answers each with a line
of JSON: see `Child`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mmgguf
from mmgguf.bench.ways import page_sum

__all__ = ["Child", "fresh_seconds", "memory_usage"]


def _environment() -> dict[str, str]:
    """This one's, with the mmgguf that is imported here, and with this package."""
    folders = [str(Path(file).parents[1]) for file in (mmgguf.__file__, __file__)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])}


class Child:
    """A fresh process that opens a file step by step and says after each what memory it has.

    Steps: ``open PATH BACKEND``, ``touch`` (read a byte of every page of every tensor, and keep the arrays),
    ``drop`` (let the arrays go), ``release`` (give the pages back to the kernel), ``close``, ``memory`` (nothing).
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        self.memory: dict[str, int] = self.step("memory")

    def step(self, *words: str) -> dict[str, int]:
        """Do a step; what `memory_usage` says afterwards."""
        self.begin(*words)
        return self.end()

    def begin(self, *words: str) -> None:
        """Start a step without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, int]:
        """Wait for the step."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measuring process ended with status {self._process.wait()}")
        answer: dict[str, int] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()


def fresh_seconds(statement: str, cache: str | os.PathLike[str], setup: str = "") -> float:
    """Seconds that a statement takes in a fresh process, as the first thing that it does.

    Parameters
    ----------
    statement : str
        What to run; in one line.
    cache : path-like
        A folder for compiled modules, so that the second call measures what users have, whatever the settings here.
    setup : str
        Run before it, not timed.
    """
    program = f"import time\n{setup}\nstart = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    environment = {**_environment(), "PYTHONPYCACHEPREFIX": os.fspath(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


_SMAPS = "/proc/self/smaps_rollup"


def memory_usage() -> dict[str, int]:
    """What this process has in memory, in bytes, from ``/proc/self/smaps_rollup``.

    Returns
    -------
    dict of str to int
        ``anonymous``: memory of its own.  ``file``: pages of files, shared through the page cache.  ``share``: its
        share of all these, a page that n processes have counting 1/n (PSS).  ``file_share``: the same of the pages of
        files alone.

    Raises
    ------
    OSError
        The system has no such file.
    """
    fields: dict[str, int] = {}
    with open(_SMAPS, encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if rest.endswith("kB\n"):
                fields[name] = int(rest.split()[0]) * 1024
    return {
        "anonymous": fields["Anonymous"],
        "file": fields["Rss"] - fields["Anonymous"],
        "share": fields["Pss"],
        "file_share": fields.get("Pss_File", fields["Pss"] - fields.get("Pss_Anon", 0)),
    }


def _serve() -> None:
    file: Any = None
    arrays: list[Any] = []
    for line in sys.stdin:
        step, *words = json.loads(line)
        started = time.perf_counter()
        total = 0
        if step == "open":
            file = mmgguf.open(words[0], storage=words[1])
        elif step == "touch":
            arrays = [tensor.data for tensor in file.values()]
            total = sum(page_sum(array) for array in arrays)
        elif step == "drop":
            arrays = []
        elif step == "release":
            for shard in file.shards:
                shard.file.release(0, shard.file.size)
        elif step == "close":
            file.close()
            file = None
        seconds = time.perf_counter() - started
        print(json.dumps({**memory_usage(), "total": total, "microseconds": round(seconds * 1e6)}), flush=True)


if __name__ == "__main__":
    _serve()
