"""`mmgguf.jax.dequantize`: every type, eager, traced and mapped; and what keeps weights packed."""

from __future__ import annotations

import copy
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from mmgguf import dequant
from mmgguf.types import LAYOUTS, GGMLType

from .dequant.test_dispatch import BLOCK_TYPES, FEW, PATTERNS, assert_same_bits, by_type, ordinary, others_are_slow

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from mmgguf.jax import PackedArray, dequantize  # noqa: E402


def pack(raw: NDArray[np.uint8], type_: GGMLType) -> PackedArray:
    return PackedArray(jnp.asarray(raw), type_)


def expected(raw: NDArray[np.uint8], type_: GGMLType, dtype: Any = np.float32) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return dequant.dequantize(raw, type_, dtype, backend="numpy")


def flush(numbers: NDArray[Any]) -> NDArray[Any]:
    tiny = np.abs(numbers) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), numbers), numbers)


def expected_of_xla(raw: NDArray[np.uint8], type_: GGMLType) -> NDArray[np.float32]:
    """The right numbers, but for Q8_K: XLA's code for the CPU takes scales and numbers below 2^-126 for zero."""
    if type_ is not GGMLType.Q8_K:
        return expected(raw, type_)
    raw = raw.copy()
    blocks = raw.view(LAYOUTS[type_].dtype)
    blocks["d"] = flush(blocks["d"])
    return flush(expected(raw, type_))


@by_type(BLOCK_TYPES)
def test_eager(type_: GGMLType) -> None:
    for pattern in PATTERNS:
        raw = pattern(type_)
        for backend in (None, "numpy"):
            assert_same_bits(np.asarray(dequantize(pack(raw, type_), backend=backend)), expected(raw, type_))


@pytest.mark.parametrize("type_", others_are_slow(BLOCK_TYPES))
def test_compiled(type_: GGMLType) -> None:
    compiled = jax.jit(lambda packed: packed.dequantize())
    for pattern in PATTERNS:
        raw = pattern(type_)
        assert_same_bits(np.asarray(compiled(pack(raw, type_))), expected_of_xla(raw, type_))


@pytest.mark.slow
@by_type(BLOCK_TYPES)
def test_operation_by_operation(type_: GGMLType) -> None:
    with jax.disable_jit():
        for pattern in PATTERNS[2:]:
            raw = pattern(type_)
            actual = np.asarray(dequantize(pack(raw, type_), backend="portable"))
            assert_same_bits(actual, expected_of_xla(raw, type_))


@by_type(FEW)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("backend", [None, "portable"])
def test_dtypes(backend: str | None, dtype: Any, type_: GGMLType) -> None:
    raw = ordinary(type_, 3)
    actual = dequantize(pack(raw, type_), dtype=dtype, backend=backend)
    assert_same_bits(np.asarray(actual), expected(raw, type_, np.dtype(dtype)))


@by_type(FEW)
def test_mapped(type_: GGMLType) -> None:
    raw = ordinary(type_, 2, 4)
    rows = jax.vmap(lambda packed: packed.dequantize(dtype=jnp.bfloat16))(pack(raw, type_))
    assert_same_bits(np.asarray(rows), expected(raw, type_, ml_dtypes.bfloat16))


ROWS: dict[str, Any] = {
    "one": 2,
    "slice": slice(1, 3),
    "ids": np.array([[3, 1], [0, 3]]),
    "new axis": (None, slice(2)),
    "ellipsis": (1, Ellipsis),
}


@pytest.mark.parametrize("key", ROWS.values(), ids=list(ROWS))
def test_rows_stay_packed(key: Any) -> None:
    raw = ordinary(GGMLType.Q4_K, 2, 4)
    taken = pack(raw, GGMLType.Q4_K)[key]
    assert isinstance(taken, PackedArray)
    numbers = expected(raw, GGMLType.Q4_K)[key]
    assert taken.logical_shape == numbers.shape
    assert_same_bits(np.asarray(taken.dequantize()), numbers)
    traced = jax.jit(lambda packed: packed[key].dequantize())(pack(raw, GGMLType.Q4_K))
    assert_same_bits(np.asarray(traced), numbers)


