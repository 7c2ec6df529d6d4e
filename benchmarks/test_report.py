"""`benchmarks.report` on a made-up run: every section with its plot, and nothing of the machine that is not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmgguf[bench]'")

from .report import write_report


def _bench(group: str, seconds: float, **extra: Any) -> dict[str, Any]:
    return {"group": group, "stats": {"min": seconds}, "extra_info": extra}


MEMORY = {"anonymous": 2 << 20, "file": 9 << 20, "share": 7 << 20}
RESULTS: dict[str, Any] = {
    "datetime": "2026-01-02",
    "machine_info": {"processor": "abacus, 10 beads"},
    "benchmarks": [
        _bench("claims", 1, claim="opens fast", bar="<= 0.25", measured=0.125, met=True),
        _bench("claims", 1, claim="reads slowly", bar=">= 3", measured=2.0, met=False),
        _bench("open: vocabulary", 0.002, peer="mmgguf"),
        _bench("open: vocabulary", 3.0, peer="gguf-py"),
        _bench("open and list all strings: vocabulary", 0.06, peer="mmgguf"),
        _bench("header: vocabulary", 0.004, way="seeker, 64 KiB", system_calls=12345, header_bytes=7_800_000),
        _bench("access: llama, all tensors, first touch, warm", 0.5, way="mmgguf", nbytes=10**9),
        _bench("access: llama, all tensors, first touch, warm", 1.0, way="np.fromfile", nbytes=10**9),
        _bench("access: llama, one row, first touch, cold", 0.001, way="mmgguf", nbytes=10**3),
        _bench("dequantize: Q4_K", 0.01, contestant="mmgguf, numba", written=10**8),
        _bench("dequantize: Q4_K", 0.02, contestant="C library", written=10**8),
        _bench("memory: llama, one process", 1, storage="mmap", nbytes=9 << 20, steps={"touch": MEMORY}),
        _bench(
            "memory: llama, four processes", 1, storage="mmap", nbytes=9 << 20, together=28 << 20, each=[MEMORY] * 4
        ),
        _bench("memory: sparse file", 1, nbytes=40 << 30, steps={"open": MEMORY}),
        *(_bench("scaling: open", n / 1000, what="tensors", count=1000 * n, times=n) for n in (1, 2, 4, 8)),
    ],
}


def test_page(tmp_path: Path) -> None:
    write_report(RESULTS, tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    for expected in (
        "2026-01-02",
        "| processor | abacus, 10 beads |",
        "| opens fast | 0.125 | ≤ 0.25 | yes |",
        "| reads slowly | 2 | ≥ 3 | **no** |",
        "| vocabulary | mmgguf | 60 ms |",
        "| seeker, 64 KiB | 4 ms | 12,345 |",
        "| all tensors, first touch, warm | 500 ms | 1 s |",
        "mmgguf, numba against C library: geometric mean 2.00, least 2.00.",
        "| mmap | touch | 2.0 | 9.0 | 7.0 |",
        "| mmap | 7 | 7 | 7 | 7 | 28 |",
        "| tensors (1× = 1,000) | 1 ms | 2 ms | 4 ms | 8 ms |",
    ):
        assert expected in page
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == {"open.png", "access-0.png", "dequantize.png", "memory.png", "scaling.png"}
    assert all(f"({plot})" in page for plot in plots)
