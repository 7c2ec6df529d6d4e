"""Dequantizing: every type × every pattern of bits, on every backend, against C, gguf and the definitions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from mmgguf.dequant import BACKENDS, DTYPES, dequantize, get_backend
from mmgguf.errors import MissingExtraError, UnknownTypeError
from mmgguf.types import LAYOUTS, GGMLType

from ..support import ggml

BLOCK_TYPES = [type_ for type_ in GGMLType if not LAYOUTS[type_].is_plain]
PLAIN_TYPES = [type_ for type_ in GGMLType if LAYOUTS[type_].is_plain]


def missing(backend: str) -> bool:
    try:
        return get_backend(backend) != backend
    except MissingExtraError:
        return True


AVAILABLE = [
    pytest.param(backend, marks=pytest.mark.skipif(missing(backend), reason=f"{backend} is not installed"))
    for backend in BACKENDS
]

# Sign, zero, subnormal, largest, infinite and NaN: what a float16 scale may be.
SPECIAL_HALVES = np.array(
    [
        0x0000,
        0x8000,
        0x0001,
        0x8001,
        0x03FF,
        0x0400,
        0x3C00,
        0xBC00,
        0x7BFF,
        0xFBFF,
        0x7C00,
        0xFC00,
        0x7E00,
        0xFE01,
    ],
    np.uint16,
)


def by_type(types: list[GGMLType]) -> Any:
    return pytest.mark.parametrize("type_", types, ids=lambda type_: type_.name)


by_backend = pytest.mark.parametrize("backend", AVAILABLE)

#: One of each kind of kernel, for what differs little from type to type.
FEW = [GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.IQ1_M, GGMLType.MXFP4]


def others_are_slow(types: list[GGMLType]) -> list[Any]:
    """The types, as parameters, of which all but a few are left to the slow tests."""
    return [pytest.param(type_, marks=[] if type_ in FEW else pytest.mark.slow, id=type_.name) for type_ in types]


# Patterns: type → raw bytes (rows, bytes)


def gaussian(type_: GGMLType) -> NDArray[np.uint8]:
    """What C makes of normal numbers; random quants with ordinary scales where it makes none.

    For five types C first spends seconds on searching its grids: their bytes, made by this very call, are
    kept in ``data/gaussians.npz``.
    """
    if type_ in ggml.NOT_IN_C:
        return ordinary(type_, 4096 // LAYOUTS[type_].block_size)
    with np.load(Path(__file__).parents[1] / "data" / "gaussians.npz") as kept:
        if type_.name in kept:
            return kept[type_.name]
    values = np.random.default_rng(int(type_)).standard_normal((3, 4096), np.float32)
    return ggml.quantize(values, type_)


def random_bytes(type_: GGMLType) -> NDArray[np.uint8]:
    """Every byte random, so scales are anything; an odd number of blocks per row."""
    n_blocks = 41
    shape = (29, n_blocks * LAYOUTS[type_].type_size)
    return np.random.default_rng(100 + int(type_)).integers(0, 256, shape, np.uint8)


def special_scales(type_: GGMLType) -> NDArray[np.uint8]:
    """Random quants, and all pairs of the special numbers as scales."""
    raw = random_bytes(type_)
    blocks = raw.view(LAYOUTS[type_].dtype).reshape(-1)
    first, second = (a.ravel() for a in np.meshgrid(SPECIAL_HALVES, SPECIAL_HALVES))
    halves = [name for name in ("d", "dmin", "m") if name in blocks.dtype.names and blocks.dtype[name] == "<f2"]
    for name, values in zip(halves, (first, second), strict=False):
        blocks[name] = np.resize(values, blocks.size).view("<f2")
    if type_ is GGMLType.Q8_K:
        blocks["d"] = np.resize(SPECIAL_HALVES.view("<f2"), blocks.size)
        blocks["d"][:4] = [1e-45, -1e-40, 3.4e38, 2.0**-126]
    if type_ is GGMLType.IQ1_M:
        words = blocks["scales"].view("<u2")
        halves_of_blocks = np.resize(SPECIAL_HALVES, blocks.size)
        for i in range(4):
            words[:, i] = words[:, i] & 0x0FFF | (halves_of_blocks >> 4 * i & 15) << 12
    return raw


def every_byte(type_: GGMLType) -> NDArray[np.uint8]:
    """256 blocks, each of one byte repeated: all zeros, …, all ones."""
    return np.repeat(np.arange(256, dtype=np.uint8)[None], LAYOUTS[type_].type_size, axis=1).reshape(256, -1)


PATTERNS: list[Callable[[GGMLType], NDArray[np.uint8]]] = [gaussian, random_bytes, special_scales, every_byte]


def ordinary(type_: GGMLType, n_blocks: int = 64, rows: int = 3) -> NDArray[np.uint8]:
    """Random blocks whose numbers are all finite and tell an order or type mix-up apart."""
    layout = LAYOUTS[type_]
    rng = np.random.default_rng(200 + int(type_))
    raw = rng.integers(0, 256, (rows, n_blocks * layout.type_size), np.uint8)
    blocks = raw.view(layout.dtype)
    for name in layout.dtype.names or ():
        if layout.dtype[name].kind == "f":
            blocks[name] = rng.uniform(0.01, 2, blocks.shape)
        elif name == "e":
            blocks[name] = rng.integers(120, 132, blocks.shape)
    if type_ is GGMLType.IQ1_M:
        blocks["scales"][..., 7] = 0x30 | blocks["scales"][..., 7] & 15
    return raw


# References


def scalar_q8_1(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = raw.view(LAYOUTS[GGMLType.Q8_1].dtype).reshape(-1)
    return np.array([np.float32(b["d"]) * np.float32(q) for b in blocks for q in b["qs"]], np.float32)


def scalar_q2_0(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Element j of 64: two bits of byte j / 4, lowest first, minus one."""
    blocks = raw.view(LAYOUTS[GGMLType.Q2_0].dtype).reshape(-1)
    return np.array(
        [
            np.float32((int(b["qs"][j // 4]) >> 2 * (j % 4) & 3) - 1) * np.float32(b["d"])
            for b in blocks
            for j in range(64)
        ],
        np.float32,
    )


SCALAR = {GGMLType.Q8_1: scalar_q8_1, GGMLType.Q2_0: scalar_q2_0}


def reference(raw: NDArray[np.uint8], type_: GGMLType) -> NDArray[np.float32]:
    """The right numbers of raw rows, shape (rows, elements)."""
    if type_ in SCALAR:
        with np.errstate(all="ignore"):
            values = SCALAR[type_](raw)
    else:
        values = ggml.dequantize(raw, type_)
    return values.reshape(raw.shape[0], -1)


@cache
def case(
    pattern: Callable[[GGMLType], NDArray[np.uint8]], type_: GGMLType
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Raw rows and the right numbers; made once for all backends."""
    raw = pattern(type_)
    return raw, reference(raw, type_)


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal bit for bit, signs of zeros too; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unsigned = f"u{actual.dtype.itemsize}"
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    same = actual.view(unsigned) == expected.view(unsigned)
    same |= np.isnan(actual) & np.isnan(expected)
    if not same.all():
        where = np.argwhere(~same)
        first = tuple(where[0])
        pytest.fail(f"{len(where)} of {same.size} differ, first at {first}: {actual[first]!r} != {expected[first]!r}")


# Values

#: What pip's gguf cannot dequantize.
NOT_IN_GGUF = {GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.Q1_0, GGMLType.Q2_0}


@by_backend
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
@by_type(BLOCK_TYPES)
def test_same_bits_as_c(type_: GGMLType, pattern: Callable[[GGMLType], NDArray[np.uint8]], backend: Any) -> None:
    raw, expected = case(pattern, type_)
    assert_same_bits(dequantize(raw, type_, backend=backend), expected)


@by_backend
@by_type([type_ for type_ in BLOCK_TYPES if type_ not in NOT_IN_GGUF])
def test_same_numbers_as_gguf(type_: GGMLType, backend: Any) -> None:
    gguf = pytest.importorskip("gguf")
    raw = ordinary(type_)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(type_)))
    np.testing.assert_array_equal(dequantize(raw, type_, backend=backend), expected)


def astype(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return values.astype(dtype)


PLAIN_VALUES = [0, 1, -1, 2, 100, -128, 127, 30000, -32768, 2**31 - 1, -(2**31), 2**53 + 1, -(2**63)]
PLAIN_FLOATS = [0.0, -0.0, 0.1, -2.5, 65504.0, 65520.0, 1e-7, 1e-40, 3.4e38, 1e300, np.inf, -np.inf, np.nan]


@by_backend
@pytest.mark.parametrize("order", ["little", "big", "raw"])
@by_type(PLAIN_TYPES)
def test_plain_types_are_converted(type_: GGMLType, order: Any, backend: Any) -> None:
    dtype = LAYOUTS[type_].dtype
    if dtype.kind == "i":
        info = np.iinfo(dtype)
        values = np.array([v for v in PLAIN_VALUES if info.min <= v <= info.max], dtype)
    else:
        values = astype(np.array(PLAIN_FLOATS), dtype)
    values = np.tile(values, (3, 5))
    stored = values.view(np.uint8) if order == "raw" else values.astype(LAYOUTS[type_].stored(order))
    for target in DTYPES:
        assert_same_bits(dequantize(stored, type_, target, backend=backend), astype(values, target))


@by_backend
@pytest.mark.parametrize("type_", others_are_slow(BLOCK_TYPES))
def test_dtypes_are_rounded_float32(type_: GGMLType, backend: Any) -> None:
    for raw in (ordinary(type_), special_scales(type_)):
        exact = dequantize(raw, type_, backend=backend)
        for target in DTYPES:
            assert_same_bits(dequantize(raw, type_, target, backend=backend), astype(exact, target))


NANS = {
    GGMLType.F32: np.array([0x7FC00000, 0xFFC00000, 0x7F812345, 0xFFD12345], np.uint32),
    GGMLType.F16: np.array([0x7E00, 0xFE00, 0x7D01, 0xFE55], np.uint16),
    GGMLType.BF16: np.array([0x7FC0, 0xFFC0, 0x7F81, 0xFFD5], np.uint16),
    GGMLType.F64: np.array([0x7FF8 << 48, 0xFFF8 << 48, 0x7FF8123456789ABC, 0xFFF0000000000001], np.uint64),
}


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("type_", NANS, ids=lambda type_: type_.name)
def test_what_is_not_a_number_stays_that_and_in_the_stored_dtype_keeps_its_bits(
    type_: GGMLType, order: Any, backend: Any
) -> None:
    bits = NANS[type_]
    stored = (bits if order == sys.byteorder else bits.byteswap()).view(LAYOUTS[type_].stored(order))
    for dtype in DTYPES:
        numbers = dequantize(stored, type_, dtype, backend=backend)
        with np.errstate(invalid="ignore"):
            assert np.isnan(numbers).all()
        if dtype == LAYOUTS[type_].dtype:
            assert numbers.tobytes() == bits.tobytes()


def test_float16_is_numpys() -> None:
    """Every float16, the middle between it and the next, and what is just below and above that middle."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = astype(halves, np.float32)
    assert_same_bits(dequantize(halves, GGMLType.F16), values)
    with np.errstate(all="ignore"):
        middle = ((values.astype(np.float64) + np.roll(values, -1)) / 2).astype(np.float32)
        near = [np.nextafter(middle, np.float32(toward)) for toward in (-np.inf, np.inf)]
    tiny = np.arange(1 << 12, dtype=np.uint32).view(np.float32)
    ends = np.array([65519.996, 65520, 3.4e38, np.inf, -np.inf, np.nan], np.float32)
    numbers = np.concatenate([values, middle, *near, tiny, ends])
    assert_same_bits(dequantize(numbers, GGMLType.F32, np.float16), astype(numbers, np.float16))


@by_backend
@by_type(BLOCK_TYPES)
def test_big_endian_blocks_give_the_same_numbers(type_: GGMLType, backend: Any) -> None:
    raw = random_bytes(type_)
    little = raw.view(LAYOUTS[type_].dtype)
    big = little.astype(LAYOUTS[type_].stored("big"))
    assert_same_bits(dequantize(big, type_, backend=backend), dequantize(little, type_, backend=backend))


# Shapes, strides and chunks


@by_backend
@by_type([GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q8_K, GGMLType.IQ2_XXS, GGMLType.MXFP4, GGMLType.Q1_0])
def test_shapes_and_strides(type_: GGMLType, backend: Any) -> None:
    layout = LAYOUTS[type_]
    raw = ordinary(type_, n_blocks=6, rows=2 * 3 * 4).reshape(2, 3, 4, -1)
    blocks = raw.view(layout.dtype)
    expected = dequantize(blocks, type_, backend=backend)
    assert expected.shape == (2, 3, 4, 6 * layout.block_size)
    assert_same_bits(expected, reference(raw.reshape(24, -1), type_).reshape(expected.shape))
    elements = expected.reshape(2, 3, 4, 6, layout.block_size)
    cases: list[tuple[Any, Any]] = [
        (blocks[1, 2, 3], expected[1, 2, 3]),
        (blocks[:, ::-1, ::2], expected[:, ::-1, ::2]),
        (blocks.transpose(2, 0, 1, 3), expected.transpose(2, 0, 1, 3)),
        (blocks[..., ::2], elements[..., ::2, :].reshape(2, 3, 4, -1)),
        (blocks[..., 1:4], elements[..., 1:4, :].reshape(2, 3, 4, -1)),
        (raw[:, 1:, ::3, : 2 * layout.type_size], elements[:, 1:, ::3, :2].reshape(2, 2, 2, -1)),
        (
            np.broadcast_to(blocks[0, 0, :1], (5, 6)),
            np.broadcast_to(expected[0, 0, :1], (5, expected.shape[-1])),
        ),
        (blocks[:0], expected[:0]),
        (blocks[..., :0], expected[..., :0]),
        (raw[..., :0], expected[..., :0]),
    ]
    for case, numbers in cases:
        assert_same_bits(dequantize(case, type_, backend=backend), numbers)
        for target in (np.float32, ml_dtypes.bfloat16):
            # Every second row of something wider, every second element, and memory order reversed.
            wide = np.full((*numbers.shape[:-1], numbers.shape[-1] + 5), 7, target)
            slots = np.full((*numbers.shape, 2), 7, target)
            for out in (wide[..., 2:-3], slots[..., 1], np.empty(numbers.shape, target, order="F")):
                result = dequantize(case, type_, target, out=out, threads=2, backend=backend)
                assert result is out
                assert_same_bits(out, astype(numbers, target))
            assert (wide[..., :2] == 7).all()
            assert (wide[..., -3:] == 7).all()
            assert (slots[..., 0] == 7).all()


@by_backend
@by_type([GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.IQ3_S, GGMLType.F16])
@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_chunks_and_threads_do_not_show(type_: GGMLType, threads: int | None, backend: Any) -> None:
    layout = LAYOUTS[type_]
    # More than a thread's worth by default, and not a multiple of any chunk.
    n_blocks = 2_300_000 // layout.block_size | 1
    few = ordinary(type_, 1021, rows=1).reshape(1021, -1) if not layout.is_plain else random_bytes(type_).reshape(-1, 2)
    raw = np.resize(few, (n_blocks, layout.type_size)).reshape(-1)
    base = dequantize(few, type_, backend=backend, threads=1)
    expected = np.resize(base, n_blocks * layout.block_size)
    for target in (np.float32, ml_dtypes.bfloat16):
        result = dequantize(raw, type_, target, threads=threads, backend=backend)
        assert_same_bits(result, astype(expected, target))
    blocks = raw.view(layout.dtype)[:-1].reshape(-1, 2)
    out = np.empty((blocks.shape[0], 2 * layout.block_size + 1), np.float32)[:, :-1]
    dequantize(blocks, type_, out=out, threads=threads, backend=backend)
    assert_same_bits(out, expected[: out.size].reshape(out.shape))


@by_backend
@by_type(BLOCK_TYPES)
def test_unaligned_memory(type_: GGMLType, backend: Any) -> None:
    raw = ordinary(type_)
    memory = np.empty(raw.nbytes + 1, np.uint8)
    memory[1:] = raw.reshape(-1)
    expected = dequantize(raw, type_, backend=backend).reshape(-1)
    assert_same_bits(dequantize(memory[1:], type_, backend=backend), expected)
    out = np.empty(expected.nbytes + 1, np.uint8)[1:].view(np.float32)
    assert_same_bits(dequantize(memory[1:], type_, out=out, backend=backend), expected)


# The numpy kernels have temporaries of their own; compiled ones share what there is.
SCRATCH_CASES = [("numpy", type_) for type_ in BLOCK_TYPES] + [("numba", GGMLType.Q4_K), ("numba", GGMLType.IQ3_S)]


@pytest.mark.parametrize(("order", "target"), [("little", np.float32), ("big", np.float16)])
@pytest.mark.parametrize(("backend", "type_"), SCRATCH_CASES, ids=lambda value: getattr(value, "name", value))
def test_scratch_does_not_grow(type_: GGMLType, order: Any, target: Any, backend: Any) -> None:
    if missing(backend):
        pytest.skip(f"{backend} is not installed")
    layout = LAYOUTS[type_]
    blocks = np.zeros(3_000_000 // layout.block_size, layout.stored(order))
    out = np.empty(blocks.size * layout.block_size, target)
    dequantize(blocks, type_, target, out=out, threads=1, backend=backend)  # tables and compiled code stay
    tracemalloc.start()
    try:
        dequantize(blocks, type_, target, out=out, threads=1, backend=backend)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


# Errors


def q4_0(*shape: int) -> NDArray[Any]:
    return np.zeros(shape, LAYOUTS[GGMLType.Q4_0].dtype)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


SHARED = np.zeros(4096, np.uint8)

ERRORS: list[tuple[str, type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    ("removed type", UnknownTypeError, "ggml type 4 ", (q4_0(2), 4), {}),
    ("type of the future", UnknownTypeError, "ggml type 99 ", (q4_0(2), 99), {}),
    ("a name for a type", TypeError, "type must be a GGMLType or its number, got 'Q4_0'", (q4_0(2), "Q4_0"), {}),
    ("bytes", TypeError, "np.frombuffer", (bytes(36), GGMLType.Q4_0), {}),
    ("other blocks", TypeError, "Q4_1 blocks must have dtype", (q4_0(2), GGMLType.Q4_1), {}),
    ("floats as blocks", TypeError, "got float32", (np.zeros(36, np.float32), GGMLType.Q4_0), {}),
    ("other numbers", TypeError, "F16 blocks must", (np.zeros(4, np.int16), GGMLType.F16), {}),
    ("part of a block", ValueError, "19 bytes", (np.zeros((3, 19), np.uint8), GGMLType.Q4_0), {}),
    ("part of a number", ValueError, "3 bytes", (np.zeros(3, np.uint8), GGMLType.F16), {}),
    ("spread bytes", ValueError, "contiguous", (np.zeros((18, 18), np.uint8).T, GGMLType.Q4_0), {}),
    ("no axis", ValueError, "at least one axis", (q4_0(1)[0], GGMLType.Q4_0), {}),
    ("integer dtype", TypeError, "dtype must be one of", (q4_0(2), GGMLType.Q4_0, np.int32), {}),
    ("foreign byte order", TypeError, "dtype must be one of", (q4_0(2), GGMLType.Q4_0, ">f4"), {}),
    ("list as out", TypeError, "numpy array", (q4_0(2), GGMLType.Q4_0), {"out": [0.0] * 64}),
    ("dtype of out", TypeError, "float16", (q4_0(2), GGMLType.Q4_0), {"out": np.zeros(64, np.float16)}),
    ("shape of out", ValueError, r"\(64,\)", (q4_0(2), GGMLType.Q4_0), {"out": np.zeros(65, np.float32)}),
    ("axes of out", ValueError, r"\(1, 64\)", (q4_0(1, 2), GGMLType.Q4_0), {"out": np.zeros(64, np.float32)}),
    (
        "read-only",
        ValueError,
        "read-only",
        (q4_0(2), GGMLType.Q4_0),
        {"out": read_only(np.zeros(64, np.float32))},
    ),
    ("overlap", ValueError, "overlaps", (SHARED[:36], GGMLType.Q4_0), {"out": SHARED[:256].view(np.float32)}),
    ("no thread", ValueError, "threads", (q4_0(2), GGMLType.Q4_0), {"threads": 0}),
    ("half a thread", TypeError, "threads must be an integer", (q4_0(2), GGMLType.Q4_0), {"threads": 2.5}),
    ("a text of threads", TypeError, "threads must be an integer", (q4_0(2), GGMLType.Q4_0), {"threads": "2"}),
    ("backend", ValueError, "backend must be one of", (q4_0(2), GGMLType.Q4_0), {"backend": "cuda"}),
]


@by_backend
@pytest.mark.parametrize(
    ("error", "match", "args", "kwargs"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_errors_come_before_anything_is_written(
    error: type[Exception], match: str, args: tuple[Any, ...], kwargs: dict[str, Any], backend: Any
) -> None:
    out = kwargs.get("out")
    before = np.array(out, copy=True)
    if isinstance(out, np.ndarray) and out.flags.writeable and out.base is None:
        out[...] = before[...] = 7
    with pytest.raises(error, match=match):
        dequantize(*args, **{"backend": backend} | kwargs)
    np.testing.assert_array_equal(np.asarray(out), before)


# Choosing the backend


@by_backend
def test_any_integer_counts_threads(backend: Any) -> None:
    blocks = np.frombuffer(np.random.default_rng(1).bytes(127 * 18), np.uint8)
    expected = dequantize(blocks, GGMLType.Q4_0, backend=backend, threads=1)
    before = threading.active_count()
    for threads in (np.int8(100), np.uint8(64), True, 10**6):
        out = np.full(127 * 32, 7, np.float32)
        assert_same_bits(dequantize(blocks, GGMLType.Q4_0, out=out, threads=threads, backend=backend), expected)
    assert threading.active_count() <= before + 64


@by_backend
def test_blocks_and_out_may_lie_between_each_other(backend: Any) -> None:
    memory = np.zeros((4, 18 * 4 + 32 * 4 * 4), np.uint8)
    blocks, out = memory[:, : 18 * 4], memory[:, 18 * 4 :].view(np.float32)
    blocks[:] = np.random.default_rng(2).integers(0, 255, blocks.shape, np.uint8)
    expected = dequantize(blocks.copy(), GGMLType.Q4_0, backend=backend)
    assert_same_bits(dequantize(blocks, GGMLType.Q4_0, out=out, backend=backend), expected)


@by_backend
@pytest.mark.parametrize("shape", ["unaligned rows", "many short rows"])
def test_scratch_does_not_grow_for_odd_outputs(shape: str, backend: Any) -> None:
    if shape == "unaligned rows":
        raw = np.zeros((3, (1 << 21) // 32 * 18), np.uint8)
        out = np.empty(3, [("x", "f4", (1 << 21,)), ("flag", "u1")])["x"]
    else:
        raw = np.zeros((60_000, 2, 18), np.uint8)
        out = np.empty((60_000, 3, 32), np.float32)[:, :2]
    for threads in (1, 3):
        dequantize(raw, GGMLType.Q4_0, out=out, threads=threads, backend=backend)
        tracemalloc.start()
        try:
            dequantize(raw, GGMLType.Q4_0, out=out, threads=threads, backend=backend)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < threads * 8 << 20


@pytest.mark.parametrize("backend", AVAILABLE)
def test_no_dtype_is_float32_for_blocks_and_their_own_for_plain_types(backend: Any) -> None:
    assert dequantize(q4_0(2), GGMLType.Q4_0, None, backend=backend).dtype == np.float32
    for type_ in PLAIN_TYPES:
        for order in ("little", "big"):
            stored = np.arange(-3, 5).astype(LAYOUTS[type_].dtype).astype(LAYOUTS[type_].stored(order))
            numbers = dequantize(stored, type_, None, backend=backend)
            assert numbers.dtype == LAYOUTS[type_].dtype
            assert numbers.tolist() == list(range(-3, 5))


def test_argument_beats_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGGUF_BACKEND", "numpy")
    assert get_backend() == "numpy"
    monkeypatch.setenv("MMGGUF_BACKEND", "fortran")
    with pytest.raises(ValueError, match="variable MMGGUF_BACKEND must be one of numba, numpy, got 'fortran'"):
        get_backend()
    assert get_backend("numpy") == "numpy"
    monkeypatch.setenv("MMGGUF_BACKEND", "")
    assert get_backend() in BACKENDS


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # as if it were not installed
import numpy as np
from mmgguf.dequant import dequantize, get_backend
from mmgguf.errors import MissingExtraError
assert get_backend() == "numpy"
assert dequantize(np.zeros(18, np.uint8), 2).shape == (32,)
try:
    dequantize(np.zeros(18, np.uint8), 2, backend="numba")
except MissingExtraError as error:
    print(error)
"""

BROKEN_NUMBA = """
import sys, types
class Broken(types.ModuleType):
    def __getattr__(self, name):
        raise OSError("Could not load shared object file")
sys.modules["numba"] = Broken("numba")
import numpy as np
from mmgguf.dequant import dequantize
assert dequantize(np.zeros(18, np.uint8), 2).shape == (32,)
try:
    dequantize(np.zeros(18, np.uint8), 2, backend="numba")
except ImportError as error:
    print(error)
"""

NOT_COMPILED = """
import os
os.environ["NUMBA_DISABLE_JIT"] = "1"
from mmgguf.dequant import get_backend
print(get_backend())
"""

LAZY = """
import sys
import mmgguf.dequant
print([name for name in ("numba", "llvmlite", "gguf") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (WITHOUT_NUMBA, str(MissingExtraError("numba", "fast"))),
        (BROKEN_NUMBA, "numba is installed, but cannot be used: Could not load shared object file"),
        (NOT_COMPILED, "numpy"),
        (LAZY, "[]"),
    ],
    ids=["without numba", "broken numba", "numba without compiling", "numba is imported late"],
)
def test_in_a_fresh_interpreter(program: str, printed: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MMGGUF_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == printed
