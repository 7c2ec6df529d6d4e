"""Memory that arrays share, and conversions that are done together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmgguf
from mmgguf import batches
from mmgguf.bench.models import every_type


@pytest.mark.parametrize("sizes", [[4], [0, 4, 0], [400, 4, 1000, 60, 64], [100, 5000, 100]])
def test_arrays_are_aligned_and_apart(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LARGE", 4096)
    monkeypatch.setattr(batches, "PIECE", 1024)
    pieces = batches.Pieces(sizes)
    arrays = [pieces.empty((size // 4,), np.dtype(np.float32)) for size in sizes]
    for number, array in enumerate(arrays):
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0 or not array.size
        array[:] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_a_large_array_has_memory_of_its_own() -> None:
    pieces = batches.Pieces([40, batches.LARGE, 40])
    first, large, last = (pieces.empty((n // 4,), np.dtype(np.float32)) for n in (40, batches.LARGE, 40))
    assert np.shares_memory(first.base, last.base)
    assert not np.shares_memory(first.base, large.base)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("small", [True, False])
def test_a_whole_file_has_the_numbers_of_its_tensors(
    tmp_path: Path, dtype: type, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # many batches and pieces, and several parts of most tensors
        for name, size in (("LARGE", 8 << 10), ("PIECE", 20 << 10), ("BATCH", 30 << 10), ("PART", 2 << 10)):
            monkeypatch.setattr(batches, name, size)
    path = tmp_path / "model.gguf"
    every_type(path, 200_000)
    seen: list[tuple[int, int]] = []
    arrays = mmgguf.load_file(path, dtype=dtype, progress=lambda done, total: seen.append((done, total)))
    with mmgguf.open(path) as f:
        assert list(arrays) == list(f)
        for name, tensor in f.items():
            expected = tensor.dequantize(dtype) if tensor.dtype.kind not in "iu" else tensor.data
            assert arrays[name].dtype == expected.dtype
            assert arrays[name].tobytes() == expected.tobytes(), name
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]


def test_an_error_in_a_conversion_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    every_type(path, 20_000)

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no numbers today")

    monkeypatch.setattr(batches, "store", fail)
    with pytest.raises(RuntimeError, match="no numbers today"):
        mmgguf.load_file(path, dtype=np.float32)
