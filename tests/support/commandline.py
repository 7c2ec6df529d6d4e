"""What the tests of the subcommands share."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from typer.testing import CliRunner

from mmgguf.cli import app

from .cases import Case

__all__ = ["CliRunner", "fields", "invoke", "posix", "save"]

# It makes the parser of all commands for each call, which takes ten times as long as a command does.
typer.testing._get_command = cache(typer.testing._get_command)

posix = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")


def invoke(*args: object) -> str:
    """What a command prints; it has to succeed."""
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return result.stdout


def fields(output: str) -> list[list[str]]:
    """The fields of each line."""
    return [line.split("\t") for line in output.splitlines()]


def save(folder: Path, case: Case) -> Path:
    path = folder / f"{case.id}.gguf"
    path.write_bytes(case.encoded())
    return path
