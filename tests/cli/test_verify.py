"""``mmgguf verify`` and ``mmgguf compare``; and that no command lets a file speak to the terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app

from ..support.build import F32, UINT8, Build, small
from ..support.hostile_cases import TABLE
from ..support.terminal import run, run_in_terminal

posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")
GOOD = "Tiny-v1.0.gguf"
STYLES = re.compile(r"\x1b\[[0-9;]*m")
#: What rich sends to draw a progress bar and to take it away: cursor and line controls.
BAR = re.compile(r"\x1b\[\?25[lh]|\x1b\[[12]?[AKJ]|\r")


def invoke(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / GOOD
    mmgguf.write(path, {"general.architecture": "llama"}, {"v": np.ones(3, "f4"), "w": np.zeros((2, 3), "f2")})
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad-v1.0.gguf"
    values = np.array([1, np.nan, 3], "f4")
    mmgguf.write(path, {"general.architecture": "llama", "Upper": 1}, {"v": values, "w": np.zeros((2, 3), "f2")})
    return path


def test_a_faultless_file(good: Path) -> None:
    assert invoke("verify", good) == (0, "", "")
    assert invoke("verify", "--data", good) == (0, "", "")
    status, output, _ = invoke("verify", "--json", good)
    assert (status, json.loads(output)) == (0, {"findings": []})


def test_notes_do_not_count(good: Path) -> None:
    path = good.with_name("name.gguf")
    good.rename(path)
    status, output, _ = invoke("verify", path)
    assert status == 0
    assert output.startswith("note\tfile-name\t\t\tthe name is not ")


def test_findings_in_a_pipe(bad: Path) -> None:
    status, output, errors = invoke("verify", "--data", bad)
    assert (status, errors) == (1, "")
    style = "the key is not ASCII lower_snake_case in parts that are divided by dots"
    (one, two) = [line.split("\t") for line in output.splitlines()]
    assert one == ["warning", "key-style", "Upper", "69", style, str(bad)]
    assert two[:3] + two[4:] == ["error", "value-not-finite", "v", "value 1 is nan", str(bad)]
    assert bad.read_bytes()[int(two[3]) :][:4] == np.array([np.nan], "<f4").tobytes()
    assert invoke("verify", bad)[0] == 1


def test_findings_in_json(bad: Path) -> None:
    status, output, _ = invoke("verify", "--data", "--json", "--hash", bad)
    assert status == 1
    result = json.loads(output)
    assert [finding["code"] for finding in result["findings"]] == ["key-style", "value-not-finite"]
    assert set(result["findings"][0]) == {"severity", "code", "where", "message", "byte", "path"}
    digests = mmgguf.digest(bad)
    assert result["digests"] == {"algorithm": "sha256", "file": digests.file, "tensors": digests.tensors}


def test_digests_in_a_pipe(good: Path) -> None:
    status, output, _ = invoke("verify", "--hash", good)
    digests = mmgguf.digest(good)
    expected = [[""], [f"sha256:{digests.file}", ""]]
    expected += [[f"sha256:{one}", name] for name, one in digests.tensors.items()]
    assert status == 0
    assert [line.split("\t") for line in output.splitlines()] == expected


@pytest.mark.parametrize("command", ["verify", "compare"])
def test_what_cannot_be_read(command: str, good: Path) -> None:
    cut = good.with_name("cut.gguf")
    cut.write_bytes(good.read_bytes()[:60])
    for path in (cut, good.parent, good.with_name("nothing"), Path("/dev/null")):
        status, output, errors = invoke(command, *([path, good] if command == "compare" else [path]))
        assert (status, output) == (2, "")
        assert errors.startswith(f"mmgguf: {path}: ")
        assert errors.count("\n") == 1


def test_compare(good: Path, bad: Path) -> None:
    assert invoke("compare", good, good) == (0, "", "")
    assert invoke("compare", "--json", good, good) == (0, "[]\n", "")
    status, output, _ = invoke("compare", good, bad)
    assert status == 1
    assert [line.split("\t") for line in output.splitlines()] == [
        ["added", "metadata", "Upper", "UINT32 1"],
        ["changed", "tensor", "v", "F32 (3,): 2 of 3 values differ, the first is 1"],
    ]
    status, output, _ = invoke("compare", "--json", good, bad)
    assert status == 1
    assert json.loads(output)[0] == {"kind": "metadata", "change": "added", "name": "Upper", "message": "UINT32 1"}


@posix
def test_a_name_alone_is_no_table(good: Path) -> None:
    path = good.with_name("name.gguf")
    good.rename(path)
    status, output = run_in_terminal("verify", path, columns=200)
    assert status == 0
    first, second = STYLES.sub("", output).splitlines()
    assert first == "Nothing wrong was found; --data looks at the values too."
    assert second.startswith("Note: the name is not ")


@posix
@pytest.mark.parametrize("columns", [30, 100])
def test_on_a_terminal(columns: int, good: Path, bad: Path) -> None:
    for arguments, status, parts in (
        (("verify", good), 0, ["Nothing wrong was found"]),
        (("verify", good, "--data"), 0, ["Nothing wrong was found."]),
        (("verify", "--data", "--hash", bad), 1, ["key-style", "value-not-finite", "(the whole)"]),
        (("compare", good, good), 0, ["No differences."]),
        (("compare", good, bad), 1, ["Upper", "changed"]),
    ):
        got, output = run_in_terminal(*arguments, columns=columns)
        assert got == status
        plain = BAR.sub("", STYLES.sub("", output))
        for part in parts:
            assert part in plain
        assert {char for char in plain if not char.isprintable()} <= {"\n"}


# Nothing from a file reaches a terminal as it is.

EVIL = b"\x1b]0;owned\x07\x1b[2J\x7f\x9b31m\xe2\x80\xae[bold]\r\n\0:smile:\xff"
TEMPLATE = b"{{ 7 * 191 }}{% for x in range(3) %}{{ raise_exception('ran') }}{% endfor %}"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Escapes wherever a file can have text; and something wrong at each of these places."""
    b = Build().start(3, 6).text(b"general.architecture", EVIL).text(b"general.name", EVIL).number(EVIL, UINT8, 1)
    b.texts(b"tokenizer.ggml.tokens", [EVIL] * 3).text(b"tokenizer.chat_template", TEMPLATE).text(
        b"general.file_type", EVIL
    )
    b.tensor(EVIL, [1], F32, 0).tensor(b"blk." + EVIL, [2], 99, 64).tensor(EVIL + b"9" * 5000, [2], F32, 32)
    path = tmp_path / "evil\x1b[31m\n.gguf"
    path.write_bytes(bytes(b.pad().raw(b"\0\0\xc0\x7f" + b"\1" * 28 + bytes(64))))
    return path


