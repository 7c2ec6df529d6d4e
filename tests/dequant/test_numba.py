"""What is special to the compiled kernels: dtypes, streaming, threads, the disk cache.

That every type has the C library's bits is tested for both backends together in ``test_dequant``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba")

import numba
from numba.core import caching

import mmgguf
from mmgguf.dequant import dequantize, dispatch
from mmgguf.dequant import numba as compiled
from mmgguf.dequant.numba import KERNELS, OUTPUT_DTYPES, Kernel
from mmgguf.types import LAYOUTS, GGMLType

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = list(OUTPUT_DTYPES)


def blocks(type_: GGMLType, count: int, seed: int = 0) -> NDArray[np.uint8]:
    size = LAYOUTS[type_].type_size
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


def empty(type_: GGMLType, count: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.zeros((count, LAYOUTS[type_].block_size), dtype)


def cast(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def assert_same_bits(got: NDArray[Any], want: NDArray[Any]) -> None:
    """The same bits, except that a NaN may be any NaN."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    bits = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(got.view(bits)[~nan], want.view(bits)[~nan])


def rounding_cases() -> NDArray[np.float32]:
    """float32 on, and next to, all numbers of 16 bits and the middles between them; and random bits."""
    top = np.arange(1 << 16, dtype=np.uint32) << 16
    near = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves[-1] = 2.0**16  # what infinity's bits would mean: its middle with 65504 rounds to infinity
    edges = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2]).astype(np.float32).view(np.uint32)
    edges = (edges[1:, None] + np.array([-1, 0, 1], np.int32)).astype(np.uint32).reshape(-1)
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    words = [(top[:, None] + near).reshape(-1), edges, edges | np.uint32(1 << 31), random]
    return np.concatenate(words).view(np.float32)


