"""Tensors of block types as numbers: whole, by rows, by parts of rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor, dequant
from mmgguf.storage.local import ReadFile

from .support.cases import Case, random_tensor
from .test_file import KEYS

TYPES = [GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.IQ2_XS]


@pytest.fixture(params=[("little", "mmap"), ("big", "mmap"), ("little", "read")], ids="-".join)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[mmgguf.GGUFFile]:
    path = tmp_path / "model.gguf"
    tensors: dict[str, Any] = {
        "scalar": np.float32(2.5),
        "integers": np.arange(12, dtype=np.int16).reshape(3, 4),
        "bf16": np.linspace(-1, 1, 12).astype(ml_dtypes.bfloat16).reshape(3, 4),
    }
    for type_ in TYPES:
        for name, blocks in {"vector": (5,), "matrix": (4, 3), "experts": (3, 4, 2)}.items():
            tensors[f"{type_.name}.{name}"] = mmgguf.TypedTensor(random_tensor(type_, blocks).blocks, type_)
    byte_order, storage = request.param
    mmgguf.write(path, {}, tensors, byte_order=byte_order)
    with mmgguf.open(path, storage=storage) as f:
        yield f


def same_bits(a: Any, b: Any) -> None:
    """Equal bit for bit; any NaN equals any NaN."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    nan = np.isnan(a)
    np.testing.assert_array_equal(nan, np.isnan(b))
    assert np.where(nan, 0, a).tobytes() == np.where(nan, 0, b).tobytes()