COMMANDS: list[tuple[str, ...]] = [
    ("ls",),
    ("ls", "--sort", "name"),
    ("show",),
    ("show", "--full"),
    ("verify", "--data"),
    ("verify", "--hash"),
    ("compare",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_evil_reaches_a_pipe(command: tuple[str, ...], evil: Path) -> None:
    before = set(sys.modules)
    other = evil.with_name("other.gguf")
    other.write_bytes(bytes(small()))
    files = (evil, other) if command[0] == "compare" else (evil,)
    for options in ((), ("--json",)):
        status, output, errors = invoke(*command, *options, *files)
        assert status in (0, 1), errors
        assert "1337" not in output
        assert {char for char in output + errors if not char.isprintable()} <= {"\n", "\t"}
        if command[0] != "verify" or options:
            assert "owned" in output
    if "--full" in command:
        assert TEMPLATE.decode() in output.replace("\\'", "'")
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "jinja2"}


@posix
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_evil_reaches_a_terminal(command: tuple[str, ...], evil: Path) -> None:
    files = (evil, evil) if command[0] == "compare" else (evil,)
    _, output = run_in_terminal(*command, *files, columns=100)
    plain = BAR.sub("", STYLES.sub("", output))
    assert {char for char in plain if not char.isprintable()} <= {"\n"}


def test_refusals_are_one_harmless_line(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for row in TABLE:
        if row.error is None:
            continue
        path.write_bytes(next(row.examples()))
        status, output, errors = invoke("verify", path)
        assert (status, output) == (2, ""), row.id
        assert errors.startswith(f"mmgguf: {path}: ")
        assert errors.count("\n") == 1
        assert len(errors) < 2000


def test_a_path_with_surrogates() -> None:
    result = run("verify", "caf\udce9-nothing.gguf")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "mmgguf: caf\\xe9-nothing.gguf: No such file or directory\n"
