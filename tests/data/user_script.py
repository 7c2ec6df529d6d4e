"""What a user writes; checked by mypy and pyright, and not run."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import mmgguf
from mmgguf.errors import NameNotFoundError, UnknownTypeError
from mmgguf.types import LAYOUTS, UnknownType


def look(path: str) -> list[str]:
    with mmgguf.open(path) as f:
        assert_type(f, mmgguf.GGUFFile)
        assert_type(f.architecture, str)
        assert_type(f.config.get_int("block_count"), int)
        assert_type(f.config.get_int("block_count", None), int | None)
        names: list[str] = [t.type.name for t in f.values() if t.nbytes > 1000]
        t = f["blk.0.attn_q.weight"]
        assert_type(t, mmgguf.Tensor)
        assert_type(t.type, mmgguf.GGMLType | UnknownType)
        if isinstance(t.type, mmgguf.GGMLType):
            names.append(f"{t.type}: {LAYOUTS[t.type].bpw} bits per weight")
        assert_type(t.shape, tuple[int, ...])
        assert_type(t.data, npt.NDArray[Any])
        assert_type(t.dequantize(np.float16), npt.NDArray[Any])
        first: npt.NDArray[Any] = t[0]
        names.append(str(first.dtype))
        if f.byte_order == "little":
            names.append(f.metadata.get_str("general.name", "no name"))
        for key, value in f.metadata.typed().items():
            assert_type(value, mmgguf.TypedValue)
            names.append(key)
        for layer, tensors in f.layers().items():
            names.append(layer + tensors["attn_q.weight"].name)
    return names


def load(path: str, name: str) -> npt.NDArray[Any] | None:
    try:
        blocks = mmgguf.load_file(path, dequantize=False)[name]
        return mmgguf.dequantize(blocks, mmgguf.GGMLType.Q4_K) + blocks["d"].astype(np.float32)[..., None]
    except (NameNotFoundError, UnknownTypeError, mmgguf.GGUFError):
        return None


def copy(path: str, to: str) -> None:
    with mmgguf.open(path) as f:
        mmgguf.write(to, f.metadata.typed() | {"general.name": "A copy"}, f)
    for finding in mmgguf.verify(to):
        print(finding.severity, finding.message)
    print(mmgguf.digest(to).file, [d.name for d in mmgguf.compare(path, to)])
