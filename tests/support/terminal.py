"""Runs the command line as people do: in a terminal of a given width."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MMGGUF = [sys.executable, "-m", "mmgguf"]


def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    """In a pipe."""
    command = [*MMGGUF, *map(str, args)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, check=False, **{"encoding": "utf-8", **options}
    )


def run_in_terminal(*args: object, columns: int, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output in a terminal of that many columns."""
    import pty

    leader, follower = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    variables |= {"COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})}
    process = subprocess.Popen(
        [*MMGGUF, *map(str, args)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=variables,
        cwd=Path(__file__).parents[2],
    )
    os.close(follower)
    output = bytearray()
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not data:
            break
        output += data
    os.close(leader)
    return process.wait(), output.decode().replace("\r\n", "\n")
