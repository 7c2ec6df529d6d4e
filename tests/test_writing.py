"""Writing to URLs; what is written is for `tests/format/test_writer.py`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import mmgguf


def test_to_a_file_url(tmp_path: Path) -> None:
    path = tmp_path / "a b.gguf"
    mmgguf.write(path.as_uri(), {"n": 1}, {"a": np.arange(3)})
    assert mmgguf.open(path)["a"].data.tolist() == [0, 1, 2]


def test_to_memory_in_one_step() -> None:
    fs = pytest.importorskip("fsspec").filesystem("memory")
    url = "memory://writing/x.gguf"
    try:
        mmgguf.write(url, {"n": 1}, {"a": np.arange(3)})
        assert mmgguf.open(url)["a"].data.tolist() == [0, 1, 2]

        def fails() -> np.ndarray:
            raise RuntimeError("in the middle")

        broken = {"a": mmgguf.TypedTensor(fails, mmgguf.GGMLType.I64, (4,))}
        with pytest.raises(RuntimeError, match="in the middle"):
            mmgguf.write(url, {"n": 2}, broken)
        assert mmgguf.open(url).metadata["n"] == 1
    finally:
        fs.rm("/writing", recursive=True)


def test_where_files_cannot_be_replaced() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(io.UnsupportedOperation, match=r"https://host/x\.gguf: files there cannot be replaced"):
        mmgguf.write("https://user:passw0rd@host/x.gguf", {}, {})


def test_options_need_a_url(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        mmgguf.write(tmp_path / "x.gguf", {}, {}, storage_options={"key": "x"})
