"""The example against a real llama.cpp: the same tokenization, the same continuation, the same probabilities."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import mmgguf
from mmgguf.format.writer import TypedTensor, write

from .conftest import skip_unless_ci
from .support import llamacpp

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "generate.py"

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces   three ",
    "\n\n\nlines\n  indented\n\ttab\t\tdouble\r\n",
    "trailing space ",
    "in 1984, 3.14159 and 1,000,000; x2 y²",
    "spaces before digits  7   42    123",
    "I'm you're we've they'll he'd it's don't CAN'T 'tis rock'n'roll",
    "_snake_case_ camelCase kebab-case a_b __init__",
    "def f(x):\n    return x ** 2  # squared\n",
    '!?... --- ***bold*** <html> {"json": [1, 2]}',
    "naïve café Straße ÅÄÖ e\u0301 décomposé",
    "Привет, мир! Ελληνικά עברית العربية",
    "日本語のテキスト 中文一二三 한국어",
    "½ ⅷ ٣٤٥ ४२ ①② ₂ ൫",
    "no-break\u00a0space and  \u00a0 more  \u3000x ideographic\u3000space",
    "line\u2028separator\u2029 next\u0085line zero\u200bwidth\ufeff",
    "😀👩‍👩‍👧 🇫🇷 👍🏽",
    "bell\x07 escape\x1b separators\x1c\x1d\x1e\x1f and bytes without a token \x04\x06\x13",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|><|im_end|>  <repo_name>x<file_sep>",
    "<|im_start|",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]

# llama.cpp rounds activations to 8 bits in front of every product with quantized weights, and keys and values to 16;
# the example does neither.  Logarithms of probabilities so differ by about 0.1, which decides where two
# continuations are about as likely.  Each of these has at every step one that leads by more than MARGIN.
MARGIN, TOLERANCE = 0.5, 0.2
PROMPTS = [
    "The first ten letters of the alphabet are A, B, C,",
    "1, 2, 3, 4, 5, 6, 7,",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of BLAS that wait for each other by spinning take several times as long on a busy machine."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers(smollm2: Path) -> dict[str, Any]:
    return ask_llamacpp(smollm2, texts=TEXTS, prompts=PROMPTS)


def ask_llamacpp(model: Path, **question: Any) -> dict[str, Any]:
    if importlib.util.find_spec("xllamacpp") is None:
        skip_unless_ci("xllamacpp is not installed: pip install 'mmgguf[test]'")
    return llamacpp.ask(model, **question)


@pytest.fixture(scope="module")
def tokenizer(example: ModuleType, smollm2: Path) -> Any:
    with mmgguf.open(smollm2) as f:
        return example.Tokenizer(f.metadata)


@pytest.fixture(scope="module")
def model(example: ModuleType, smollm2: Path) -> Any:
    with mmgguf.open(smollm2) as f:
        return example.Llama(f, context=64)


@pytest.mark.parametrize("n", range(len(TEXTS)), ids=[ascii(text) for text in TEXTS])
def test_tokenizes_as_llamacpp_does(n: int, tokenizer: Any, answers: dict[str, Any]) -> None:
    assert tokenizer.encode(TEXTS[n]) == answers["tokens"][n]


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x04" not in text], ids=ascii)
def test_decoding_gives_the_text_back(text: str, tokenizer: Any) -> None:
    assert b"".join(map(tokenizer.decode, tokenizer.encode(text))) == text.encode()


def compare(model: Any, ids: list[int], expected: dict[str, Any], tolerance: float) -> None:
    """Let the model go on by itself; at every step token and probability must be llama.cpp's."""
    tokens = []
    model.length = 0
    for best, _ in expected["logprobs"]:
        logits = model.forward(ids)
        ids = [int(logits.argmax())]
        assert -np.log(np.exp(logits - logits.max()).sum()) == pytest.approx(best, abs=tolerance)
        tokens += ids
    assert tokens == expected["tokens"]


@pytest.mark.parametrize("n", range(len(PROMPTS)), ids=[ascii(prompt) for prompt in PROMPTS])
def test_continues_as_llamacpp_does(n: int, tokenizer: Any, model: Any, answers: dict[str, Any]) -> None:
    expected = answers["answers"][n]
    assert min(best - second for best, second in expected["logprobs"]) > MARGIN, "the prompt does not decide"
    compare(model, tokenizer.encode(PROMPTS[n]), expected, TOLERANCE)


def test_the_answers_are_what_they_are_meant_to_be(answers: dict[str, Any], tokenizer: Any) -> None:
    # 20 tokens each; the last prompt is answered in 7, and the eighth ends the message.
    assert [len(answer["tokens"]) for answer in answers["answers"]] == [20, 20, 8]
    assert tokenizer.tokens[answers["answers"][-1]["tokens"][-1]] == "<|im_end|>"


def test_command_line_streams_the_text(smollm2: Path, answers: dict[str, Any]) -> None:
    command = [sys.executable, str(EXAMPLE), str(smollm2), "What is the capital of France?", "--chat"]
    # The same mmgguf as here, also where it is not installed.
    environment = os.environ | {"PYTHONPATH": str(Path(mmgguf.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout == answers["answers"][2]["text"] + "\n"


def test_a_model_written_as_float32_runs_and_agrees_closely(
    smollm2: Path, tmp_path: Path, tokenizer: Any, model: Any
) -> None:
    """With float32 weights llama.cpp rounds nothing, and then any prompt will do: this one has near ties.

    Every quantized tensor of the real model is dequantized and written anew, so that this is about them too.
    """
    written = tmp_path / "float32.gguf"  # 540 MB
    try:
        with mmgguf.open(smollm2) as f:
            tensors = {name: TypedTensor(t.dequantize, mmgguf.GGMLType.F32, t.shape) for name, t in f.items()}
            write(written, f.metadata, tensors)
        answer = ask_llamacpp(written, prompts=["Once upon a time"], n_predict=20, exact=True)["answers"][0]
    finally:
        written.unlink(missing_ok=True)
    assert len(answer["tokens"]) == 20
    compare(model, tokenizer.encode("Once upon a time"), answer, tolerance=0.002)
