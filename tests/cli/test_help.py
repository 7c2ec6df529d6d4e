"""Help texts, completion, and what is said of a mistake."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app

from ..support.commandline import invoke, posix
from ..support.terminal import MMGGUF, run, run_in_terminal


def test_version() -> None:
    assert invoke("--version") == f"mmgguf {mmgguf.__version__}\n"


COMMANDS = sorted(command.name or "" for command in typer.main.get_group(app).commands.values())


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_help(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole words, uncut; nothing is wider than the terminal but a word that is wider itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke("--help")
    assert output.startswith("Usage: mmgguf [OPTIONS]")
    for command in COMMANDS:
        assert f"\n  {command}" in output
    group = typer.main.get_group(app)
    for name in ["", *COMMANDS]:
        output = invoke(*filter(None, [name]), "-h")
        assert all(cell_len(line) <= columns or len(line.split()) == 1 or "<" in line for line in output.splitlines())
        # Every word of every text is there, whole and in order.
        command = group.commands[name] if name else group
        texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
        for text in texts:
            assert " ".join(text.split()) in " ".join(output.split())


@posix
def test_help_has_colours_on_a_terminal() -> None:
    assert "\x1b[36m--version\x1b[0m" in run_in_terminal("--help", columns=80)[1]
    assert "\x1b[36m" not in run_in_terminal("ls", "--help", columns=80, environment={"NO_COLOR": "1"})[1]
    assert "\x1b" not in run("--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = os.environ | {"_MMGGUF_COMPLETE": f"complete_{shell}"}
    environment |= {"COMP_WORDS": "mmgguf ver", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "mmgguf ver"}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "verify" in run(env=environment).stdout
    assert "_MMGGUF_COMPLETE" in run(env=os.environ | {"_MMGGUF_COMPLETE": f"source_{shell}"}).stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("action", ["source_bash", "complete_bash"])
def test_completion_into_what_takes_no_more(action: str) -> None:
    environment = os.environ | {"_MMGGUF_COMPLETE": action, "COMP_WORDS": "mmgguf ver", "COMP_CWORD": "1"}
    with open("/dev/full", "w") as full:
        result = subprocess.run(MMGGUF, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert result.returncode == 2
    assert re.fullmatch("mmgguf: the output cannot be written: .*\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--type", "Q9_9", "x"], "no ggml type 'Q9_9'; there are F32, F16"),
        (["ls", "--type", "9" * 5000, "x"], "no ggml type '999"),
        (["ls", "--sort", "colour", "x"], "'colour' is not one of 'name', 'type'"),
        (["ls"], "Missing argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_errors_of_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