def test_every_block_type_has_a_kernel() -> None:
    plain = {GGMLType.F32, GGMLType.F16, GGMLType.BF16}
    assert set(KERNELS) == {t for t, layout in LAYOUTS.items() if not layout.is_plain} | plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float32_is_rounded_as_astype_does(dtype: np.dtype[Any]) -> None:
    values = rounding_cases()
    out = np.zeros((values.size, 1), dtype)
    KERNELS[GGMLType.F32](values.view(np.uint8).reshape(-1, 4), out)
    assert_same_bits(out[:, 0], cast(values, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("type_", "stored"), [(GGMLType.F16, np.float16), (GGMLType.BF16, BFLOAT16)], ids=["F16", "BF16"]
)
def test_all_numbers_of_16_bits(type_: GGMLType, stored: Any, dtype: np.dtype[Any]) -> None:
    # Not a multiple of any vector's length.
    words = np.arange(1 << 16, dtype=np.uint16)[:-3]
    out = np.zeros((words.size, 1), dtype)
    KERNELS[type_](words.view(np.uint8).reshape(-1, 2), out)
    assert_same_bits(out[:, 0], cast(words.view(stored).astype(np.float32), dtype))


# TQ1_0 has the shortest vectors, Q4_K the longest.
@pytest.mark.parametrize("type_", [GGMLType.TQ1_0, GGMLType.Q4_K], ids=["TQ1_0", "Q4_K"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_dtypes_and_streaming_change_no_number(type_: GGMLType, dtype: np.dtype[Any]) -> None:
    raw = blocks(type_, 99)
    reference = empty(type_, 99)
    KERNELS[type_](raw, reference)
    for stream in (False, True):
        # A guard on each side; the second output is aligned to its items only, the third not even to them.
        for shift in (64, 64 + dtype.itemsize, 65):
            memory = np.full(reference.size * dtype.itemsize + 192, 0xA5, np.uint8)
            start = -memory.ctypes.data % 64 + shift
            stop = start + reference.size * dtype.itemsize
            out = memory[start:stop].view(dtype).reshape(reference.shape)
            KERNELS[type_](raw, out, stream=stream)
            assert_same_bits(out.copy(), cast(reference, dtype))
            assert (memory[:start] == 0xA5).all()
            assert (memory[stop:] == 0xA5).all()


def test_large_outputs_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    entry = Kernel._entry
    monkeypatch.setattr(Kernel, "_entry", lambda self, *key: asked.append(key) or entry(self, *key))
    for count in (1, dispatch._STREAM_FROM // 128):
        dequantize(blocks(GGMLType.Q8_0, count), GGMLType.Q8_0, threads=1, backend="numba")
    assert asked == [(np.dtype(np.float32), False), (np.dtype(np.float32), True)]


def test_no_blocks() -> None:
    for dtype in DTYPES:
        KERNELS[GGMLType.Q8_0](blocks(GGMLType.Q8_0, 0), empty(GGMLType.Q8_0, 0, dtype))


def test_read_only_blocks() -> None:
    raw = blocks(GGMLType.Q8_0, 3)
    want, got = empty(GGMLType.Q8_0, 3), empty(GGMLType.Q8_0, 3)
    KERNELS[GGMLType.Q8_0](raw, want)
    raw.flags.writeable = False
    KERNELS[GGMLType.Q8_0](raw, got)
    assert_same_bits(got, want)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


RAW = np.zeros((4, 34), np.uint8)
OUT = np.zeros((4, 32), np.float32)


@pytest.mark.parametrize(
    ("raw", "out", "message"),
    [
        (RAW.reshape(-1), OUT, r"blocks must be .* got uint8 \(136,\)"),
        (RAW[:, :33], OUT, r"shape \(n, 34\), got uint8 \(4, 33\)"),
        (np.zeros((8, 34), np.uint8)[::2], OUT, "blocks must be C-contiguous"),
        (RAW.view(np.int8), OUT, "got int8"),
        (RAW, OUT[:3], r"out must be .* of shape \(4, 32\), got float32 \(3, 32\)"),
        (RAW, np.zeros((5, 32), np.float32), r"got float32 \(5, 32\)"),
        (RAW, np.zeros((4, 64), np.float32)[:, ::2], "C-contiguous"),
        (RAW, read_only(OUT.copy()), "writable"),
        (RAW, OUT.astype(np.int32), "got int32"),
        (RAW, OUT.astype(">f4"), "got >f4"),
    ],
)
def test_what_compiled_code_would_not_survive_is_refused(raw: NDArray[Any], out: NDArray[Any], message: str) -> None:
    before = out.copy()
    with pytest.raises(ValueError, match=f"Q8_0: .*{message}"):
        KERNELS[GGMLType.Q8_0](raw, out)
    np.testing.assert_array_equal(out, before)


def test_the_gil_is_released() -> None:
    """Another thread runs while a kernel does, although the interpreter would never make it switch."""
    raw, out = blocks(GGMLType.Q4_K, 16384), empty(GGMLType.Q4_K, 16384)
    kernel = KERNELS[GGMLType.Q4_K]
    kernel(raw, out)
    inside, stop = False, False

    def work() -> None:
        nonlocal inside
        for _ in range(500):
            inside = True
            kernel(raw, out)
            inside = False
            if stop:
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        seen = False
        while thread.is_alive() and not seen:
            seen = inside
            thread.join(1e-4)  # waiting gives the GIL away
        stop = True
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen


def test_threads_share_a_kernel_even_while_it_is_compiled() -> None:
    type_, count, parts = GGMLType.Q5_0, 8000, 8
    raw = blocks(type_, count)
    want, got = empty(type_, count), empty(type_, count)
    KERNELS[type_](raw, want)
    kernel = Kernel(type_)
    kernel._compiled._cache = caching.NullCache()
    together = threading.Barrier(parts)

    def work(part: int) -> None:
        rows = slice(part * count // parts, (part + 1) * count // parts)
        together.wait()
        kernel(raw[rows], got[rows])

    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, range(parts)))
    assert_same_bits(got, want)


# The disk cache


def compile_one() -> Any:
    """A new kernel, used once; its cache's statistics."""
    kernel = Kernel(GGMLType.Q8_0)
    raw, out = np.ones((2, 34), np.uint8), empty(GGMLType.Q8_0, 2)
    kernel(raw, out)
    # d is the half 0x0101: 257 steps of 2**-24.
    assert (out == 257 * 2.0**-24).all()
    return kernel._compiled.stats


def test_the_disk_cache_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert not compile_one().cache_hits
    assert Path(compile_one().cache_path).is_relative_to(tmp_path)
    assert sum(compile_one().cache_hits.values()) == 1
    # The code of a kernel includes what `vectors` generates.
    monkeypatch.setattr(compiled, "_STAMP", "another version")
    assert not compile_one().cache_hits


def test_without_any_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in vars(caching) if name.endswith("CacheLocator")]:
        monkeypatch.setattr(getattr(caching, name), "from_function", classmethod(lambda cls, *args: None))
    assert compile_one().cache_path is None


def test_a_cache_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    compile_one()
    monkeypatch.setattr(caching.IndexDataCacheFile, "load", full)
    compile_one()


# Other processes


def python(code: str, *args: str, **environment: str) -> str:
    """What a new interpreter prints that imports the same mmgguf as this one."""
    path = str(Path(mmgguf.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *args],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results() -> str:
    """A hash of what kernels that are lowered differently without special instructions compute."""
    digest = hashlib.sha256()
    for type_, dtype in [
        (GGMLType.F16, np.float32),
        (GGMLType.F32, np.float16),
        (GGMLType.Q6_K, np.float32),
        (GGMLType.IQ4_NL, np.float32),
    ]:
        raw = blocks(type_, 70_000)
        if type_ == GGMLType.F16:
            raw[: 1 << 16] = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
        if type_ == GGMLType.F32:
            raw = rounding_cases().view(np.uint8).reshape(-1, 4)
        raw = raw if LAYOUTS[type_].is_plain else raw[:500]
        out = empty(type_, len(raw), dtype)
        KERNELS[type_](raw, out)
        out[np.isnan(out)] = np.nan
        digest.update(out.tobytes())
    return digest.hexdigest()


def test_a_plain_processor_computes_the_same(tmp_path: Path) -> None:
    code = """
from numba.core.registry import cpu_target
assert "+f16c" not in cpu_target.target_context.codegen().magic_tuple()[2]
import runpy, sys
from numba.core.registry import cpu_target
assert "+f16c" not in cpu_target.target_context.codegen().magic_tuple()[2]
print(runpy.run_path(sys.argv[1])["results"]())
"""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(code, __file__, **plain).strip() == results()


def test_importing_mmgguf_does_not_import_numba() -> None:
    python("import sys, mmgguf, mmgguf.dequant; assert 'numba' not in sys.modules")
