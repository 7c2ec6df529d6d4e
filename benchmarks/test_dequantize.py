"""Stored blocks into numbers, per type: mmgguf's two backends, pip's gguf and the C library.

Output memory is reused, except by gguf-py, which offers no way to.  One thread unless the name says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType
from mmgguf.bench.ggml import dequantize_in_c
from mmgguf.bench.models import random_blocks
from mmgguf.dequant import dequantize
from mmgguf.dequant.threads import spread
from mmgguf.types import LAYOUTS

from .conftest import Case
from .files import Sizes

TYPES = [type_ for type_, layout in LAYOUTS.items() if not layout.is_plain]
Array = np.ndarray[Any, np.dtype[Any]]
#: A function of blocks that returns the numbers.
Run = Callable[[], Array]


def ours(
    backend: str, threads: int | None, dtype: Any = np.float32
) -> Callable[[GGMLType, Array, tuple[int, int]], Run]:
    def prepare(type_: GGMLType, blocks: Array, shape: tuple[int, int]) -> Run:
        if backend == "numba":
            pytest.importorskip("numba", reason="numba is not installed: pip install numba")
        out = np.empty(shape, dtype)
        return lambda: dequantize(blocks, type_, dtype, out=out, threads=threads, backend=backend)

    return prepare


def c_library(type_: GGMLType, blocks: Array, shape: tuple[int, int]) -> Run:
    function = dequantize_in_c(type_)
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


@pytest.fixture(scope="session")
def types(pytestconfig: pytest.Config) -> list[GGMLType]:
    """Every block type, or those of the files that were given."""
    given = pytestconfig.getoption("--file")
    if not given:
        return TYPES
    found = set()
    for path in given:
        with mmgguf.open(path) as file:
            found |= {tensor.type for tensor in file.values()}
    return [type_ for type_ in TYPES if type_ in found]


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_type(case: Case, sizes: Sizes, types: list[GGMLType], type_: GGMLType) -> None:
    if type_ not in types:
        pytest.skip("not in the files that were given")
    blocks = random_blocks(type_, sizes.matrix)
    expected = dequantize(blocks, type_, backend="numpy", threads=1)

    def check(_: str, result: Array) -> None:
        assert np.array_equal(result, expected, equal_nan=True)

    contestants = {name: partial(make, type_, blocks, sizes.matrix) for name, make in CONTESTANTS.items()}
    case.time(
        f"dequantize/{type_.name}",
        contestants,
        seconds=0.15,
        check=check,
        read=blocks.nbytes,
        written=expected.nbytes,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(case: Case, sizes: Sizes, dtype: str) -> None:
    from mmgguf.dequant import DTYPES

    wanted = next(one for one in DTYPES if one.name == dtype)
    type_ = GGMLType.Q4_K
    blocks = random_blocks(type_, sizes.matrix)
    expected = dequantize(blocks, type_, backend="numpy", threads=1).astype(wanted)

    def check(name: str, result: Array) -> None:
        assert "float32" in name or np.array_equal(result, expected)

    contestants = {
        f"mmgguf, {backend}{suffix}": partial(ours(backend, 1, into), type_, blocks, sizes.matrix)
        for backend in ("numpy", "numba")
        for suffix, into in (("", wanted), (" into float32", np.float32))
    }
    case.time(f"dequantize to/Q4_K, {dtype}", contestants, check=check, elements=expected.size)


def test_rows(case: Case, sizes: Sizes) -> None:
    """Rows cost what they are, not what the tensor is."""
    blocks = random_blocks(GGMLType.Q4_K, sizes.matrix)

    def check(name: str, result: Array) -> None:
        assert result.shape == (16 if name == "16 rows" else len(blocks), sizes.matrix[1])

    contestants = {
        name: lambda chosen=chosen: lambda: dequantize(chosen, GGMLType.Q4_K, threads=1)
        for name, chosen in {"16 rows": blocks[:16], "whole tensor": blocks}.items()
    }
    case.time("dequantize rows/Q4_K", contestants, check=check, rows=len(blocks))


@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q8_0], ids=lambda type_: type_.name)
def test_two_threads(case: Case, sizes: Sizes, type_: GGMLType) -> None:
    """Beside it what two threads gain that do nothing but store: where one core can write as much as the memory takes,
    nothing gains, and whether that is so can change from second to second on a virtual machine."""
    pytest.importorskip("numba")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    blocks, out = random_blocks(type_, sizes.matrix), np.empty(sizes.matrix, np.float32)
    expected = dequantize(blocks, type_, backend="numpy", threads=1)

    def threads(count: int) -> Callable[[], Any]:
        return lambda: lambda: dequantize(blocks, type_, out=out, threads=count, backend="numba")

    def stores(count: int) -> Callable[[], Any]:
        return lambda: lambda: spread(lambda part: part.fill(1), np.split(out, 8), count)

    def check(name: str, result: Any) -> None:
        assert "thread" not in name or np.array_equal(result, expected, equal_nan=True)

    case.time(
        f"threads/{type_.name}",
        {"one thread": threads(1), "two threads": threads(2), "stores, one": stores(1), "stores, two": stores(2)},
        seconds=1.5,
        check=check,
    )
