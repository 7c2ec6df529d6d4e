"""What all subcommands share: files that cannot be read, models in several files, widths, imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app, printing
from mmgguf.format.writer import write

from ..support.cases import BY_ID
from ..support.commandline import invoke, posix, save
from ..support.terminal import MMGGUF

# The package's own names for its commands are the functions; these are the modules.
ls, show = (importlib.import_module(f"mmgguf.cli.{name}") for name in ("ls", "show"))


def test_an_empty_model(tmp_path: Path) -> None:
    path = save(tmp_path, BY_ID["empty"])
    assert invoke("ls", path) == ""
    assert json.loads(invoke("ls", path, "--json")) == []
    shown = json.loads(invoke("show", path, "--json"))
    assert (shown["parameters"], shown["bits_per_weight"], shown["architecture"]) == (0, None, None)
    assert "parameters\t0 (0)" in invoke("show", path)


@pytest.mark.parametrize("command", [["show", "nothing.*"], ["show", "general.nam"], ["ls", "nothing*"], ["ls", "x"]])
def test_what_is_not_there_is_an_error(command: list[str], model: Path) -> None:
    result = CliRunner().invoke(app, [command[0], str(model), command[1]])
    assert (result.exit_code, result.stdout) == (1, "")
    what = "tensor" if command[0] == "ls" else "metadata key"
    assert f"no {what} {command[1]!r}" in result.stderr


def test_a_split_model(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{no}-of-00002.gguf" for no in (1, 2)]
    for no, path in enumerate(paths):
        split = {"split.no": np.uint16(no), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        write(path, split | ({"general.architecture": "llama"} if no == 0 else {}), {f"w{no}": np.zeros(3, "f4")})
    rows = json.loads(invoke("ls", paths[1], "--json"))
    assert [(row["name"], row["path"]) for row in rows] == [("w0", str(paths[0])), ("w1", str(paths[1]))]
    assert "shard 2 of 2\tm-00002-of-00002.gguf" in invoke("show", paths[0])
    assert [shard["path"] for shard in json.loads(invoke("show", paths[0], "--json"))["shards"]] == list(
        map(str, paths)
    )
    paths[1].unlink()
    result = CliRunner().invoke(app, ["ls", str(paths[0])])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "m-00002-of-00002.gguf" in result.stderr


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("command", [("ls",), ("show",), ("show", "--full"), ("demo", "--size", "1")], ids=" ".join)
def test_nothing_is_wider_than_the_terminal(
    command: tuple[str, ...], columns: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (printing, ls, show):
        monkeypatch.setattr(module, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke(*command, *([] if command[0] == "demo" else [model]))
    assert max(map(cell_len, output.splitlines())) <= columns
    if command == ("ls",):
        with mmgguf.open(model) as file:
            assert all(name in output.replace("\n", "") for name in file)
        assert output.rstrip("\n").endswith("4 tensors, 5.3 KiB")


def _not_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def _cut(path: Path) -> None:
    path.write_bytes(BY_ID["all-types"].encoded()[:-1000])


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


FAILURES: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "{path}: No such file or directory"),
    "folder": (Path.mkdir, "{path}: Is a directory"),
    "other format": (_not_gguf, "{path}: not a GGUF file"),
    "empty": (_nothing, "{path}: "),
    "cut": (_cut, "{path}: "),
    "legacy": (lambda path: path.write_bytes(b"tjgg" + bytes(100)), "{path}: this is a ggjt file"),
    "special": (lambda path: path.symlink_to("/proc/self/maps"), "{path}: Invalid argument"),
}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://no/model.gguf", "No such file"),
        ("https:/host/model.gguf", "No such file or directory (for a URL, type https://host/model.gguf)"),
        ("nothing://host/model.gguf", "Protocol not known: nothing"),
        ("https://", "not a valid URL: it has no host"),
    ],
)
def test_a_url_is_shown_as_it_was_given(path: str, message: str) -> None:
    pytest.importorskip("fsspec")
    result = CliRunner().invoke(app, ["show", path])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"mmgguf: {path}: {message}\n"


@pytest.mark.parametrize("command", [("ls",), ("ls", "--json"), ("show",)], ids=" ".join)
@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_one_line(failure: str, command: tuple[str, ...], tmp_path: Path) -> None:
    if failure == "special" and not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux")
    make, message = FAILURES[failure]
    path = tmp_path / "model.gguf"
    make(path)
    result = CliRunner().invoke(app, [*command, str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mmgguf: " + message.format(path=path))
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1


@posix
@pytest.mark.parametrize(("arguments", "status"), [(["ls"], 0), (["show"], 0), (["verify", "--nope"], 2)])
def test_closed_streams(arguments: list[str], status: int, model: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *MMGGUF, *arguments, str(model)]
    assert subprocess.run(command, check=False).returncode == status


def test_what_the_commands_do_not_need_is_not_imported(model: Path) -> None:
    code = (
        "import atexit, sys; from mmgguf.__main__ import main\n"
        "heavy = 'numba', 'torch', 'gguf', 'safetensors', 'rich.progress', 'mmgguf.bench', 'mmgguf.compat'\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['mmgguf', 'ls', {str(model)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "[]")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from mmgguf.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mmgguf: {package} is not installed; get it with: pip install 'mmgguf[cli]'\n"


def test_python_m_and_bugs(model: Path) -> None:
    """What is no error of the file keeps its traceback."""
    code = "import mmgguf; mmgguf.open = lambda *_: 1 / 0; from mmgguf.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "ls", str(model)], capture_output=True, text=True, check=False)
    assert "ZeroDivisionError" in done.stderr
    assert done.returncode == 1
