"""Statistics, comparisons, edits in place and the report: what the guides say that they take.

Statistics: gigabytes of float32 values per second are 4 · values / seconds; the bar is 2 on two cores for Q4_K.  An
edit in place: a sparse file of 4 GiB with the header of a large vocabulary, whose template is shortened; the bar is
50 ms.  The report of SmolLM2 with statistics: 10 s.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor, edit
from mmgguf.inspect import compare_values, stats
from mmgguf.types import LAYOUTS
from tests.support.build import F32, Build
from tests.support.models import Unavailable, smollm2

TYPES = (GGMLType.Q4_K, GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.F16, GGMLType.F32)


def _model(path: Path, type_: GGMLType, elements: int) -> Path:
    """One tensor of normal numbers, or of blocks with ordinary scales and random quants."""
    rng = np.random.default_rng(0)
    layout = LAYOUTS[type_]
    if layout.is_plain:
        tensor: Any = (rng.standard_normal(elements) * 0.02).astype(layout.dtype)
    else:
        blocks = np.zeros(elements // layout.block_size, layout.dtype)
        for name in layout.dtype.names or ():
            field = blocks[name]
            field[...] = 0.002 if field.dtype.kind == "f" else rng.integers(0, 100, field.shape)
        tensor = TypedTensor(blocks, type_)
    mmgguf.write(path, {"general.architecture": "x"}, {"w": tensor})
    return path


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_statistics(benchmark: Any, tmp_path: Path, sizes: Any, type_: GGMLType, threads: int) -> None:
    benchmark.group = f"statistics, {threads} threads"
    elements = 1 << (26 if sizes.scale > 0.25 else 20)
    path = _model(tmp_path / "a.gguf", type_, elements)
    expected = stats(path, threads=1)["w"]  # and the kernels are compiled
    found = benchmark.pedantic(stats, (path,), {"threads": threads}, rounds=5)["w"]
    assert found == expected
    if benchmark.stats is not None:  # measured, not only run
        benchmark.extra_info["GB/s of float32 values"] = 4e-9 * elements / benchmark.stats.stats.min


def test_comparison(benchmark: Any, tmp_path: Path, sizes: Any) -> None:
    benchmark.group = "compare --values"
    elements = 1 << (24 if sizes.scale > 0.25 else 18)
    a = _model(tmp_path / "a.gguf", GGMLType.F16, elements)
    b = _model(tmp_path / "b.gguf", GGMLType.Q4_0, elements)
    found = benchmark.pedantic(compare_values, (a, b), rounds=3)
    assert found.tensors[0].count == elements


def test_edit_in_place(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "edit in place, 4 GiB"
    b = Build(3).start(tensors=4, pairs=3).text(b"general.architecture", b"llama")
    b.texts(b"tokenizer.ggml.tokens", [b"token %d" % i for i in range(100_000)])
    b.text(b"tokenizer.chat_template", b"{{ message }}" * 1000)
    for number in range(4):
        b.tensor(b"w%d" % number, [1 << 28], F32, number << 30)
    raw = bytes(b.pad())
    path = tmp_path / "a.gguf"
    with open(path, "wb") as file:
        file.write(raw)
        file.truncate(len(raw) + (4 << 30))  # sparse: nothing may look at the data
        file.flush()
        os.fsync(file.fileno())
    count = 0

    def shorten() -> edit.Edit:
        nonlocal count
        count += 1
        return edit.replace_metadata(path, {"tokenizer.chat_template": "{{ message }}" * (900 - count)})

    assert benchmark.pedantic(shorten, rounds=20).in_place
    with mmgguf.open(path) as f:
        assert f.metadata["tokenizer.chat_template"] == "{{ message }}" * (900 - count)


def test_report(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "report of SmolLM2"
    pytest.importorskip("bokeh")
    from mmgguf.report import write_page

    try:
        path = smollm2()
    except Unavailable as error:
        pytest.skip(str(error))
    benchmark.pedantic(write_page, (path, tmp_path / "a.html"), {"force": True}, rounds=3)
    assert (tmp_path / "a.html").stat().st_size < 6_000_000


def test_split_and_merge(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "split and merge SmolLM2"
    try:
        path = smollm2()
    except Unavailable as error:
        pytest.skip(str(error))

    def there_and_back() -> None:
        edit.merge(edit.split(path, tmp_path / "s", max_tensors=100, force=True)[0], tmp_path / "m.gguf", force=True)

    benchmark.pedantic(there_and_back, rounds=3)
    assert (tmp_path / "m.gguf").read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path)
