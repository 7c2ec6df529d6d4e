"""Estimates against what a running llama.cpp prints: equal, to its rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmgguf.estimates import estimate

from ..support import llamamemory, tiny

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow

EXACT = ("weights", "kv_cache", "recurrent_state", "output")


def compare(path: Path, *, factor: float, **options: Any) -> None:
    """The parts that are exact are equal; the compute buffer is at most `factor` too small or too large."""
    printed = llamamemory.load(path, **options)
    k = options.pop("cache_type", "f16")
    v = options.pop("cache_type_v", None) or k
    options.setdefault("unified", False)
    found = estimate(path, cache_type_k=k, cache_type_v=v, **options)
    assert found.exact == set(EXACT)
    for part in EXACT:
        assert printed.agrees(part, getattr(found, part)), (part, getattr(found, part) / 2**20, printed.buffers[part])
    assert found.compute is not None
    ratio = found.compute / 2**20 / sum(printed.buffers["compute"])
    assert 1 / factor < ratio < factor, (found.compute / 2**20, printed.buffers["compute"])


# Every pair of a context with a type, and either with both numbers of sequences.
@pytest.mark.parametrize(
    ("context", "cache_type", "sequences"),
    [
        (context, cache_type, 4 if (i + j) % 2 else 1)
        for i, context in enumerate((512, 4096, 8192))
        for j, cache_type in enumerate(("f16", "q8_0", "q4_0"))
    ],
)
def test_smollm2(smollm2: Path, context: int, cache_type: str, sequences: int) -> None:
    compare(smollm2, factor=1.01, context=context, cache_type=cache_type, sequences=sequences)


@pytest.mark.parametrize(
    "options",
    [
        {"context": 1000},
        {"context": 1000, "sequences": 3},
        {"context": 1000, "sequences": 3, "unified": True},
        {"context": 4096, "flash_attention": False},
        {"context": 4096, "ubatch": 64},
        {"context": 100, "ubatch": 2048},
        {"context": 4096, "cache_type": "q8_0", "cache_type_v": "q4_0"},
        {"context": 4096, "cache_type": "bf16"},
    ],
    ids=str,
)
def test_options(smollm2: Path, options: dict[str, Any]) -> None:
    compare(smollm2, factor=1.05, **options)


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("name", tiny.names())
def test_every_kind(tmp_path: Path, name: str, sequences: int) -> None:
    path = tiny.write(name, tmp_path / "model.gguf")
    compare(path, factor=1.25, context=8192, sequences=sequences)


@pytest.mark.parametrize("options", [{"swa_full": True}, {"flash_attention": False}, {"unified": True}], ids=str)
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma4", "mimo2", "llama-kv-array", "lfm2-swa"])
def test_options_of_every_kind(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = tiny.write(name, tmp_path / "model.gguf")
    compare(path, factor=1.25, context=4096, sequences=4, **options)


#: How far off the estimate of the compute buffer may be, where it is more than a twentieth, by model.
FAR = {"wide-nemotron-h-8b": 1.2, "wide-qwen3next": 1.2, "wide-deepseek-v2-lite": 1.15, "wide-gemma2-9b": 1.1}
FAR |= {"wide-bert-base": 1.1}


@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("name", tiny.wide_names())
def test_compute_of_published_sizes(tmp_path: Path, name: str, flash_attention: bool) -> None:
    path = tiny.write_wide(name, tmp_path / "model.gguf")
    for context, ubatch in ((4096, 512), (32768, 512), (4096, 128)) if flash_attention else ((4096, 512),):
        options = {"context": context, "ubatch": ubatch, "flash_attention": flash_attention}
        printed = llamamemory.load(path, allocate=False, **options)
        found = estimate(path, unified=False, **options)
        ratio = (found.compute or 0) / 2**20 / sum(printed.buffers["compute"])
        factor = FAR.get(name, 1.05)
        assert 1 / factor < ratio < factor, (options, found.compute, printed.buffers["compute"])
