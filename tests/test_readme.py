"""Every Python block of the README runs as it stands."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import GGMLType

from .support.cases import random_tensor

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FRAMEWORKS = {"torch", "jax", "safetensors", "gguf", "transformers", "distributed"}
BLOCKS = [
    pytest.param(match[1], id=f"{no}-{README[: match.start()].rpartition('## ')[2].splitlines()[0]}")
    for no, match in enumerate(re.finditer(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A folder with the README's model.gguf as current folder, and the names that its blocks take for granted."""
    monkeypatch.chdir(tmp_path)
    metadata = {
        "general.architecture": "llama",
        "general.name": "Readme",
        "llama.block_count": 1,
        "llama.attention.head_count": 32,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "c", "d"],
    }
    tensors = {
        "token_embd.weight": np.ones((64, 32), np.float32),
        "blk.0.attn_q.weight": mmgguf.TypedTensor(random_tensor(GGMLType.Q4_K, (4096, 16)).blocks, GGMLType.Q4_K),
        "output_norm.weight": np.ones(32, np.float32),
    }
    mmgguf.write("model.gguf", metadata, tensors)
    with open("model.gguf", "rb") as file:
        yield {
            "np": np,
            "mmgguf": mmgguf,
            "path": "model.gguf",
            "buffer": np.empty((4096, 4096), np.float16),
            "file": file,
            "metadata": metadata,
            "tensors": {"w": np.ones(3, np.float32)},
        }


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("code", BLOCKS)
def test_the_blocks_run(code: str, names: dict[str, Any]) -> None:
    for module in re.findall(r"^\s*(?:from|import) (?:mmgguf\.)?(\w+)", code, re.MULTILINE):
        if module in FRAMEWORKS and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    exec(compile(code, "README.md", "exec"), names)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


def test_the_tests_that_it_names_exist() -> None:
    file, named = "", re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)?(?:::(test_\w+))?`", README)
    for given, test in named:
        file = given or file
        if file:
            text = (Path(__file__).parent / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, f"{file}::{test}"
    assert len([test for _, test in named if test]) > 10
