"""Stored blocks into numbers, per type: mmgguf's two backends, pip's gguf and the C library.

Output memory is reused, except by gguf-py, which offers no way to.  One thread unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from mmgguf import GGMLType
from mmgguf.bench.ggml import Unavailable, dequantize_in_c
from mmgguf.bench.models import random_blocks
from mmgguf.dequant import dequantize
from mmgguf.types import LAYOUTS

from .conftest import Sizes, Timed

TYPES = [type_ for type_, layout in LAYOUTS.items() if not layout.is_plain]
Array = np.ndarray[Any, np.dtype[Any]]
#: A function of blocks that returns the numbers.
Run = Callable[[], Array]


@cache
def blocks_of(type_: GGMLType, shape: tuple[int, int]) -> Array:
    return random_blocks(type_, shape)


def ours(
    backend: str, threads: int | None, dtype: Any = np.float32
) -> Callable[[GGMLType, Array, tuple[int, int]], Run]:
    def prepare(type_: GGMLType, blocks: Array, shape: tuple[int, int]) -> Run:
        if backend == "numba":
            pytest.importorskip("numba")
        out = np.empty(shape, dtype)
        return lambda: dequantize(blocks, type_, dtype, out=out, threads=threads, backend=backend)

    return prepare


def c_library(type_: GGMLType, blocks: Array, shape: tuple[int, int]) -> Run:
    try:
        function = dequantize_in_c(type_)
    except Unavailable as reason:
        pytest.skip(str(reason))
    out = np.empty(shape, np.float32)

    def run() -> Array:
        function(blocks, out)
        return out

    return run


def gguf_py(type_: GGMLType, blocks: Array, shape: tuple[int, int]) -> Run:
    gguf = pytest.importorskip("gguf", reason="gguf-py is not installed: pip install gguf")
    raw = blocks.view(np.uint8)
    try:
        number = gguf.GGMLQuantizationType(int(type_))
        gguf.quants.dequantize(raw[:1], number)
    except (ValueError, NotImplementedError):
        pytest.skip(f"gguf-py does not dequantize {type_.name}")
    return lambda: gguf.quants.dequantize(raw, number)


CONTESTANTS: dict[str, Callable[[GGMLType, Array, tuple[int, int]], Run]] = {
    "mmgguf, numpy": ours("numpy", 1),
    "mmgguf, numba": ours("numba", 1),
    "mmgguf, numba, all cores": ours("numba", None),
    "gguf-py": gguf_py,
    "C library": c_library,
}


def _measure(benchmark: Any, timed: Timed, group: str, contestant: str, type_: GGMLType, run: Run, read: int) -> Array:
    benchmark.group = group  # before it runs: that is when the name is taken
    result: Array = timed(run, seconds=0.5)
    benchmark.extra_info.update(
        contestant=contestant, type=type_.name, written=result.nbytes, read=read, dtype=str(result.dtype)
    )
    return result


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_type(benchmark: Any, timed: Timed, sizes: Sizes, type_: GGMLType, contestant: str) -> None:
    blocks = blocks_of(type_, sizes.matrix)
    run = CONTESTANTS[contestant](type_, blocks, sizes.matrix)
    expected = dequantize(blocks, type_, backend="numpy", threads=1)
    result = _measure(benchmark, timed, f"dequantize: {type_.name}", contestant, type_, run, blocks.nbytes)
    assert np.array_equal(result, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_other_dtypes(benchmark: Any, timed: Timed, sizes: Sizes, backend: str, dtype: str) -> None:
    from mmgguf.dequant import DTYPES

    wanted = next(one for one in DTYPES if one.name == dtype)
    type_ = GGMLType.Q4_K
    blocks = blocks_of(type_, sizes.matrix)
    run = ours(backend, 1, wanted)(type_, blocks, sizes.matrix)
    expected = dequantize(blocks, type_, backend="numpy", threads=1).astype(wanted)
    group = "dequantize: Q4_K into other dtypes"
    result = _measure(benchmark, timed, group, f"mmgguf, {backend}", type_, run, blocks.nbytes)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("what", ["16 rows", "whole tensor"])
def test_rows(benchmark: Any, timed: Timed, sizes: Sizes, what: str) -> None:
    """Rows cost what they are, not what the tensor is."""
    blocks = blocks_of(GGMLType.Q4_K, sizes.matrix)
    chosen = blocks[:16] if what == "16 rows" else blocks
    benchmark.group = "dequantize: Q4_K, rows"
    result = timed(lambda: dequantize(chosen, GGMLType.Q4_K, threads=1), seconds=0.5)
    assert result.shape == (len(chosen), sizes.matrix[1])
    benchmark.extra_info.update(rows=len(chosen))
