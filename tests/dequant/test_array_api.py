"""The portable kernels, with numpy as the array library: every type × every pattern of bits.

What torch and JAX make of them is tested with their adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmgguf import dequant
from mmgguf.dequant.array_api import NUMPY, TABLES, Operations, dequantize, table
from mmgguf.dequant.array_api.kernels import KERNELS
from mmgguf.types import LAYOUTS, GGMLType

from .test_dispatch import BLOCK_TYPES, PATTERNS, assert_same_bits, by_type


@by_type(BLOCK_TYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_the_bits_are_those_of_the_numpy_backend(
    pattern: Callable[[GGMLType], NDArray[np.uint8]], type_: GGMLType
) -> None:
    raw = pattern(type_)
    with np.errstate(all="ignore"):
        assert_same_bits(
            dequantize(NUMPY, raw, type_, np.float32), dequant.dequantize(raw, type_, np.float32, backend="numpy")
        )


class Double:
    """numpy, with float64 for float32."""

    float32 = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def reinterpret_in_double(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return array.view(np.float32).astype(np.float64) if dtype is np.float64 else array.view(dtype)


@by_type(BLOCK_TYPES)
def test_each_number_is_rounded_once_so_that_fusing_changes_nothing(type_: GGMLType) -> None:
    ops = Operations(Double(), reinterpret_in_double, lambda name, _: table(name))
    for pattern in PATTERNS:
        raw = pattern(type_)
        with np.errstate(all="ignore"):
            once = dequantize(ops, raw, type_, np.float64).astype(np.float32)
            assert_same_bits(once, dequantize(NUMPY, raw, type_, np.float32))


def test_every_block_type_has_a_kernel() -> None:
    assert set(KERNELS) == set(BLOCK_TYPES)


@by_type([GGMLType.Q4_0, GGMLType.IQ1_M, GGMLType.MXFP4])
@pytest.mark.parametrize("rows", [(), (0,), (2, 0), (2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_shapes(type_: GGMLType, rows: tuple[int, ...], n_blocks: int) -> None:
    layout = LAYOUTS[type_]
    raw = np.full((*rows, n_blocks * layout.type_size), 60, np.uint8)
    numbers = dequantize(NUMPY, raw, type_, np.float16)
    assert numbers.dtype == np.float16
    assert numbers.shape == (*rows, n_blocks * layout.block_size)
    assert numbers.tobytes() == dequant.dequantize(raw, type_, np.float16, backend="numpy").tobytes()


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_small_and_of_dtypes_that_every_library_has(name: str) -> None:
    values: NDArray[Any] = table(name)
    assert values.dtype in (np.uint8, np.int8, np.int32, np.float32)
    assert values.nbytes <= 1 << 14
    assert table(name) is values
