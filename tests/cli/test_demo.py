"""``mmgguf demo``."""

from __future__ import annotations

import os
from pathlib import Path

from typer.testing import CliRunner

import mmgguf
from mmgguf.cli import app
from mmgguf.types import GGMLType

from ..support.commandline import invoke
from ..support.terminal import run


def test_demo(tmp_path: Path) -> None:
    done = run("demo", "--size", 1, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    *tensors, sentence = done.stdout.splitlines()
    assert {line.split("\t")[1] for line in tensors} == {type_.name for type_ in GGMLType}
    assert sentence.startswith("Mapping gave all 35 tensors as arrays in ")
    assert not os.listdir(tmp_path)


def test_demo_leaves_a_sound_model_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "demo.gguf"
    assert "35 tensors" in invoke("demo", path, "--size", 1)
    assert mmgguf.verify(path, data=True)[1:] == []  # but for its name
    assert CliRunner().invoke(app, ["demo", str(path)]).exit_code == 1
    assert "35 tensors" in invoke("demo", path, "--size", 1, "--force")
