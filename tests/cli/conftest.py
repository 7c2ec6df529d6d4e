"""Files for the tests of the subcommands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmgguf.format.writer import TypedTensor, write
from mmgguf.types import FileType, GGMLType

from ..support import commandline  # noqa: F401, makes one parser for all

G = GGMLType


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with names and types to sort and to filter."""
    path = tmp_path / "model.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.name": "A test",
        "general.file_type": FileType.MOSTLY_Q8_0,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(2000)],
        "tokenizer.ggml.scores": np.zeros(2000, "f4"),
        "llama.epsilon": 1e-5,
        "llama.template": "x" * 5000,
    }
    tensors = {
        "blk.2.attn_q.weight": TypedTensor(np.zeros((64, 2 * 34), "u1"), G.Q8_0),
        "blk.10.attn_q.weight": np.zeros((3, 5), "f4"),
        "blk.1.ffn_up.weight": np.zeros((2, 2, 4), "f2"),
        "output": np.zeros(1000, "i1"),
    }
    write(path, metadata, tensors)
    return path
