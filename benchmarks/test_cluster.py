"""`benchmarks.cluster` draws what was measured, in a made-up run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmgguf[bench]'")

from .cluster import chart


def test_the_chart_says_what_was_measured(tmp_path: Path) -> None:
    measured = {1: (2.0, 8.0), 2: (1.0, 4.0), 4: (0.91, 2.04)}
    results: dict[str, Any] = {"machine": {"processor": "abacus, 10 beads"}}
    for workers, (local, remote) in measured.items():
        quartiles = {name: [0.9 * t, t, 1.2 * t] for name, t in (("statistics", local), ("server", remote))}
        results[f"scaling-{workers}"] = {"date": "2026-01-02", **quartiles}
    chart(results, tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text("utf-8")
    for part in ("8.0 s with one", "2.0 s with one", "0.9 s", "abacus, 10 beads; 2026-01-02", "workers"):
        assert part in text
    # The same run gives the same file.
    chart(results, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text("utf-8") == text
