"""The functions of the package that run from `mmgguf.open` to a row of numbers, in the order of their first call."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType, TypedTensor

PACKAGE = os.path.dirname(mmgguf.__file__) + os.sep
#: Each counts as one, with everything beneath it.
WHOLE = {"parse_header", "dequantize"}

CALLS = """
    open open_shards Opener.open
    MappedFile.__init__ LocalFile.__init__ open_descriptor require_settled journal_path Storage.__init__
    parse_storage LocalFile.reader parse_header LocalFile.require_unchanged Metadata.__contains__
    GGUFFile.__init__
    GGUFFile.__getitem__ TensorInfos.__getitem__ Tensor.__init__
    Tensor.__getitem__ Tensor._stored_form select Tensor.data_at MappedFile.array dequantize
"""


def calls(run: Callable[[], object]) -> list[str]:
    """Names of the functions of the package that `run` calls, each once; properties are left out."""
    names: dict[str, None] = {}
    inside: list[FrameType] = []

    def trace(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return
        if event == "call" and not inside:
            module = sys.modules[frame.f_globals["__name__"]]
            if not isinstance(reduce(static, code.co_qualname.split("."), module), property):
                names[code.co_qualname] = None
            if code.co_qualname in WHOLE:
                inside.append(frame)
        elif event == "return" and inside and inside[0] is frame:
            inside.clear()

    def static(holder: Any, name: str) -> Any:
        return inspect.getattr_static(holder, name, None)

    before = sys.getprofile()
    sys.setprofile(trace)
    try:
        run()
    finally:
        sys.setprofile(before)
    return list(names)


def test_the_way_from_a_path_to_a_row_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGGUF_BACKEND", "numpy")  # which compiles nothing
    path = tmp_path / "model.gguf"
    tensor = TypedTensor(np.zeros(8 * 34 * 2, np.uint8), GGMLType.Q8_0, (8, 64))
    mmgguf.write(path, {"general.architecture": "llama"}, {"x": tensor})
    kept = [mmgguf.open(path)]  # what is done once in a process is done
    assert kept[0]["x"][3].shape == (64,)

    def run() -> None:
        kept.append(mmgguf.open(path))
        kept[-1]["x"][3]

    names = calls(run)
    assert names == CALLS.split()
    assert len(names) <= 25
    for f in kept:
        f.close()
