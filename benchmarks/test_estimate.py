"""`mmgguf.estimate` on a file that is open: a real model, and the header of one with as many tensors as the largest.

The claim is less than a millisecond after opening for SmolLM2, whose 272 tensors are about as many as an 8B model's.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.estimates import Estimate
from tests.support.build import F16, UINT32, Build
from tests.support.models import Unavailable, smollm2

#: Layers, and tensors of each: an 8B model, and one of the size of DeepSeek-V3.
HEADERS = {"8B: 32 layers, 291 tensors": (32, 9), "DeepSeek-V3: 61 layers, 1,100 tensors": (61, 18)}


def _header(layers: int, each: int) -> bytes:
    names = ["token_embd.weight", "output_norm.weight", "output.weight"]
    names += [f"blk.{layer}.tensor_{number}.weight" for layer in range(layers) for number in range(each)]
    numbers = {"block_count": layers, "embedding_length": 4096, "attention.head_count": 32, "context_length": 8192}
    b = Build().start(tensors=len(names), pairs=1 + len(numbers)).text(b"general.architecture", b"llama")
    for key, value in numbers.items():
        b.number(f"llama.{key}".encode(), UINT32, value)
    for number, name in enumerate(names):
        b.tensor(name.encode(), [16, 16], F16, 512 * number)
    return bytes(b.pad(32).raw(bytes(512 * len(names))))


@pytest.mark.parametrize("label", HEADERS)
def test_header(benchmark: Any, label: str) -> None:
    benchmark.group = "estimate"
    data = _header(*HEADERS[label])

    def fresh() -> tuple[tuple[mmgguf.Header], dict[str, Any]]:
        # Records of tensors are made when they are asked for: an estimate after opening has to make them.
        return (mmgguf.read_header(io.BytesIO(data)),), {}

    found: Estimate = benchmark.pedantic(mmgguf.estimate, setup=fresh, rounds=200)
    assert found.kv_cache == 8192 * HEADERS[label][0] * 2 * 4096 * 2
    assert found.weights == 512 * (3 + HEADERS[label][0] * HEADERS[label][1])


def test_open_file(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "estimate"
    try:
        path = smollm2()
    except Unavailable as error:
        pytest.skip(str(error))

    opened: list[mmgguf.GGUFFile] = []

    def fresh() -> tuple[tuple[mmgguf.GGUFFile], dict[str, Any]]:
        opened.append(mmgguf.open(path))
        return (opened[-1],), {"context": 8192}

    found: Estimate = benchmark.pedantic(mmgguf.estimate, setup=fresh, rounds=200)
    for f in opened:
        f.close()
    assert found.kv_cache == 180 << 20
    assert found.exact == {"weights", "kv_cache", "recurrent_state", "output"}


def test_another_context(benchmark: Any) -> None:
    """What a table of contexts costs: the file is not looked at again."""
    benchmark.group = "estimate"
    found = mmgguf.estimate(mmgguf.read_header(io.BytesIO(_header(61, 18))))
    assert benchmark(found.replace, context=4096).kv_cache == (found.kv_cache or 0) // 2
