"""Whole files as numpy arrays: `load_file`, `GGUFFile.dequantize_all`, and the walk that the adapters share."""

from __future__ import annotations

import inspect
import operator
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmgguf
from mmgguf.conversion import chunks, ranges
from mmgguf.dequant import dequantize
from mmgguf.selection import walk
from mmgguf.types import LAYOUTS, GGMLType

from .support import cases

INTEGERS = {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64}
EVERYTHING = ["all-types", "all-types-big", "newest-types", "dimensions", "zero-size", "zero-rows", "no-dimensions"]


def expected_of(tensor: cases.StoredTensor, dtype: Any) -> np.ndarray[Any, Any]:
    if not LAYOUTS[tensor.type].is_plain:
        return dequantize(tensor.blocks, tensor.type, dtype or np.float32)
    with np.errstate(all="ignore"):
        return tensor.blocks if dtype is None or tensor.type in INTEGERS else tensor.blocks.astype(dtype)


def assert_bits(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [None, np.float32, np.float16, ml_dtypes.bfloat16, "float64"])
@pytest.mark.parametrize("case_id", EVERYTHING)
def test_every_tensor_as_numbers(case_id: str, dtype: Any, tmp_path: Path) -> None:
    path, tensors = cases.BY_ID[case_id].write(tmp_path), cases.BY_ID[case_id].tensors
    arrays = mmgguf.load_file(path, dtype=dtype)
    assert list(arrays) == list(tensors)
    with mmgguf.open(path) as f:
        pairs = dict(f.dequantize_all(dtype=dtype))
        for name, tensor in tensors.items():
            expected = expected_of(tensor, dtype)
            assert_bits(arrays[name], expected)
            assert_bits(pairs[name], expected)
            for limit in (1, 1 << 9, 1 << 20):
                parts = [part.copy() for part in chunks(f[name], dtype, limit)]
                # At least one block at a time, whatever the limit.
                assert all(part.nbytes <= max(limit, 256 * expected.itemsize) for part in parts)
                assert_bits(np.concatenate([np.empty(0, expected.dtype), *parts]), expected.reshape(-1))


def test_plain_tensors_are_views(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        for name, array in mmgguf.load_file(f).items():
            plain = LAYOUTS[GGMLType(f[name].type)].is_plain
            assert np.may_share_memory(array, f.shards[0].file.base) == plain
            assert array.flags.writeable != plain
        for name, array in f.dequantize_all(names="*.f32.*"):
            assert np.shares_memory(array, f[name].data)


OPTIONS = {"names": None, "dtype": None, "dequantize": True, "progress": None}
SURFACE = {
    "mmgguf:load_file": list(OPTIONS),
    "mmgguf.torch:load_file": [*OPTIONS, "device"],
    "mmgguf.jax:load_file": [*OPTIONS, "device"],
    "mmgguf.torch:Tensors": ["dtype", "dequantize", "device"],
    "mmgguf.jax:Tensors": ["dtype", "dequantize", "device"],
    "mmgguf:GGUFFile.dequantize_all": ["names", "dtype", "progress"],
    "mmgguf.npz:save_file": list(OPTIONS),
    "mmgguf.safetensors:save_file": [*OPTIONS, "metadata"],
    "mmgguf.safetensors:to_gguf": ["names", "dtype", "progress", "metadata"],
}


@pytest.mark.parametrize("where", SURFACE)
def test_options_are_the_same_everywhere(where: str) -> None:
    module, _, path = where.partition(":")
    function = operator.attrgetter(path)(pytest.importorskip(module))
    first, *others = [p for name, p in inspect.signature(function).parameters.items() if name not in ("self", "path")]
    assert first.name == {"Tensors": "f", "GGUFFile.dequantize_all": "names"}.get(path, "source")
    options = [p for p in (first, *others) if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in options] == SURFACE[where]
    assert others == [p for p in others if p.kind is p.KEYWORD_ONLY]
    assert {p.name: p.default for p in options if p.name in OPTIONS}.items() <= OPTIONS.items()


@pytest.mark.parametrize("case_id", ["all-types", "all-types-big"])
def test_stored_blocks(case_id: str, tmp_path: Path) -> None:
    path = cases.BY_ID[case_id].write(tmp_path)
    arrays = mmgguf.load_file(path, dequantize=False)
    with mmgguf.open(path) as f:
        for name, tensor in cases.BY_ID[case_id].tensors.items():
            assert_bits(arrays[name], tensor.blocks if LAYOUTS[tensor.type].is_plain else f[name].data)
            assert case_id.endswith("big") or not arrays[name].flags.writeable


def test_read_instead_of_mapped(all_types: Path) -> None:
    with mmgguf.open(all_types, storage="read") as f:
        for name, array in f.dequantize_all(dtype=None):
            assert_bits(array, expected_of(cases.BY_ID["all-types"].tensors[name], None))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a[0]", ["a[0]"]),  # a name as it stands goes before a pattern
        ("a?1?", ["a[1]"]),
        (["c", "a*", "c"], ["a[0]", "a[1]", "c"]),
        ([], []),
        (iter(["b"]), ["b"]),
        (None, ["a[0]", "b", "a[1]", "c"]),
        ("*", ["a[0]", "b", "a[1]", "c"]),
    ],
)
def test_names_and_patterns_in_the_file_s_order(names: Any, expected: list[str], tmp_path: Path) -> None:
    mmgguf.write(tmp_path / "x.gguf", {}, {name: np.zeros(1, "f4") for name in ("a[0]", "b", "a[1]", "c")})
    assert list(mmgguf.load_file(tmp_path / "x.gguf", names=names)) == expected


