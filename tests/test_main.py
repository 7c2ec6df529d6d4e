"""The program as a process: outputs that take no more, and signals."""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

import mmgguf

from .support.terminal import MMGGUF

pytest.importorskip("typer")
pytest.importorskip("rich")
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More tokens and names than a pipe holds, so that the writer is still busy when the reader goes away."""
    path = tmp_path_factory.mktemp("main") / "many.gguf"
    mmgguf.write(path, {"tokens": ["token"] * 20_000}, {f"tensor.{i}": np.zeros(1, "f4") for i in range(1000)})
    return path


def default_signals() -> None:
    """In the child: a shell that runs the tests in the background has it ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(command: list[Any], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(list(map(str, command)), text=True, preexec_fn=default_signals, **options)


# ---------------------------------------------------------------- outputs that take no more

#: With and without PYTHONUNBUFFERED: the error comes with a write or with the last flush.
COMMANDS = [
    (["ls", "MODEL"], ""),
    (["show", "--full", "MODEL"], "1"),
    (["verify", "--json", "MODEL"], ""),
    (["compare", "--json", "MODEL", "MODEL"], "1"),
    (["--help"], ""),
    (["ls", "--help"], "1"),
]


def written_to(output: int, model: Path, command: list[str], unbuffered: str) -> tuple[int, str]:
    """Exit status and standard error of a command."""
    done = subprocess.run(
        [*MMGGUF, *(str(model) if part == "MODEL" else part for part in command)],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("command", "unbuffered"), COMMANDS)
def test_a_full_disk(command: list[str], unbuffered: str, model: Path) -> None:
    """Status 2, since 1 says something of the file: "differ", "found"."""
    with open("/dev/full", "w") as full:
        found = written_to(full.fileno(), model, command, unbuffered)
    assert found == (2, "mmgguf: the output cannot be written: No space left on device\n")


@posix
@pytest.mark.parametrize(("command", "unbuffered"), COMMANDS)
def test_a_closed_pipe(command: list[str], unbuffered: str, model: Path) -> None:
    """As with ``| head``: silent."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert written_to(writer, model, command, unbuffered) == (2, "")
    finally:
        os.close(writer)


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["ls", "--json"], ["show", "--full"]], ids=" ".join)
@pytest.mark.parametrize("is_full", [False, True])
def test_a_pipe_that_is_closed_on_the_way(command: list[str], unbuffered: str, is_full: bool, model: Path) -> None:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start([*MMGGUF, *command, model], env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, **options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        if is_full:  # in the middle of a write, which has to wait
            import fcntl
            import termios

            held = array.array("i", [0])
            while held[0] < 60_000:
                assert process.poll() is None
                fcntl.ioctl(process.stdout, termios.FIONREAD, held)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 2


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_file_that_takes_a_part(unbuffered: str, model: Path, tmp_path: Path) -> None:
    """The system writes up to the limit, and says so only at the next write."""
    with open(tmp_path / "out", "wb") as out:
        process = start(
            ["sh", "-c", 'ulimit -f 100 && exec "$@"', "sh", *MMGGUF, "show", "--full", model],
            stdout=out, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
        _, said = process.communicate()
    assert (process.returncode, said) == (2, "mmgguf: the output cannot be written: File too large\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_room_for_the_error_either() -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*MMGGUF, "verify", "nothing"], stdout=full, stderr=full, check=False).returncode == 2


# ---------------------------------------------------------------- signals

IN_A_COMMAND = """
import os, signal, mmgguf
mmgguf.open = lambda *_: os.kill(os.getpid(), signal.SIG{0})
from mmgguf.__main__ import main
main()
"""
IN_AN_IMPORT = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""
#: `demo`, which stops in the middle of its write: a temporary file in a temporary folder.
WRITE = """
import sys, time
from mmgguf.__main__ import main
from mmgguf.cli import app
from mmgguf.format.target import replacing

def write(path, *_, **__):
    with replacing(path) as file:
        file.write(b"half")
        print("writing", flush=True)
        time.sleep(30)

import mmgguf.bench.models
mmgguf.bench.models.every_type = write
main()
"""


@posix
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_in_a_command(name: str, model: Path) -> None:
    process = start(
        [sys.executable, "-c", IN_A_COMMAND.format(name), "ls", model], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (128 + getattr(signal, f"SIG{name}"), "", "")


@posix
@pytest.mark.parametrize("package", ["numpy", "typer", "rich"])
def test_an_interrupt_of_the_imports(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(IN_AN_IMPORT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = start([*MMGGUF, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (-signal.SIGINT, "", "")


@posix
def test_whoever_imports_the_library_keeps_the_handlers() -> None:
    code = """if True:
        import mmgguf, signal
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        print([signal.getsignal(n) in (signal.default_int_handler, signal.SIG_DFL) for n in numbers])
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    process = start([sys.executable, "-c", code, "mmgguf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.communicate() == ("[True, True, True]\nTrue\n", "")


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


@posix
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_removes_temporary_files(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with start(
        [sys.executable, "-c", WRITE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert _line(process.stdout) == "writing\n"
        (folder,) = tmp_path.iterdir()
        (temporary,) = folder.iterdir()
        assert temporary.name.startswith(".mmgguf-")
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.communicate()[1] == ""
    assert process.returncode == 128 + getattr(signal, f"SIG{name}")
    assert not list(tmp_path.iterdir())


@posix
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """``nohup mmgguf convert …`` goes on when the terminal is closed."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-c", WRITE, "demo"]
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert _line(process.stdout) == "writing\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
