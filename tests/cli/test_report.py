"""``mmgguf report`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("bokeh")

from typer.testing import CliRunner, Result

from mmgguf.cli import app


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def test_a_page_is_written_once(all_types: Path, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    assert run("report", all_types, "-o", page, "--no-stats").exit_code == 0
    first = page.read_bytes()
    result = run("report", all_types, "-o", page)
    assert (result.exit_code, "force" in result.output) == (1, True)
    assert page.read_bytes() == first
    assert run("report", all_types, all_types, "-o", page, "--force").exit_code == 0
    assert page.read_bytes() != first
    assert run("report", tmp_path / "none.gguf", "-o", tmp_path / "b.html").exit_code == 1
    assert not (tmp_path / "b.html").exists()
