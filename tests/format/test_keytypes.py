"""The types of known keys, held against the writer of pip's gguf."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from mmgguf.format.keytypes import array_type, scalar_type
from mmgguf.format.values import type_for
from mmgguf.types import ValueType

V = ValueType

#: Methods of gguf.GGUFWriter that name a type.
ADDERS = {
    "add_string": V.STRING,
    "add_uint32": V.UINT32,
    "add_int32": V.INT32,
    "add_float32": V.FLOAT32,
    "add_bool": V.BOOL,
}


def written_by_gguf() -> dict[str, set[str]]:
    """By the adder: the keys that pip's writer calls it with."""
    writer = pytest.importorskip("gguf.gguf_writer")
    found: dict[str, set[str]] = {}
    for call in ast.walk(ast.parse(inspect.getsource(writer))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
            continue
        for part in ast.walk(call.args[0]):
            if isinstance(part, ast.Attribute) and ast.unparse(part).startswith("Keys."):
                key = _attribute(writer.Keys, ast.unparse(part))
                if isinstance(key, str):
                    found.setdefault(call.func.attr, set()).add(key)
    return found


def _attribute(keys: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        keys = getattr(keys, name)
    return keys


def test_scalars_are_what_the_writer_of_gguf_stores() -> None:
    written = written_by_gguf()
    assert len(written["add_uint32"]) > 100
    for adder, type_ in ADDERS.items():
        for pattern in written[adder]:
            key = pattern.format(arch="llama", id=3, name="tool_use", dense="dense_2")
            assert scalar_type(key) is type_, key


def test_every_array_of_the_writer_of_gguf_is_known() -> None:
    for pattern in written_by_gguf()["add_array"]:
        assert array_type(pattern.format(arch="llama")) is not None, pattern


@pytest.mark.parametrize(
    ("key", "value", "type_", "element_type"),
    [
        ("llama.block_count", 32, V.UINT32, None),
        ("any-new-arch.block_count", 32, V.UINT32, None),
        ("llama.attention.head_count_kv", 8, V.UINT32, None),
        ("llama.attention.head_count_kv", [8, 4], V.ARRAY, V.INT32),
        ("llama.rope.freq_base", 10000, V.FLOAT32, None),
        ("gemma3.attention.sliding_window_pattern", 6, V.UINT32, None),
        ("gemma3.attention.sliding_window_pattern", [True, False], V.ARRAY, V.BOOL),
        ("general.tags", [], V.ARRAY, V.STRING),
        ("general.base_model.0.name", "x", V.STRING, None),
        ("tokenizer.chat_template.tool_use", "x", V.STRING, None),
        ("tokenizer.ggml.precompiled_charsmap", b"\x00\xff", V.ARRAY, V.UINT8),
        ("tokenizer.ggml.token_type", [1, 3], V.ARRAY, V.INT32),
        ("split.no", 0, V.UINT16, None),
        ("split.count", 3, V.UINT16, None),
        ("split.tensors.count", 9, V.INT32, None),
        ("quantize.imatrix.entries_count", 9, V.INT32, None),
        ("imatrix.datasets", ["a"], V.ARRAY, V.STRING),
        # No key of the table: as `infer_type`.
        ("general.block_count", -1, V.INT32, None),
        ("my.key", 1 << 40, V.UINT64, None),
        ("block_count", 1, V.UINT32, None),
    ],
)
def test_types_of_plain_values(key: str, value: Any, type_: ValueType, element_type: ValueType | None) -> None:
    typed = type_for(key, value, key)
    assert (typed.type, typed.element_type) == (type_, element_type)
