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


PHASES = ["install_test_environment", "package", "tests", "slow", "benchmarks", "checks", "docs", "lowest"]


@pytest.mark.skipif(not SCRIPT.exists() or shutil.which("bash") is None, reason="needs a clone, and bash")
@pytest.mark.parametrize("failing", [None, *PHASES])
def test_a_phase_that_fails_fails_the_run_also_beside_the_others(failing: str | None, tmp_path: Path) -> None:
    stubs = {name: f'step {name} "$work" {"false" if name == failing else "true"}' for name in PHASES}
    stubs["tests"] = f"need_test_environment; {stubs['tests']}"  # which waits for what was installed meanwhile
    stubs |= {"need_sdist": ":", "copy_tracked_files": ":"}
    head, mark, tail = SCRIPT.read_text().partition('mkdir "$tree"\n')
    assert mark
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text(head + "".join(f"{name}() {{ {code}; }}\n" for name, code in stubs.items()) + mark + tail)
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if failing else 0), done.stdout + done.stderr
    if failing:
        assert f"::: {failing}: FAILED with status 1" in done.stdout
    else:
        assert [name for name in PHASES if f"::: {name}: 0 s" not in done.stdout] == []
    assert ("::: everything: " in done.stdout) is not bool(failing)
