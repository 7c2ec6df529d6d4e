"""The example in torch against a real llama.cpp: the same tokens where one leads clearly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmgguf

from .support import llamacpp
from .test_example import MARGIN, PROMPTS

for package in ("torch", "transformers", "gguf"):
    pytest.importorskip(package)
pytest.importorskip("xllamacpp")

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "generate_torch.py"


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(mmgguf.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", str(EXAMPLE), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_tokens_are_those_of_llama_cpp(prompt: str, smollm2: Path) -> None:
    (answer,) = llamacpp.ask(smollm2, prompts=[prompt], n_predict=20, exact=True)["answers"]
    assert all(best - second > MARGIN for best, second in answer["logprobs"])
    tokens = [int(id_) for id_ in run(str(smollm2), prompt, "--ids", "--tokens", "20").split()]
    # transformers gives the token that ends a text, llama.cpp stops before it.
    assert tokens[: len(answer["tokens"])] == answer["tokens"]
    assert len(answer["tokens"]) >= 5


def test_a_chat(smollm2: Path) -> None:
    assert "Paris" in run(str(smollm2), "What is the capital of France?", "--chat", "--tokens", "20")