@pytest.mark.parametrize("type_", TYPES, ids=lambda t: t.name)
def test_numbers_do_not_depend_on_how_they_are_asked_for(type_: GGMLType, file: mmgguf.GGUFFile) -> None:
    for name in ("vector", "matrix", "experts"):
        t = file[f"{type_.name}.{name}"]
        whole = mmgguf.dequantize(t.data.astype(t.layout.dtype), type_)
        assert whole.shape == t.shape
        same_bits(np.asarray(t), whole)
        same_bits(t.dequantize(), whole)
        out = np.empty(t.shape, np.float32)
        assert t.dequantize(out=out) is out
        same_bits(out, whole)
        same_bits(np.asarray(t, np.float16), t.dequantize(np.float16))
        n = t.shape[-1]
        keys = [key for key in KEYS if name == "experts" or not isinstance(key, tuple) or len(key) < 2]
        keys += [slice(n // 3, n // 2), slice(-5, None)] if name == "vector" else []
        keys += [n - 1] if name == "vector" else [(0,) * (t.ndim - 1) + (-1,)]
        keys += [(..., slice(1, n, 7)), (..., slice(n // 2, n // 2)), (..., n - 1), (..., slice(-3, None))]
        # To numpy a bool is no number: it adds an axis of 1 or 0.
        keys += [True, np.False_, (..., True), (0, True)]
        keys += [
            (..., slice(n - 2, 3, -5)),
            (..., slice(40, None, -3)),
            (..., slice(None, None, -1)),
            ([0, -1, 0], ...),
        ]
        if name == "experts":
            keys += [([0, 2], 1, 5), ([0, 2], slice(None), 5), (slice(None), [1, 3], 5), (1, [1, 3], 5), (1, [1, 3])]
            keys += [([True, False, True], 2), (slice(None), [True, False, True, False], 1), (2, None), ([1], [2], [9])]
        for key in keys:
            if isinstance(key, np.ndarray) and key.dtype == bool:
                key = np.arange(len(t)) % 2 == 0
            same_bits(t[key], whole[key])
            assert type(t[key]) is type(whole[key])
        for bad in (len(t), (..., n), (..., -n - 1), (0,) * 5, "d", 1.5, (0, "d")):
            with pytest.raises(IndexError):
                t[bad]


def test_only_the_blocks_that_are_needed_are_dequantized(
    file: mmgguf.GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counting(blocks: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(blocks.size)
        return dequant.dequantize(blocks, *args, **kwargs)

    monkeypatch.setattr(mmgguf.tensor, "dequantize", counting)
    t = file["Q4_K.experts"]  # 3 experts of 4 rows of 2 blocks
    for key, blocks in [
        (1, 8), ((1, 2), 2), ((1, 2, 300), 1), ((slice(0, 2), 1, slice(256, 300)), 2), ([0, 2], 16), ((..., 0), 12),
        (np.array([True, False, True]), 16), (([0, 2], 2, 7), 2), ((..., slice(5, 5)), 0), ((1, [True, False] * 2), 4),
        ((0, 0, slice(300, 256, -1)), 1),
    ]:  # fmt: skip
        seen.clear()
        t[key]
        assert seen == [blocks], key


def test_a_share_is_read_once(file: mmgguf.GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = file["Q4_K.matrix"].data
    reads: list[int] = []
    array = ReadFile.array
    monkeypatch.setattr(ReadFile, "array", lambda self, *where: reads.append(0) or array(self, *where))
    with mmgguf.open(file.path, storage="read") as f:
        assert f["Q4_K.matrix"].partition(1, 2).tobytes() == expected[2:].tobytes()
        assert f["Q4_K.matrix"].partition(0, 3, axis=-1).tobytes() == expected[:, :1].tobytes()
        assert f["scalar"].partition(1, 2).shape == ()
    assert len(reads) == 3


def test_plain_types_become_the_dtype_that_is_asked_for(file: mmgguf.GGUFFile) -> None:
    for name in ("scalar", "integers", "bf16"):
        t = file[name]
        expected = t.data.astype(t.layout.dtype)
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
            got = t.dequantize(dtype)
            assert got.dtype == dtype
            same_bits(got, expected.astype(dtype))
            out = np.empty(t.shape, dtype)
            assert t.dequantize(dtype, out=out) is out
            same_bits(out, expected.astype(dtype))


def test_an_ellipsis_that_stands_for_no_axis_parts_the_indices_beside_it(tmp_path: Path) -> None:
    mmgguf.write(
        tmp_path / "x.gguf",
        {},
        {"w": mmgguf.TypedTensor(random_tensor(GGMLType.Q4_0, (2, 3, 4, 1)).blocks, GGMLType.Q4_0)},
    )
    with mmgguf.open(tmp_path / "x.gguf") as f:
        whole = np.asarray(f["w"])
        for key in [
            (slice(None), 0, ..., [0, 1], slice(None)), (slice(None), [0, 1], ..., 0, slice(None)),
            (slice(None), [0, 1], ..., [0, 1], slice(None)), (0, 1, ..., 2, slice(3, 9)),
        ]:  # fmt: skip
            same_bits(f["w"][key], whole[key])


def test_the_logical_bfloat16_is_this_machine_s(file: mmgguf.GGUFFile) -> None:
    t = file["bf16"]
    expected = np.linspace(-1, 1, 12).astype(ml_dtypes.bfloat16).reshape(3, 4)
    for got, part in (
        (np.asarray(t), ...),
        (t[1:], slice(1, None)),
        (t[[2, 0]], [2, 0]),
        (np.array(t, copy=True), ...),
    ):
        assert got.dtype == ml_dtypes.bfloat16
        assert got.tolist() == expected[part].tolist()
    assert t[1, 2].item() == expected[1, 2].item()
    if file.byte_order == "big":
        with pytest.raises(ValueError, match="copy"):
            np.asarray(t, copy=False)


def test_rows_have_one_dtype_whatever_the_storage(file: mmgguf.GGUFFile) -> None:
    with mmgguf.open(file.path, storage="read") as f:
        for key in ([1, 0], slice(0, 2), 1):
            assert f["integers"][key].dtype == file["integers"][key].dtype


def test_blocks_cannot_be_numbers_without_a_copy(file: mmgguf.GGUFFile) -> None:
    with pytest.raises(ValueError, match=r"Q4_0\.matrix: Q4_0 blocks become numbers only in a copy"):
        np.asarray(file["Q4_0.matrix"], copy=False)


def test_reading_rows_reads_only_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    blocks = random_tensor(GGMLType.Q8_0, (10, 4, 2)).blocks  # rows of 2 blocks of 34 bytes, 272 bytes per expert
    mmgguf.write(path, {}, {"w": blocks, "plain": np.arange(40, dtype=np.int8).reshape(10, 4)})
    read: list[int] = []
    read_at = mmgguf.storage.local.read_at

    def counting(descriptor: int, buffer: memoryview, offset: int) -> int:
        read.append(len(buffer))
        return read_at(descriptor, buffer, offset)

    monkeypatch.setattr(mmgguf.storage.local, "read_at", counting)
    with mmgguf.open(path, storage="read") as f:
        for key, expected in [
            (3, [272]), (-1, [272]), (slice(2, 5), [816]), (slice(8, 1, -3), [7 * 272]), ([7, 0, 7], [272] * 2),
            ((4, slice(1, 2)), [68]), (([2, 4], 0), [272] * 2), ((slice(1, 3), ..., 0), [544]), (np.int64(2), [272]),
            ((4, 3), [68]), ((4, 3, 33), [34]), ((4, 3, slice(0, 5)), [34]), ((4, 1, 64), IndexError),
            (slice(4, 4), []), (np.arange(10) == 6, [272]), ((np.arange(10) > 7, 1), [272] * 2), (10, IndexError),
        ]:  # fmt: skip
            read.clear()
            if expected is IndexError:
                with pytest.raises(IndexError):
                    f["w"][key]
            else:
                assert f["w"][key].shape == np.asarray(f["w"])[key].shape
                assert read[: len(expected)] == expected, key
        for key, expected in [
            (3, [4]), ((3, 1), [1]), (slice(2, 4), [8]), ([7, 0, 7], [4, 4]), ((3, slice(1, 3)), [2]), ((..., 1), [40]),
        ]:  # fmt: skip
            read.clear()
            f["plain"][key]
            assert read == expected, key
        read.clear()
        assert f["w"].partition(1, 5).shape == (2, 4, 2)
        assert read == [2 * 272]


def test_size_and_dtype_are_those_of_the_numbers(file: mmgguf.GGUFFile) -> None:
    for t in file.values():
        array = np.asarray(t)
        assert (t.dtype, t.size, t.shape, t.ndim) == (array.dtype, array.size, array.shape, array.ndim)


def test_an_unknown_type_has_a_size_and_no_dtype(tmp_path: Path) -> None:
    case = Case("x", {}, {"b": random_tensor(GGMLType.I8, (3,))})
    infos = [b"b\x01\0\0\0\x03" + bytes(7) + type_ for type_ in (b"\x18", b"\x77")]
    (tmp_path / "x.gguf").write_bytes(case.encoded().replace(*infos))
    with mmgguf.open(tmp_path / "x.gguf") as f:
        assert f["b"].size == 3
        with pytest.raises(mmgguf.errors.UnknownTypeError, match="b: unknown ggml type 119"):
            _ = f["b"].dtype


BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow, divmod,
    operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
]  # fmt: skip
BITWISE = [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]


def same(got: Any, expected: Any) -> None:
    np.testing.assert_array_equal(got, expected)
    assert type(got) is type(expected)


def test_operators_are_those_of_the_array(file: mmgguf.GGUFFile) -> None:
    with np.errstate(all="ignore"):
        for name, functions in (("Q4_0.matrix", BINARY), ("integers", BINARY[:8] + BITWISE), ("bf16", BINARY[:4])):
            t, array = file[name], np.asarray(file[name])
            row = array[0]
            for function in functions:
                for other in (2, array.dtype.type(3), row, array, t):
                    numbers = array if other is t else other
                    same(function(t, other), function(array, numbers))
                    same(function(other, t), function(numbers, array))
            for unary in (operator.neg, operator.pos, operator.abs):
                same(unary(t), unary(array))
    q, array = file["Q4_0.matrix"], np.asarray(file["Q4_0.matrix"])
    # A permutation, which has one result in whatever order products are added.
    last_first = np.eye(array.shape[1], dtype=array.dtype)[::-1]
    same(q @ last_first, array[:, ::-1])
    same(np.eye(len(array), dtype=array.dtype)[::-1] @ q, array[::-1])
    same(~file["integers"], ~np.asarray(file["integers"]))
    assert {q: 1}[q] == 1
    with pytest.raises(TypeError):
        q + "x"


@pytest.mark.parametrize("key", [b"a", "a", 1.0, 1j, (0, b"a"), (b"a", 0), ([0], "a"), [b"a"], [1.0], object()])
@pytest.mark.parametrize("name", ["Q4_0.matrix", "integers"])
def test_what_is_no_index_is_an_index_error_as_in_numpy(name: str, key: Any, file: mmgguf.GGUFFile) -> None:
    with pytest.raises(IndexError):
        np.zeros((3, 4))[key]
    with pytest.raises(IndexError):
        file[name][key]


# What other libraries make of a tensor; those for torch and JAX are with their adapters.


def _dask(t: mmgguf.Tensor) -> Any:
    return pytest.importorskip("dask.array").from_array(t, chunks=2).compute()


def _zarr(t: mmgguf.Tensor) -> Any:
    zarr = pytest.importorskip("zarr")
    return zarr.create_array(zarr.storage.MemoryStore(), data=t)[...]


def _polars(t: mmgguf.Tensor) -> Any:
    return pytest.importorskip("polars").from_numpy(t).to_numpy()


def _einops(t: mmgguf.Tensor) -> Any:
    return pytest.importorskip("einops").rearrange(np.asarray(t), "a b -> b a").T


@pytest.mark.parametrize("take", [_dask, _zarr, _polars, _einops])
def test_other_libraries_take_a_tensor(take: Any, file: mmgguf.GGUFFile) -> None:
    for name in ("Q4_0.matrix", "Q4_K.matrix", "integers"):
        if take is _polars and not file[name].dtype.isnative:
            continue  # of swapped dtypes it takes none
        np.testing.assert_array_equal(take(file[name]), np.asarray(file[name]))


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    "key", [([1, -1], slice(1, 3)), (np.array([[0, 1], [1, 2]]),), (np.array(1), np.array(2)), (0, 1)]
)
def test_chosen_blocks_are_those_of_data(key: Any, order: Any, tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, 3 * 4 * 34, np.uint8)
    tensor = TypedTensor(blocks, GGMLType.Q8_0, (3, 128))
    mmgguf.write(tmp_path / "x.gguf", {"general.architecture": "llama"}, {"x": tensor}, byte_order=order)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        chosen, expected = f["x"].data_at(key), f["x"].data[key]
        assert type(chosen) is type(expected)
        assert (chosen.dtype, chosen.shape) == (expected.dtype, expected.shape)
        assert chosen.tobytes() == expected.tobytes()


@pytest.mark.parametrize("storage", ["mmap", "read"])
def test_many_rows_are_made_in_portions(tmp_path: Path, storage: Any) -> None:
    """Of the numbers of all rows, as numpy chooses them: bit for bit, also where a portion is not full."""
    blocks = random_tensor(GGMLType.Q4_0, (300, 2, 64)).blocks
    mmgguf.write(tmp_path / "model.gguf", {}, {"w": mmgguf.TypedTensor(blocks, GGMLType.Q4_0)})
    with mmgguf.open(tmp_path / "model.gguf", storage=storage) as f:
        t = f["w"]
        whole = t.dequantize()
        ids = np.random.default_rng(1).integers(-300, 300, 1003)
        assert t[ids].nbytes > 8 << 20
        for key in (
            ids,
            ids.tolist(),
            (ids, 1),
            (ids, slice(None, None, -1), slice(3, 2000, 5)),
            (ids, ..., slice(7, 7)),
        ):
            same_bits(t[key], whole[key])
        same_bits(t[ids.reshape(17, 59)], whole[ids.reshape(17, 59)])
        with pytest.raises(IndexError, match="300"):
            t[np.append(ids, 300)]
