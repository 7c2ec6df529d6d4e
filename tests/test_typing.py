"""A user's script, as type checkers see it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmgguf

SCRIPT = Path(__file__).parent / "data" / "user_script.py"
PACKAGE = Path(mmgguf.__file__).parent


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Beside the package that is tested, under a name of its own."""
    (tmp_path / "mmgguf").symlink_to(PACKAGE, target_is_directory=True)
    return Path(shutil.copy(SCRIPT, tmp_path / "script.py"))


def test_mypy(script: Path) -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--warn-unused-ignores"]
    done = subprocess.run(
        [*command, "--python-version=3.11", f"--cache-dir={script.parent / 'cache'}", script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "Success: no issues found in 1 source file\n")


@pytest.mark.slow
def test_pyright(script: Path) -> None:
    """By basedpyright, whose wheel has all that pyright would fetch from elsewhere, with pyright's own rules."""
    pytest.importorskip("basedpyright")
    (script.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable, script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
