"""Text that nobody vouches for, and how it fits a terminal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from mmgguf.cli import app, printing
from mmgguf.format.writer import write

from ..support.build import Build
from ..support.commandline import invoke, posix
from ..support.terminal import run, run_in_terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blk.0 [bold]x[/bold] :smile: 漢字 é 🦙 \\n", "blk.0 [bold]x[/bold] :smile: 漢字 é 🦙 \\n"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\r\n\tb\0\x7f", "a\\r\\n\\tb\\x00\\x7f"),
        ("\x9b31m", "\\u009b31m"),
        ("a\u202eb\u2066c\u200fd", "a\\u202eb\\u2066c\\u200fd"),
        ("a\u2028b\ufeffc\u200bd\U000e0041", "a\\u2028b\\ufeffc\\u200bd\\U000e0041"),
        ("\udcff\udc80", "\\xff\\x80"),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert printing.safe(text) == shown


HOSTILE = "w\x1b]0;owned\x07\x7f\x9b2J\u202e[bold]x[/]\r\n:smile:\udcff"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.gguf"
    write(path, {HOSTILE: HOSTILE, "array": [HOSTILE] * 3, "general.name": HOSTILE}, {HOSTILE: np.zeros(3, "f4")})
    return path


def assert_harmless(output: str) -> None:
    assert {char for char in output if not char.isprintable()} <= {"\n", "\t"}


@posix
@pytest.mark.parametrize(("command", "columns"), [("ls", 40), ("ls", 200), ("show", 80)])
def test_nothing_hostile_reaches_a_terminal(command: str, columns: int, hostile: Path) -> None:
    status, output = run_in_terminal(command, hostile, columns=columns)
    assert status == 0
    styles = re.compile(r"\x1b\[[0-9;]*m")
    assert styles.search(output)
    plain = styles.sub("", output)
    assert_harmless(plain)
    assert printing.safe(HOSTILE) in re.sub(r"\n *", "", plain)


def test_no_key_is_lost_that_looks_like_another_s_escapes(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", {"a\udcff": 1, "a\\xff": 2}, {})
    found = json.loads(invoke("show", tmp_path / "x.gguf", "--json"))
    assert sorted(found["metadata"].values()) == [1, 2]


@posix
@pytest.mark.parametrize("command", ["ls", "show"])
def test_a_hundred_thousand_accents_are_cut(command: str, tmp_path: Path) -> None:
    name = "x" * 200 + "\u0301" * 100_000
    path = tmp_path / "x.gguf"
    b = Build().start(1, 1).text(b"general.name", name.encode()).tensor(name.encode(), [2])
    path.write_bytes(bytes(b.data(bytes(8))))
    status, output = run_in_terminal(command, path, columns=80)
    assert status == 0
    assert len(output) < 20_000


@pytest.mark.parametrize("command", [("ls",), ("show",), ("show", "--full")], ids=" ".join)
def test_nothing_hostile_reaches_a_pipe(command: tuple[str, ...], hostile: Path) -> None:
    output = invoke(*command, hostile)
    assert_harmless(output)
    assert printing.safe(HOSTILE) in output
    assert_harmless(invoke(*command, hostile, "--json"))


def test_errors_are_safe_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ls", str(tmp_path / "\x1b[31m\u202e\n.gguf")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "\\x1b[31m\\u202e\\n.gguf: No such file" in result.stderr


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdefgh", 8, "abcdefgh"),
        ("abcdefghi", 8, "abcd…ghi"),
        ("abcdefghi", 7, "abc…ghi"),
        ("漢字漢字漢字", 7, "漢…字"),
        ("abc", 1, "…"),
    ],
)
def test_shorten_middle(text: str, width: int, shown: str) -> None:
    assert printing.shorten_middle(text, width) == shown
    assert cell_len(shown) <= width


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("the key is not ASCII", 10, ["the key is", "not ASCII"]),
        ("a-b-c d…e", 6, ["a-b-c", "d…e"]),
        ("abcdefgh ij", 6, ["abcdef", "gh ij"]),
        ("漢字 漢字", 6, ["漢字 ", "漢字"]),
    ],
)
def test_fold(text: str, width: int, lines: list[str]) -> None:
    assert printing.fold(text, width) == lines


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 39, "1.5 TiB"),
        (None, "?"),
    ],
)
def test_size_text(size: int | None, shown: str) -> None:
    assert printing.size_text(size) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999"), (1000, "1.0 K"), (999_999, "1.0 M"), (134_515_008, "134.5 M"), (671 * 10**9, "671.0 B")],
)
def test_human_count(count: int, shown: str) -> None:
    assert printing.human_count(count) == shown


@posix
def test_colours_only_where_they_are_wanted(model: Path) -> None:
    colours = re.compile(r"\x1b\[(\d+;)*3\dm")
    assert colours.search(run_in_terminal("ls", model, columns=80)[1])
    assert not colours.search(run_in_terminal("ls", model, columns=80, environment={"NO_COLOR": "1"})[1])
    assert "\x1b" not in run("ls", model, env=os.environ | {"FORCE_COLOR": "1"}).stdout


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"k": "é漢"}, {"漢": np.zeros(1, "f4")})
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert "\\u6f22\tF32" in run("ls", tmp_path / "a.gguf", env=environment).stdout
    assert "k\tSTRING\t\\xe9\\u6f22" in run("show", tmp_path / "a.gguf", env=environment).stdout
