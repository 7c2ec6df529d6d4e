"""Models with zeros for weights that llama.cpp loads: tiny ones for each way of keeping memory, and wide ones of holes.

``tests/data/llamacpp-models.json`` has the metadata of each, and its tensors as llama.cpp's loaders asked for them (it
names a missing tensor, and the shape that a wrong one should have).  The wide ones have hyperparameters of published
models, but few layers; their tensors are holes in a sparse file.
"""

from __future__ import annotations

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

import mmgguf
from mmgguf import TypedValue, ValueType

from .build import F16, F32, Build

__all__ = ["VOCABULARY", "metadata_of", "names", "tensors_of", "wide_names", "write", "write_wide"]

VOCABULARY: Final = 320
_DATA: Final = Path(__file__).resolve().parents[1] / "data" / "llamacpp-models.json"

_WIDE: Final = "wide-"


@cache
def _models() -> dict[str, Any]:
    return dict(json.loads(_DATA.read_text()))


def names() -> list[str]:
    """The tiny models."""
    return [name for name in _models() if not name.startswith(_WIDE)]


def wide_names() -> list[str]:
    """The wide ones."""
    return [name for name in _models() if name.startswith(_WIDE)]


def metadata_of(name: str, **changes: Any) -> dict[str, Any]:
    """The metadata of a model, tokenizer included; `changes` by keys without the architecture's prefix.

    A key that begins with ``!`` has none; a value of None takes the key out.
    """
    model = _models()[name]
    architecture = model["architecture"]
    metadata: dict[str, Any] = {"general.architecture": architecture, **_tokenizer()}
    for key, value in {**model["metadata"], **changes}.items():
        full = key[1:] if key.startswith("!") else f"{architecture}.{key}"
        if value is None:
            metadata.pop(full, None)
        else:
            metadata[full] = _typed(value)
    return metadata


def _typed(value: Any) -> TypedValue:
    """A value with a type that holds it, whatever its key usually has."""
    if isinstance(value, list):
        element = ValueType.BOOL if isinstance(value[0], bool) else ValueType.UINT32
        return TypedValue(value, ValueType.ARRAY, element)
    if isinstance(value, int) and not isinstance(value, bool):
        small = 0 <= value < 1 << 32
        return TypedValue(value, ValueType.UINT32 if small else ValueType.UINT64 if value > 0 else ValueType.INT64)
    types = {bool: ValueType.BOOL, float: ValueType.FLOAT32, str: ValueType.STRING}
    return TypedValue(value, types[type(value)])


def tensors_of(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a model: `ne` by name."""
    model = _models()[name]
    count = model["metadata"]["block_count"]
    tensors = {}
    for line in model["tensors"]:
        pattern, ne, *at = line.split()
        dims = tuple(map(int, ne.split("x")))
        if "*" not in pattern:
            tensors[pattern] = dims
            continue
        for layer in map(int, at[0].split(",")) if at else range(count):
            tensors[pattern.replace("*", str(layer))] = dims
    return tensors


def write(name: str, path: Path, **changes: Any) -> Path:
    """Write a model; `changes` as for `metadata_of`."""
    arrays = {tensor: np.zeros(ne[::-1], np.float32) for tensor, ne in tensors_of(name).items()}
    mmgguf.write(path, metadata_of(name, **changes), arrays)
    return path


def write_wide(name: str, path: Path, **changes: Any) -> Path:
    """Write one of the wide models, matrices in F16 and the rest in F32, as a sparse file."""
    mmgguf.write(path, metadata_of(name, **changes), {"none": np.zeros(1, np.float32)})
    with mmgguf.open(path) as f:
        start, pairs = next(f.shards[0].header.info_positions()), len(f.metadata)
    tensors = tensors_of(name)
    build = Build().start(tensors=len(tensors), pairs=pairs)
    build.raw(path.read_bytes()[len(build) : start])
    offset = 0
    for tensor, ne in tensors.items():
        plain = len(ne) == 1 or "ssm" in tensor or "conv" in tensor
        build.tensor(tensor.encode(), list(ne), F32 if plain else F16, offset)
        offset += -(-math.prod(ne) * (4 if plain else 2) // 32) * 32
    build.pad(32)
    path.write_bytes(bytes(build))
    os.truncate(path, len(build) + offset)
    return path


def _tokenizer() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{number}" for number in range(VOCABULARY - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(VOCABULARY, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
