"""`mmgguf.jax`: the same numbers, and shared memory where XLA can use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf.dequant import dequantize
from mmgguf.types import LAYOUTS, GGMLType

from .support import cases

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError:
    # CI installs jax where it installs torch.
    if os.environ.get("CI") and sys.version_info < (3, 14):
        pytest.fail("jax is not installed", pytrace=False)
    pytest.skip("jax is not installed", allow_module_level=True)

from mmgguf.jax import PackedArray, Tensors, load_file

#: What JAX makes of 64-bit numbers unless told otherwise.
NARROWED = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.int64): np.dtype(np.int32)}


def assert_bits(actual: Any, expected: np.ndarray[Any, Any]) -> None:
    expected = expected.astype(NARROWED.get(expected.dtype, expected.dtype))
    assert isinstance(actual, jax.Array)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert np.asarray(actual).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [None, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case_id", ["all-types", "all-types-big", "dimensions", "zero-size", "no-dimensions"])
def test_every_tensor_has_the_file_s_numbers(case_id: str, dtype: Any, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    with np.errstate(all="ignore"):
        arrays, expected = load_file(path, dtype=dtype), mmgguf.load_file(path, dtype=dtype)
        assert list(arrays) == list(expected)
        for name, array in arrays.items():
            assert_bits(array, expected[name])


def test_aligned_tensors_share_memory_and_the_others_do_not(all_types: Path) -> None:
    shared = 0
    with mmgguf.open(all_types) as f, np.errstate(over="ignore"):  # JAX narrows float64
        for name, array in Tensors(f).items():
            data = f[name].data
            plain = LAYOUTS[GGMLType(f[name].type)].is_plain and data.dtype not in NARROWED
            same = array.unsafe_buffer_pointer() == data.__array_interface__["data"][0]
            assert same == (plain and f[name].file_offset % 64 == 0), name
            shared += same
    assert shared


def test_a_file_aligned_to_64_is_shared_whole(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(i + 1, i, ml_dtypes.bfloat16) for i in range(9)}
    mmgguf.write(tmp_path / "x.gguf", {}, tensors, alignment=64)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        arrays = load_file(f)
        for name, array in arrays.items():
            assert array.unsafe_buffer_pointer() == f[name].data.__array_interface__["data"][0]
    for name, array in arrays.items():  # also after the file was closed
        assert_bits(array, tensors[name])


def test_donating_shared_memory_does_not_write_to_the_file(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": np.ones(16, "f4")}, alignment=64)
    array = load_file(tmp_path / "x.gguf")["w"]
    result = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert result.tolist() == [2.0] * 16
    assert mmgguf.load_file(tmp_path / "x.gguf")["w"].tolist() == [1.0] * 16


def test_dequantized_numbers_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = cases.random_tensor(GGMLType.Q8_0, (4, 2)).blocks
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": mmgguf.TypedTensor(blocks, GGMLType.Q8_0)})
    written: list[int] = []

    def store(stored: Any, tensor: Any, out: Any) -> None:
        written.append(out.ctypes.data)
        out[...] = 1

    monkeypatch.setattr("mmgguf.jax.store", store)
    assert [load_file(tmp_path / "x.gguf")["w"].unsafe_buffer_pointer()] == written


def test_raw_blocks_are_a_pytree_with_type_and_shape(all_types: Path) -> None:
    for path in (all_types, cases.BY_ID["all-types-big"].write(all_types.parent)):
        arrays = load_file(path, dequantize=False, names="*.q?_k.*")
        assert len(arrays) == 6
        for name, raw in arrays.items():
            tensor = cases.BY_ID["all-types"].tensors[name]
            assert isinstance(raw, PackedArray)
            assert (raw.ggml_type, raw.logical_shape) == (tensor.type, tensor.shape)
            assert raw.data.shape[:-1] == tensor.shape[:-1]
            assert np.asarray(raw.data).tobytes() == tensor.raw
            numbers = dequantize(np.asarray(raw.data), raw.ggml_type)
            assert numbers.tobytes() == dequantize(tensor.blocks, tensor.type).tobytes()
        same = jax.tree.map(lambda leaf: leaf, arrays)
        for name, raw in same.items():
            assert (raw.ggml_type, raw.logical_shape) == (arrays[name].ggml_type, arrays[name].logical_shape)


def test_device_names_and_progress(all_types: Path) -> None:
    calls: list[tuple[int, int]] = []
    device = jax.devices("cpu")[0]
    arrays = load_file(all_types, device=device, names="*.f32.*", progress=lambda *call: calls.append(call))
    assert [array.devices() for array in arrays.values()] == [{device}]
    assert calls == [(0, 24), (24, 24)]


def test_tensors_is_a_mapping(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        tensors = Tensors(f)
        assert (len(tensors), list(tensors)) == (len(f), list(f))
        assert "blk.0.f32.weight" in tensors
        assert "nothing" not in tensors
        with pytest.raises(KeyError):
            tensors["nothing"]
    with pytest.raises(mmgguf.errors.ClosedError):
        tensors["blk.0.f32.weight"]


def test_float64_beyond_float32_is_infinite_without_a_warning(tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": np.array([1e300, -1e300, np.nan, 1.5])})
    assert_bits(load_file(tmp_path / "x.gguf")["w"], np.array([np.inf, -np.inf, np.nan, 1.5], np.float32))


# The core's tensors, as JAX takes them by itself.


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big"])
def test_jax_takes_every_tensor_as_numbers(case_id: str, tmp_path: Path) -> None:
    with mmgguf.open(cases.BY_ID[case_id].write(tmp_path)) as f:
        for t in f.values():
            native = np.asarray(t).astype(t.dtype.newbyteorder("="))
            if native.dtype not in NARROWED:
                assert_bits(jnp.from_dlpack(t), native)
            if native.dtype not in NARROWED and t.dtype.isnative:  # of numpy's swapped dtypes JAX takes none
                assert_bits(jnp.asarray(t), native)


def test_operators_beside_jax_s_own_arrays(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        t = f["blk.0.q4_0.weight"]
        other = jnp.ones(t.shape, jnp.float32)
        for got in (t * other, other * t, jax.jit(lambda x: x * t)(other), jax.jit(lambda x: t * x)(other)):
            assert_bits(got, np.asarray(t))


@pytest.mark.parametrize("dequantize", [True, False])
def test_what_was_loaded_can_be_written(dequantize: bool, all_types: Path, tmp_path: Path) -> None:
    names = [name for name, array in mmgguf.load_file(all_types).items() if array.dtype not in NARROWED]
    loaded = load_file(all_types, dtype=ml_dtypes.bfloat16, names=names, dequantize=dequantize)
    mmgguf.write(tmp_path / "copy.gguf", {}, loaded)
    with mmgguf.open(all_types) as before, mmgguf.open(tmp_path / "copy.gguf") as after:
        for name in names:
            if not dequantize and not before[name].layout.is_plain:
                assert (after[name].type, after[name].shape) == (before[name].type, before[name].shape)
                assert after[name].data.tobytes() == before[name].data.tobytes()
            else:
                assert_bits(loaded[name], after[name].data)
