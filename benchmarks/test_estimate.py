"""`mmgguf.estimate` on a file that is open: a real model, and the header of one with as many tensors as the largest.

The claim is less than a millisecond after opening for SmolLM2, whose 272 tensors are about as many as an 8B model's.
"""

from __future__ import annotations

import io

import pytest

import mmgguf
from mmgguf.estimates import Estimate
from tests.support.build import F16, UINT32, Build
from tests.support.models import Unavailable, smollm2

from .conftest import Case
from .turns import Contestant

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
def test_header(case: Case, label: str) -> None:
    data = _header(*HEADERS[label])
    opened: list[mmgguf.Header] = []

    def fresh() -> None:
        # Records of tensors are made when they are asked for: an estimate after opening has to make them.
        opened[:] = [mmgguf.read_header(io.BytesIO(data))]

    def check(_: str, found: Estimate) -> None:
        layers, each = HEADERS[label]
        assert found.kv_cache == 8192 * layers * 2 * 4096 * 2
        assert found.weights == 512 * (3 + layers * each)

    contestant = Contestant(lambda: mmgguf.estimate(opened[0]), fresh)
    case.time(f"estimate/{label.partition(':')[0]}", {"mmgguf": lambda: contestant}, check=check, title=label)


def test_open_file(case: Case) -> None:
    try:
        path = smollm2()
    except Unavailable as error:
        pytest.skip(str(error))
    opened: list[mmgguf.GGUFFile] = []

    def fresh() -> None:
        while opened:
            opened.pop().close()
        opened.append(mmgguf.open(path))

    def check(_: str, found: Estimate) -> None:
        assert found.kv_cache == 180 << 20
        assert found.exact == {"weights", "kv_cache", "recurrent_state", "output"}

    contestant = Contestant(lambda: mmgguf.estimate(opened[0], context=8192), fresh)
    case.time("estimate/SmolLM2", {"mmgguf": lambda: contestant}, check=check, title="SmolLM2: 272 tensors")


def test_another_context(case: Case) -> None:
    """What a table of contexts costs: the file is not looked at again."""
    found = mmgguf.estimate(mmgguf.read_header(io.BytesIO(_header(61, 18))))

    def check(_: str, other: Estimate) -> None:
        assert other.kv_cache == (found.kv_cache or 0) // 2

    contestants = {"mmgguf": lambda: lambda: found.replace(context=4096)}
    case.time("estimate/another context", contestants, check=check, title="another context of the same file")
