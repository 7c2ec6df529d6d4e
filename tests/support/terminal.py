"""Runs the command line as people do: in a pipe, or in a terminal of a given width.

Starting Python and importing what the command line needs takes half a second, and some tests start it often.  So on
Linux one process imports that, and forks another for each command, which goes on as ``python -m mmgguf`` does.
"""

from __future__ import annotations

import atexit
import os
import pickle
import selectors
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

__all__ = ["MMGGUF", "run", "run_in_terminal"]

MMGGUF = [sys.executable, "-m", "mmgguf"]
ROOT = Path(__file__).parents[2]

#: The process that forks.  A child leaves the loop, and ends as a program does that was started for it alone.
_PREPARED = """
import contextlib, os, pickle, runpy, socket, sys
import mmgguf.cli
with contextlib.suppress(ImportError):  # what most commands import later
    import importlib.metadata, rich.progress, rich.table, typer._adapters
server = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, streams, _, _ = socket.recv_fds(server, 1 << 20, 3)
    if not message:
        os._exit(0)
    child = os.fork()
    if not child:
        break
    for stream in streams:
        os.close(stream)
    server.send(pickle.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
server.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
arguments, environment, folder = pickle.loads(message)
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
    old = getattr(sys, name)
    lines = 1 if name == "stderr" or os.isatty(number) else -1
    new = open(number, mode, lines, encoding=old.encoding, errors=old.errors)
    setattr(sys, name, new)
    setattr(sys, f"__{name}__", new)
sys.argv = ["mmgguf", *arguments]
runpy.run_module("mmgguf", run_name="__main__", alter_sys=True)
"""


@cache
def _prepared(variables: tuple[tuple[str, str], ...]) -> socket.socket:
    """The connection to a process that was started with these environment variables, among others."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", _PREPARED, str(there.fileno())],
        pass_fds=[there.fileno()],
        env=os.environ | dict(variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    there.close()

    def end() -> None:
        with here:
            here.send(b"")
        process.wait()

    atexit.register(end)
    return here


class _Started:
    """A command that runs with these standard streams."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int], folder: str | Path
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            # Python looks at these only when it starts.
            at_start = {k: v for k, v in environment.items() if k.startswith(("PYTHON", "LC_", "LANG"))}
            self._server = _prepared(tuple(sorted(at_start.items())))
            message = pickle.dumps((list(arguments), dict(environment), str(folder)))
            socket.send_fds(self._server, [message], list(streams))
        else:
            stdin, stdout, stderr = streams
            self._process = subprocess.Popen(
                [*MMGGUF, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=folder
            )

    def wait(self) -> int:
        """Its exit status."""
        if self._process is not None:
            return self._process.wait()
        status: int = pickle.loads(self._server.recv(1000))
        return status


def run(
    *args: object, env: Mapping[str, str] | None = None, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """In pipes."""
    arguments = list(map(str, args))
    out, out_end = os.pipe()
    errors, errors_end = os.pipe()
    with open(os.devnull) as nothing:
        streams = (nothing.fileno(), out_end, errors_end)
        process = _Started(arguments, os.environ if env is None else env, streams, os.getcwd())
    os.close(out_end)
    os.close(errors_end)
    found = {out: b"", errors: b""}
    with selectors.DefaultSelector() as selector:
        for end in found:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                found[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    text = {end: data.decode(encoding) for end, data in found.items()}
    return subprocess.CompletedProcess([*MMGGUF, *arguments], process.wait(), text[out], text[errors])


def run_in_terminal(*args: object, columns: int, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output in a terminal of that many columns."""
    import pty

    leader, follower = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    variables |= {"COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})}
    process = _Started(list(map(str, args)), variables, (follower, follower, follower), ROOT)
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
