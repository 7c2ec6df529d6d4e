"""The C library's reader on hostile files, in processes of its own: it may abort, and then another one is started."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import mmgguf
from mmgguf import GGMLType, Header
from mmgguf.format.strings import StringArray, encode

from . import ggml
from .differences import explain_accepted, explain_refused

__all__ = ["Judge", "Oracle", "ours", "serve"]

#: Not this folder first on the path: where mmgguf is installed, that one is tested.
_SERVE = "import sys; sys.path.append(sys.argv[1]); from tests.support.differential import serve; serve()"
_SECONDS = 20


class Oracle:
    """One process with the C library; `ask` it about files."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=root,
            start_new_session=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )

    def ask(self, path: Path) -> dict[str, Any] | str:
        """What C has read: metadata and tensors; or ``"refused"``, or ``"aborted"``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = b""
        try:
            self._process.stdin.write(f"{path}\n".encode())
            self._process.stdin.flush()
            if select.select([self._process.stdout], [], [], _SECONDS)[0]:
                answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:  # it takes too long
            self.close()
            self._start()
            return "aborted"
        result: dict[str, Any] | str = json.loads(answer)
        return result

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve() -> None:
    """Answer one line of JSON for each path on the standard input.

    A child does the work.  If C ends it, the answer is ``"aborted"``, and another is forked, which costs less than to
    start Python and to load the library once more.
    """
    import resource

    # C prints to the standard output as well.
    answers = os.dup(1)
    os.dup2(2, 1)
    ggml.require()
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        child = os.fork()
        if child == 0:
            with os.fdopen(0, "rb", buffering=0) as questions:
                for line in questions:
                    path = line.decode().rstrip("\n")
                    os.write(answers, json.dumps(_theirs(path)).encode() + b"\n")
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        os.write(answers, b'"aborted"\n')


def _theirs(path: str) -> dict[str, Any] | str:
    with ggml.open_gguf(os.fsencode(path)) as f:
        if f is None:
            return "refused"
        return {
            "alignment": f.alignment,
            "data_offset": f.data_offset,
            "metadata": [[key.hex(), _plain(f.value(i))] for i, key in enumerate(f.keys)],
            "tensors": [[name.hex(), t[0], list(t[1]), t[2], t[3]] for name, t in f.tensors.items()],
        }


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case list():
            return [_plain(item) for item in value]
        case np.ndarray():
            return [_plain(item) for item in value.tolist()]
        case float():
            return value.hex()  # also of what is not finite
    return value


def _c_string(text: str) -> str:
    """The bytes of a string up to its first NUL, as hexadecimal: what C's functions give."""
    return encode(text).partition(b"\0")[0].hex()


def ours(header: Header) -> dict[str, Any]:
    """What mmgguf has read, in the words of `Oracle.ask`."""

    def plain(value: Any) -> Any:
        match value:
            case str():
                return _c_string(value)
            case StringArray():
                return [_c_string(item) for item in value]
        return _plain(value)

    return {
        "alignment": header.alignment,
        "data_offset": header.data_offset,
        "metadata": [[_c_string(key), plain(header.metadata[key])] for key in header.metadata],
        "tensors": [
            [_c_string(t.name), int(t.type), [*t.ne, *[1] * (4 - len(t.ne))], t.offset, t.nbytes]
            for t in header.tensors.values()
            if isinstance(t.type, GGMLType)
        ],
    }


class Judge:
    """Holds mmgguf against C file by file, and counts which rows of the table explained what."""

    def __init__(self, oracle: Oracle, path: Path) -> None:
        self.oracle, self.path = oracle, path
        self.explained: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        """Raises `AssertionError` for a difference that is in no row."""
        self.path.write_bytes(data)
        theirs = self.oracle.ask(self.path)
        try:
            header = mmgguf.read_header(io.BytesIO(data))
        except mmgguf.GGUFError as error:
            if isinstance(theirs, str):
                self.explained[f"both refuse ({theirs})"] += 1
                return
            row = explain_refused(str(error))
            if row is None:
                raise AssertionError(f"C accepts, mmgguf says: {error}\n{data!r}") from None
        else:
            if isinstance(theirs, str):
                row = explain_accepted(header, data)
                assert row is not None, f"mmgguf accepts, C has {theirs}\n{data!r}"
            else:
                row = "both accept"
                assert _normal(ours(header)) == _normal(theirs), f"read differently\n{data!r}"
        self.explained[row] += 1


def _normal(read: dict[str, Any]) -> dict[str, Any]:
    # Without tensors there is no data section, and C does not pad to where it would be.
    return read if read["tensors"] else {**read, "data_offset": None}
