"""What `.ci/run` says of itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"


@pytest.mark.skipif(not SCRIPT.exists() or shutil.which("bash") is None, reason="needs a clone, and bash")
@pytest.mark.parametrize("there", [True, False])
def test_the_last_line_says_what_was_left_out(there: bool, tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    function = re.search(r"^left_out\(\) \{.*?^\}\n", text, re.DOTALL | re.MULTILINE)
    assert function is not None
    if there:
        (tmp_path / "ggml-vocab-x.gguf").touch()
    # The script's own last line, with the same strictness.
    code = f"set -euo pipefail\n{function[0]}\n{text.splitlines()[-1]}"
    done = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MMGGUF_DATA": str(tmp_path)},
    )
    assert done.stdout.startswith("::: everything: ")
    assert ("WITHOUT the tests on real vocabularies" in done.stdout) is not there
    assert done.stdout.count("\n") == 1
