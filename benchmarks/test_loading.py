"""All tensors of a file as numbers, beside what new memory for them takes; and a few rows of a large embedding."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor
from mmgguf.bench.models import random_blocks
from mmgguf.dequant.threads import cores, spread

from .conftest import Case
from .files import Files, Model, Sizes
from .turns import Contestant

ROWS = 1000
WIDTH = 4096


def forget_memory() -> None:
    """Have malloc give back what is free, so that a result is in new memory: else it depends on what ran before."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc's
        if trim is not None:
            trim(0)


def test_whole_file(case: Case, real_model: Model) -> None:
    """No way of loading is faster than its memory can be had: so the limit is to fill as much of it, once."""
    with mmgguf.open(real_model.path) as f:
        count = sum(tensor.size for tensor in f.values())

    def fill(threads: int, advice: str) -> Callable[[], Any]:
        if not hasattr(mmap, advice):
            pytest.skip("the system has no such pages")

        def run() -> Any:
            # Private, as what numpy gets is: shared memory, which is the default, takes no huge pages.
            memory = mmap.mmap(-1, count * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(getattr(mmap, advice))
            numbers = np.frombuffer(memory, np.float32)
            spread(lambda part: part.fill(1), np.array_split(numbers, 64), threads)
            return numbers

        return run

    def check(name: str, result: Any) -> None:
        found = sum(array.size for array in result.values()) if name == "mmgguf" else len(result)
        assert found == count

    contestants: dict[str, Callable[[], Any]] = {
        "mmgguf": lambda: lambda: mmgguf.load_file(real_model.path, dtype=np.float32),
        **{
            f"filling memory, {pages} pages{suffix}": lambda threads=threads, advice=advice: fill(threads, advice)
            for pages, advice in (("huge", "MADV_HUGEPAGE"), ("small", "MADV_NOHUGEPAGE"))
            for suffix, threads in (("", 1), (", all cores", cores()))
        },
    }
    case.time(
        f"load_file/{real_model.id}", contestants, seconds=1.5, check=check, title=real_model.title, nbytes=count * 4
    )


@pytest.mark.parametrize("type_", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K], ids=lambda t: t.name)
def test_rows(case: Case, files: Files, sizes: Sizes, type_: GGMLType) -> None:
    """Random rows of an embedding as large as Llama 3's, of an open file whose pages are in the cache."""
    shape = sizes.tokens, WIDTH

    def write(path: Path) -> None:
        mmgguf.write(path, {"general.architecture": "llama"}, {"w": TypedTensor(random_blocks(type_, shape), type_)})

    def write_halves(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16))

    path = files.get(f"embedding-{type_.name}.gguf", write, sizes.tokens * WIDTH)
    ids = np.random.default_rng(0).integers(0, shape[0], ROWS)
    f = mmgguf.open(path)
    f.prefetch(wait=True)
    tensor = f["w"]
    expected = tensor.dequantize()[ids]

    def ours() -> Contestant:
        return Contestant(lambda: tensor[ids], forget_memory)

    def gguf_py() -> Contestant:
        gguf = pytest.importorskip("gguf", reason="gguf-py is not installed: pip install gguf")
        raw = tensor.data.view(np.uint8).reshape(shape[0], -1)
        number = gguf.GGMLQuantizationType(int(type_))
        return Contestant(lambda: gguf.quants.dequantize(raw, number)[ids], forget_memory)

    def halves() -> Contestant:
        numbers = np.load(files.get("embedding.npy", write_halves, 2 * sizes.tokens * WIDTH), mmap_mode="r")
        numbers.max()  # brings its pages into the cache
        return Contestant(lambda: np.take(numbers, ids, axis=0), forget_memory)

    def check(name: str, result: Any) -> None:
        assert result.shape == expected.shape
        assert "float16" in name or np.array_equal(result, expected)

    contestants = {"mmgguf": ours, "np.take, float16": halves, "gguf-py": gguf_py}
    with f:
        case.time(f"rows/{type_.name}", contestants, check=check, title=f"{type_.name}, {shape[0]:,} × {WIDTH:,}")
