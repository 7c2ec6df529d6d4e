"""The progress bar: where it is shown, and what it says beside the bytes."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from mmgguf.cli import progress
from mmgguf.dequant import dispatch


def test_a_kernel_that_is_compiled_is_named_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    event = pytest.importorskip("numba.core.event")
    monkeypatch.setattr(dispatch, "get_backend", lambda: "numba")
    told: list[str] = []
    with progress._compiling(told.append):
        # What numba does around a compilation, and only there.
        event.start_event("numba:compile")
        assert told == [": compiling, this once"]
        event.end_event("numba:compile")
    event.start_event("numba:compile")
    event.end_event("numba:compile")
    assert told == [": compiling, this once", ""]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_bytes_and_speed_have_one_kind_of_units(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_bar("a-long-name-of-a-file-" * 4) as update:
        assert update is not None
        for done in range(11):
            update(done << 20, 10 << 20)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    lines = [line for line in re.split(r"[\r\n]", shown) if "MiB" in line]
    assert lines
    for line in lines:
        assert len(line.rstrip()) <= columns
        assert re.search(r"[0-9.]+ (B|KiB|MiB) of 10\.0 MiB", line)
        assert not re.search(r"[kKMG]B", line)
    assert (columns >= 70) == any("iB/s" in line for line in lines)
