"""TAB in IPython and Jupyter: jedi's completions, and the names between brackets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf

METADATA = {"general.architecture": "llama", "llama.block_count": 1}


@pytest.fixture
def f(tmp_path: Path) -> Iterator[mmgguf.GGUFFile]:
    path = tmp_path / "model.gguf"
    mmgguf.write(path, METADATA, {"blk.0.attn_q.weight": np.zeros(4), "blk.1.attn_q.weight": np.zeros(4)})
    with mmgguf.open(path) as file:
        yield file


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("f.", {"architecture", "metadata", "byte_order", "file_type", "config", "layers", "prefetch", "close"}),
        ("f.metadata.", {"byte_order", "typed", "get_int", "to_dict", "section"}),
        ("f.config.", {"get_int", "get_array"}),
        ("t.", {"data", "dequantize", "shape", "type"}),
        ('f["blk.0.attn_q.weight"].', {"data", "dequantize"}),
        ("f.metadata.get_", {"get_int", "get_float", "get_bool", "get_str", "get_array"}),
    ],
)
def test_jedi_completes_attributes(typed: str, expected: set[str], f: mmgguf.GGUFFile) -> None:
    jedi = pytest.importorskip("jedi")
    found = {c.name for c in jedi.Interpreter(typed, [{"f": f, "t": f["blk.0.attn_q.weight"]}]).complete()}
    assert expected - found == set()


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("f.", "architecture"),
        ("f.metadata.", "get_int"),
        ('f["blk.', "blk.1.attn_q.weight"),
        ('f.metadata["gen', "general.architecture"),
        ('config["', "block_count"),
        ('layers["blk.0"]["', "attn_q.weight"),
    ],
)
def test_ipython_completes(typed: str, expected: str, use_jedi: bool, f: mmgguf.GGUFFile) -> None:
    completer = pytest.importorskip("IPython.core.completer")
    namespace: dict[str, Any] = {"f": f, "config": f.config, "layers": f.layers()}
    ipython = completer.IPCompleter(namespace=namespace, global_namespace=namespace)
    ipython.use_jedi = use_jedi
    with completer.provisionalcompleter():
        found = [c.text.strip("\"']") for c in ipython.completions(typed, len(typed))]
    assert any(text.endswith(expected) for text in found), found
