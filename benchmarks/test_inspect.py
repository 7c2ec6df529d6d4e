"""Statistics, comparisons, edits in place and the report: what the guides say that they take.

Statistics: gigabytes of float32 values per second are 4 · values / seconds.  An edit in place: a sparse file of 4 GiB
with the header of a large vocabulary, whose template is shortened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor, edit
from mmgguf.inspect import compare_values, stats
from mmgguf.types import LAYOUTS
from tests.support.build import F32, Build

from .conftest import Case
from .files import Model, Sizes

TYPES = (GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16)


def _model(path: Path, type_: GGMLType, elements: int) -> Path:
    """One tensor of normal numbers, or of blocks with ordinary scales and random quants."""
    rng = np.random.default_rng(0)
    layout = LAYOUTS[type_]
    if layout.is_plain:
        tensor: Any = (rng.standard_normal(elements, np.float32) * 0.02).astype(layout.dtype)
    else:
        blocks = np.zeros(elements // layout.block_size, layout.dtype)
        for name in layout.dtype.names or ():
            field = blocks[name]
            field[...] = 0.002 if field.dtype.kind == "f" else rng.integers(0, 100, field.shape, np.uint8)
        tensor = TypedTensor(blocks, type_)
    mmgguf.write(path, {"general.architecture": "x"}, {"w": tensor})
    return path


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_statistics(case: Case, tmp_path: Path, sizes: Sizes, type_: GGMLType) -> None:
    elements = 1 << (26 if sizes.name == "full" else 20)
    path = _model(tmp_path / "a.gguf", type_, elements)
    expected = stats(path, threads=1)["w"]  # and the kernels are compiled

    def threads(count: int) -> Callable[[], Any]:
        return lambda: lambda: stats(path, threads=count)["w"]

    def check(_: str, found: Any) -> None:
        assert found == expected

    contestants = {"one thread": threads(1), "two threads": threads(2)}
    case.time(f"statistics/{type_.name}", contestants, check=check, values_nbytes=4 * elements)


def test_comparison(case: Case, tmp_path: Path, sizes: Sizes) -> None:
    elements = 1 << (24 if sizes.name == "full" else 18)
    a = _model(tmp_path / "a.gguf", GGMLType.F16, elements)
    b = _model(tmp_path / "b.gguf", GGMLType.Q4_0, elements)

    def check(_: str, found: Any) -> None:
        assert found.tensors[0].count == elements

    case.time("inspect/compare --values", {"mmgguf": lambda: lambda: compare_values(a, b)}, check=check)


def test_edit_in_place(case: Case, tmp_path: Path) -> None:
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

    def check(_: str, found: edit.Edit) -> None:
        assert found.in_place

    case.time("edit/in place, 4 GiB", {"mmgguf": lambda: shorten}, check=check)
    with mmgguf.open(path) as f:
        assert f.metadata["tokenizer.chat_template"] == "{{ message }}" * (900 - count)


def test_report(case: Case, tmp_path: Path, real_model: Model) -> None:
    pytest.importorskip("bokeh")
    from mmgguf.report import write_page

    page = tmp_path / "a.html"

    def check(*_: Any) -> None:
        assert page.stat().st_size < 6_000_000

    contestants = {"mmgguf": lambda: lambda: write_page(real_model.path, page, force=True)}
    case.time(f"report/{real_model.id}", contestants, check=check, title=real_model.title)


def test_split_and_merge(case: Case, tmp_path: Path, real_model: Model) -> None:
    def there_and_back() -> None:
        shards = edit.split(real_model.path, tmp_path / "s", max_tensors=100, force=True)
        edit.merge(shards[0], tmp_path / "m.gguf", force=True)

    def check(*_: Any) -> None:
        assert (tmp_path / "m.gguf").read_bytes() == Path(real_model.path).read_bytes()

    contestants = {"mmgguf": lambda: there_and_back}
    case.time(f"split and merge/{real_model.id}", contestants, check=check, title=real_model.title)