@pytest.mark.parametrize("key", [(slice(None), slice(0, 144)), (Ellipsis, 0), (0, 0)], ids=str)
def test_parts_of_rows_cannot_be_taken(key: Any) -> None:
    with pytest.raises(IndexError, match="only whole rows"):
        pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K)[key]


def test_a_layer_of_packed_weights_has_a_gradient() -> None:
    packed = pack(ordinary(GGMLType.Q8_0, 2, 5), GGMLType.Q8_0)

    @jax.jit
    def loss(x: Any, weights: dict[str, PackedArray]) -> Any:
        return jnp.sum((x @ weights["w"].dequantize().T) ** 2)

    x = jnp.linspace(0, 1, 64)[None]
    weight = np.asarray(packed.dequantize())
    gradient = jax.grad(loss)(x, {"w": packed})
    np.testing.assert_allclose(np.asarray(gradient), 2 * (np.asarray(x) @ weight.T) @ weight, rtol=1e-4)


def test_it_is_a_pytree_that_transformations_take() -> None:
    packed = pack(ordinary(GGMLType.Q4_K, 2, 4), GGMLType.Q4_K)
    numbers = np.asarray(packed.dequantize())
    assert repr(packed) == "<PackedArray Q4_K, bytes of shape (4, 288)>"
    assert repr(jax.tree_util.tree_map(lambda leaf: None, packed)) == "<PackedArray Q4_K, NoneType>"
    assert_same_bits(np.asarray(jax.device_get(packed).dequantize()), numbers)
    assert_same_bits(np.asarray(copy.deepcopy(packed).dequantize()), numbers)
    experts = jax.tree_util.tree_map(lambda leaf: leaf.reshape(2, 2, -1), packed)
    x = jnp.ones((2, 512))
    each = jax.vmap(lambda weights, x: weights.dequantize() @ x)(experts, x)
    np.testing.assert_allclose(np.asarray(each), numbers.sum(-1).reshape(2, 2), rtol=1e-3, atol=1e-2)
    total, _ = jax.lax.scan(lambda total, weights: (total + weights.dequantize().sum(), None), 0.0, experts)
    np.testing.assert_allclose(total, numbers.sum(), rtol=1e-3, atol=1e-1)
    shape = jax.eval_shape(lambda packed: packed[1:].dequantize(dtype=jnp.bfloat16), packed)
    assert (shape.shape, shape.dtype) == ((3, 512), jnp.bfloat16)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "not packed": (lambda p: dequantize(p.data), TypeError, "must be a PackedArray"),
    "dtype": (lambda p: dequantize(p, dtype=np.int32), TypeError, "dtype must be one of float32"),
    "backend": (lambda p: dequantize(p, backend="x"), ValueError, "backend must be one of portable"),
    "traced": (lambda p: jax.jit(lambda p: dequantize(p, backend="numpy"))(p), ValueError, "runs on the CPU"),
    "plain type": (lambda p: jax.jit(dequantize)(PackedArray(p.data, GGMLType.F16)), TypeError, "F16 is a plain type"),
    "no such type": (lambda p: dequantize(PackedArray(p.data, 4)), ValueError, "4 is not a valid GGMLType"),
    "floats": (
        lambda p: jax.jit(dequantize)(PackedArray(p.data.astype(np.float32), p.ggml_type)),
        TypeError,
        "must be bytes, uint8, got float32",
    ),
    "part of a block": (lambda p: PackedArray(p.data[:, 1:], p.ggml_type).dequantize(), ValueError, "35 bytes is not"),
}


@pytest.mark.parametrize(("use", "error", "message"), BAD.values(), ids=list(BAD))
def test_bad_arguments(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(pack(np.zeros((2, 36), np.uint8), GGMLType.Q4_0))
