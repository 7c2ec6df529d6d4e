"""Hyperparameters that cannot be meant: a `GGUFError` that says which, soon and without much memory."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmgguf
from mmgguf import GGUFError, TypedValue, ValueType
from mmgguf.estimates import ARCHITECTURES, estimate

from ..support import build, tiny, touch
from ..support.build import Build

HUGE = 1 << 63

#: Model, changed keys, and what the message has to say.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"block_count": 0}, "block_count: 0 is not between 1 and 512"),
    ("llama", {"block_count": HUGE}, "block_count"),
    ("llama", {"block_count": -1}, "block_count"),
    ("llama", {"block_count": None}, "block_count"),
    ("llama", {"block_count": "4"}, "an integer was asked for"),
    ("llama", {"block_count": 4.0}, "an integer was asked for"),
    ("llama", {"block_count": True}, "an integer was asked for"),
    ("llama", {"attention.head_count": 0}, "no heads"),
    ("llama", {"attention.head_count": HUGE}, "head_count"),
    ("llama", {"attention.head_count": [0, 4, 4, 4]}, "no heads"),
    ("llama", {"attention.head_count": [4, 4, 4]}, "has 3 elements, the model 4 layers"),
    ("llama", {"attention.head_count_kv": [2] * 100_000}, "has 100000 elements"),
    ("llama", {"attention.head_count_kv": float("nan")}, "an integer was asked for"),
    ("llama", {"embedding_length": 0}, "embedding_length"),
    ("llama", {"context_length": -5}, "context_length"),
    ("llama", {"attention.key_length": HUGE}, "key_length"),
    ("llama", {"feed_forward_length": [256] * 3}, "feed_forward_length: has 3 elements"),
    ("llama-moe", {"expert_used_count": HUGE}, "expert_used_count"),
    ("gemma4", {"attention.sliding_window_pattern": None}, "sliding_window_pattern"),
    ("gemma4", {"attention.sliding_window_pattern": [True]}, "has 1 elements"),
    ("gemma4", {"attention.shared_kv_layers": 7}, "shared_kv_layers"),
    ("gemma3", {"attention.sliding_window": -1}, "sliding_window"),
    ("glm4moe-nextn", {"nextn_predict_layers": 5}, "nextn_predict_layers"),
    ("mamba", {"ssm.inner_size": None}, "ssm.inner_size"),
    ("mamba", {"ssm.state_size": HUGE}, "ssm.state_size"),
    ("qwen3next", {"full_attention_interval": 0}, "full_attention_interval"),
    ("rwkv6", {"wkv.head_size": 0}, "wkv.head_size"),
    ("lfm2", {"shortconv.l_cache": 0}, "shortconv.l_cache"),
    ("kimi-linear", {"kda.head_dim": 0}, "kda.head_dim"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CASES, ids=lambda x: str(x)[:60])
def test_values_that_cannot_be_meant(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    path = tiny.write(name, tmp_path / "model.gguf", **changes)
    with pytest.raises(GGUFError, match=message) as caught:
        estimate(path)
    assert str(path) in str(caught.value)
    touch.bounded(str(caught.value))


def test_arrays_of_another_type(tmp_path: Path) -> None:
    metadata = tiny.metadata_of("llama")
    for value, element in (
        ([float("nan")] * 4, ValueType.FLOAT32),
        (["2"] * 4, ValueType.STRING),
        ([-1] * 4, ValueType.INT32),
        ([HUGE] * 4, ValueType.UINT64),
    ):
        path = tmp_path / "model.gguf"
        typed = TypedValue(value, ValueType.ARRAY, element)
        mmgguf.write(path, {**metadata, "llama.attention.head_count_kv": typed}, {})
        with pytest.raises(GGUFError, match="head_count_kv"):
            estimate(path)


def test_tensors_of_an_unknown_type_have_no_size() -> None:
    b = Build().start(tensors=1, pairs=1).text(b"general.architecture", b"llama")
    b.tensor(b"w", [32], 99, 0)
    with pytest.raises(GGUFError):
        estimate(mmgguf.read_header(io.BytesIO(bytes(b.number(b"llama.block_count", build.UINT32, 1)))))


_SUFFIXES = sorted(
    {
        key.partition(".")[2]
        for name in tiny.names()
        for key in tiny.metadata_of(name)
        if not key.startswith(("tokenizer", "general"))
    }
)
_integers = st.sampled_from([0, 1, 2, 3, 7, 64, 255, 512, 513, 65536, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, HUGE])


@st.composite
def headers(draw: Any) -> bytes:
    """A header of a known architecture with all that one may have, much of it wrong."""
    architecture = draw(st.sampled_from(sorted(ARCHITECTURES)))
    keys = draw(st.lists(st.sampled_from(_SUFFIXES), unique=True, max_size=12))
    keys = list(dict.fromkeys(["block_count", "embedding_length", "attention.head_count", *keys]))
    layers = draw(st.integers(1, 4))
    names = [b"token_embd.weight", b"blk.0.attn_q.weight", b"blk.3.ffn_up_exps.weight", b"blk.99999.x", b"blk", b"enc"]
    tensors = draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
    b = Build().start(tensors=len(tensors), pairs=1 + len(keys))
    b.text(b"general.architecture", architecture.encode())
    for key in keys:
        full = f"{architecture}.{key}".encode()
        kind = draw(st.integers(0, 9))
        if key == "block_count" and kind < 9:
            b.number(full, build.UINT32, layers)
        elif kind < 5:
            b.number(full, build.UINT32, draw(st.sampled_from([1, 2, 3, 8, 64])))
        elif kind == 5:
            b.number(full, build.UINT64, draw(_integers))
        elif kind == 6:
            b.number(full, build.INT64, draw(st.sampled_from([-1, -(1 << 63), 5])))
        elif kind == 7:
            b.number(full, build.FLOAT32, draw(st.sampled_from([float("nan"), float("inf"), 0.0, 2.0])))
        elif kind == 8:
            count = draw(st.sampled_from([layers, layers, layers + 1, 0]))
            b.array(full, build.UINT32, count)
            b.raw(
                struct.pack(
                    f"<{count}I",
                    *draw(st.lists(_integers.filter(lambda n: n < 1 << 32), min_size=count, max_size=count)),
                )
            )
        else:
            b.text(full, b"x")
    for number, name in enumerate(tensors):
        b.tensor(name, [32, 2], 0, 256 * number)
    return bytes(b.pad(32).raw(bytes(256 * len(tensors))))


@given(data=headers(), context=st.sampled_from([None, 1, 4096, (1 << 32) - 1]), unified=st.booleans())
@settings(derandomize=True, deadline=None, database=None, max_examples=400, suppress_health_check=list(HealthCheck))
def test_any_hyperparameters(data: bytes, context: int | None, unified: bool) -> None:
    header = mmgguf.read_header(io.BytesIO(data))
    try:
        found = estimate(header, context=context, sequences=2, unified=unified, flash_attention=context != 1)
    except GGUFError as error:
        touch.bounded(str(error))
        return
    touch.estimate(found)