@pytest.mark.parametrize("names", ["x", "x*", ["blk.0.f32.weight", "?"], "BLK.*"])
def test_what_fits_nothing_is_an_error_before_the_first_tensor(names: Any, all_types: Path) -> None:
    with mmgguf.open(all_types) as f, pytest.raises(mmgguf.errors.NameNotFoundError, match="no tensor"):
        f.dequantize_all(names=names)


def test_an_unknown_type_is_an_error_before_the_first_tensor_unless_left_out(tmp_path: Path) -> None:
    case = cases.Case(
        "x", {}, {"a": cases.random_tensor(GGMLType.F32, (3,)), "b": cases.random_tensor(GGMLType.I8, (3,))}
    )
    unknown = case.encoded().replace(b"b\x01\0\0\0\x03\0\0\0\0\0\0\0\x18", b"b\x01\0\0\0\x03\0\0\0\0\0\0\0\x77")
    (tmp_path / "x.gguf").write_bytes(unknown)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        with pytest.raises(mmgguf.errors.UnknownTypeError, match="b: unknown ggml type 119"):
            f.dequantize_all()
        assert list(mmgguf.load_file(f, names="a")) == ["a"]


def test_other_dtypes_are_refused(all_types: Path) -> None:
    with pytest.raises(TypeError, match="dtype must be one of float32"):
        mmgguf.load_file(all_types, dtype=np.int32)
    with mmgguf.open(all_types) as f, pytest.raises(TypeError, match="dtype must be one of float32"):
        f.dequantize_all(dtype=np.int32)


def test_progress_counts_stored_bytes(all_types: Path) -> None:
    calls: list[tuple[int, int]] = []
    with mmgguf.open(all_types) as f:
        for _ in f.dequantize_all(progress=lambda done, total: calls.append((done, total))):
            pass
    sizes = [len(tensor.raw) for tensor in cases.BY_ID["all-types"].tensors.values()]
    assert calls == [(sum(sizes[:i]), sum(sizes)) for i in range(len(sizes) + 1)]


def test_the_next_tensors_are_asked_for_once_each_and_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"t{i}" for i in range(9)]
    mmgguf.write(tmp_path / "x.gguf", {}, {name: np.zeros(10, np.int8) for name in names})
    asked: list[str] = []
    monkeypatch.setattr("mmgguf.storage.local.MappedFile.ahead", 25)
    with mmgguf.open(tmp_path / "x.gguf") as f:
        at = {f[name].file_offset: name for name in names}
        monkeypatch.setattr(
            "mmgguf.storage.local.MappedFile.prefetch", lambda file, offset, nbytes, once: asked.append(at[offset])
        )
        for index, _ in enumerate(walk(f)):
            # Whatever begins within the next 25 bytes: three tensors of 10.
            assert asked == names[1 : index + 4]


def test_a_closed_file_is_refused(all_types: Path) -> None:
    with mmgguf.open(all_types) as f:
        pass
    for use in (mmgguf.load_file, mmgguf.GGUFFile.dequantize_all):
        with pytest.raises(mmgguf.errors.ClosedError):
            use(f)


@pytest.mark.parametrize(
    ("n", "itemsize", "limit"), [(0, 4, 10), (1, 4, 1), (512, 4, 2048), (1000, 2, 1 << 10), (7, 8, 1 << 20)]
)
def test_ranges_cover_everything_in_whole_blocks(n: int, itemsize: int, limit: int) -> None:
    found = list(ranges(n, itemsize, limit))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(n))
    assert all(start % 256 == 0 for start, _ in found)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    blocks = np.zeros((1 << 10, 1 << 4), LAYOUTS[GGMLType.Q8_0].dtype)  # 2 MiB as float32
    mmgguf.write(tmp_path / "x.gguf", {}, {"w": blocks})
    with mmgguf.open(tmp_path / "x.gguf") as f:
        list(chunks(f["w"], np.float16, 1 << 16))  # whatever is made at the first call
        tracemalloc.start()
        assert sum(part.nbytes for part in chunks(f["w"], np.float32, 1 << 16)) == 2 << 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 19


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there is it known to be refused otherwise")
def test_a_file_larger_than_memory_is_mapped_copy_on_write(tmp_path: Path) -> None:
    # What torch is given; without MAP_NORESERVE Linux says that it cannot allocate memory.
    size = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + (64 << 30)
    case = cases.Case("x", {}, {"w": cases.StoredTensor(GGMLType.I8, (size,), b"")})
    path = tmp_path / "x.gguf"
    path.write_bytes(case.header())
    try:
        os.truncate(path, case.data_offset + size)  # a hole: takes no room
    except OSError as error:
        pytest.skip(f"no holes of {size} bytes here: {error}")
    with mmgguf.open(path, mode="c") as f:
        f["w"].data[-1] = 7
        assert f["w"].data[-1] == 7
        assert f["w"].data[0] == 0
    with mmgguf.open(path) as f:
        assert f["w"].data[-1] == 0


# The adapters' frameworks.

MISSING = {
    "torch": "import mmgguf.torch",
    "jax": "import mmgguf.jax",
    # Writing safetensors takes no package.
    "safetensors": "import mmgguf.safetensors; mmgguf.safetensors.to_gguf('x.safetensors', 'x.gguf')",
}


@pytest.mark.parametrize(("package", "use"), MISSING.items(), ids=list(MISSING))
def test_a_missing_framework_is_said_in_one_line(package: str, use: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None  # as if it were not installed
import mmgguf
try:
    {use}
except mmgguf.errors.MissingExtraError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == f"{package} is not installed; get it with: pip install 'mmgguf[{package}]'\n"


def test_no_framework_is_imported_with_the_package() -> None:
    code = (
        "import sys, mmgguf; print([m for m in ('torch', 'jax', 'safetensors', 'numba', 'rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"
