"""The configuration of a model from metadata: what makes no sense is refused before anything is built of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import ValueType
from mmgguf.errors import FormatError, MetadataTypeError, MetadataValueError, NameNotFoundError

torch = pytest.importorskip("torch")

from mmgguf.torch import load_model  # noqa: E402
from mmgguf.torch.configs import configuration  # noqa: E402

REMOVED: Any = object()
COMMON = {
    "context_length": np.uint32(128),
    "block_count": np.uint32(2),
    "embedding_length": np.uint32(64),
    "feed_forward_length": np.uint32(96),
    "attention.head_count": np.uint32(4),
    "attention.head_count_kv": np.uint32(2),
    "attention.layer_norm_rms_epsilon": np.float32(1e-5),
}


def ints(*values: int) -> mmgguf.TypedValue:
    return mmgguf.TypedValue(list(values), ValueType.ARRAY, ValueType.UINT32)


def bools(*values: bool) -> mmgguf.TypedValue:
    return mmgguf.TypedValue(list(values), ValueType.ARRAY, ValueType.BOOL)


def typed(value: Any) -> Any:
    """The value as it is, also where a key is known to have another type."""
    kinds = {str: ValueType.STRING, float: ValueType.FLOAT64, np.uint32: ValueType.UINT32, np.int32: ValueType.INT32}
    return mmgguf.TypedValue(value, kinds[type(value)]) if type(value) in kinds else value


def made(
    folder: Path, changes: dict[str, Any], architecture: str = "llama", tensors: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The configuration that metadata with those changes gives; keys without a dot before them are absolute."""
    metadata: dict[str, Any] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in COMMON.items()}
    for key, value in changes.items():
        metadata[key if key.startswith("tokenizer.") else f"{architecture}.{key}"] = value
    metadata = {key: typed(value) for key, value in metadata.items() if value is not REMOVED}
    data = {
        "token_embd.weight": np.zeros((96, 64), np.float32),
        "blk.0.attn_norm.weight": np.zeros(64, np.float32),
        "blk.1.attn_norm.weight": np.zeros(64, np.float32),
        **(tensors or {}),
    }
    mmgguf.write(folder / "x.gguf", metadata, {name: array for name, array in data.items() if array is not REMOVED})
    with mmgguf.open(folder / "x.gguf") as f:
        return configuration(f)


PHI3_LONG = {f"rope_factors_{which}.weight": np.ones(8, np.float32) for which in ("long", "short")}
#: Changes, the architecture, tensors; and the fields that come of it.
GOOD: dict[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, "llama", {}, {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96}),
    "one value for each layer, all alike": (
        {"attention.head_count_kv": ints(2, 2)},
        "llama",
        {},
        {"num_key_value_heads": 2},
    ),
    "no heads of their own": ({"attention.head_count_kv": REMOVED}, "llama", {}, {"num_key_value_heads": 4}),
    "a token": ({"tokenizer.ggml.eos_token_id": np.uint32(95)}, "llama", {}, {"eos_token_id": 95}),
    "a factor without a type": (
        {"rope.scaling.factor": 4.0},
        "llama",
        {},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "the factor's old name": (
        {"rope.scale_linear": 2.0},
        "llama",
        {},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "no scaling in spite of a factor": (
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        "llama",
        {},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "yarn": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": np.uint32(32),
            "rope.scaling.yarn_beta_fast": 30.0,
        },
        "qwen2",
        {},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 30.0,
            }
        },
    ),
    "part of a head is turned": (
        {"rope.dimension_count": np.uint32(8)},
        "phi3",
        {},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    ),
    "a pattern of windows": (
        {"attention.sliding_window_pattern": bools(True, False)},
        "gemma3",
        {},
        {"layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.mark.parametrize(("changes", "architecture", "tensors", "fields"), GOOD.values(), ids=list(GOOD))
def test_fields(
    changes: dict[str, Any], architecture: str, tensors: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    _, actual = made(tmp_path, changes, architecture, tensors)
    assert {key: actual[key] for key in fields} == fields


#: Changes, the architecture, tensors; and the error.
BAD: dict[str, tuple[dict[str, Any], str, dict[str, Any], type[Exception], str]] = {
    "four billion blocks": ({"block_count": np.uint32(2**32 - 1)}, "llama", {}, MetadataValueError, "from 1 to"),
    "more blocks than llama.cpp has": ({"block_count": np.uint32(513)}, "llama", {}, MetadataValueError, "at most 512"),
    "blocks without tensors": ({"block_count": np.uint32(400)}, "llama", {}, FormatError, "no tensor of the last one"),
    "no blocks": ({"block_count": np.uint32(0)}, "llama", {}, MetadataValueError, "block_count is 0"),
    "a string of blocks": ({"block_count": "two\x1b"}, "llama", {}, MetadataTypeError, r"an integer, got 'two\\x1b'"),
    "a fraction of blocks": ({"block_count": 2.0}, "llama", {}, MetadataTypeError, "an integer, got 2.0"),
    "a width that is missing": ({"embedding_length": REMOVED}, "llama", {}, NameNotFoundError, "embedding_length"),
    "negative width": ({"embedding_length": np.int32(-64)}, "llama", {}, MetadataValueError, "is -64"),
    "no heads": ({"attention.head_count": np.uint32(0)}, "qwen2", {}, MetadataValueError, "head_count is 0"),
    "heads without values": ({"attention.head_count": ints()}, "llama", {}, MetadataTypeError, "must be an integer"),
    "heads that differ": ({"attention.head_count": ints(4, 2)}, "llama", {}, NotImplementedError, "layer to layer"),
    "heads that do not divide": (
        {"attention.head_count": np.uint32(3), "attention.head_count_kv": REMOVED},
        "llama",
        {},
        MetadataValueError,
        "a multiple of the 3 heads",
    ),
    "heads of keys that do not divide": (
        {"attention.head_count_kv": np.uint32(3)},
        "llama",
        {},
        MetadataValueError,
        "head_count_kv is 3, it must be a divisor of 4",
    ),
    "no epsilon": ({"attention.layer_norm_rms_epsilon": math.nan}, "llama", {}, MetadataValueError, "is nan"),
    "a base of zero": ({"rope.freq_base": 0.0}, "llama", {}, MetadataValueError, "freq_base is 0.0"),
    "an infinite base": ({"rope.freq_base": math.inf}, "gemma3", {}, MetadataValueError, "freq_base is inf"),
    "values of another width": (
        {"attention.key_length": np.uint32(16), "attention.value_length": np.uint32(8)},
        "llama",
        {},
        NotImplementedError,
        "keys of 16 and values of 8",
    ),
    "part of a head is turned": ({"rope.dimension_count": np.uint32(8)}, "llama", {}, NotImplementedError, "8 of 16"),
    "more than a head is turned": (
        {"rope.dimension_count": np.uint32(18)},
        "phi3",
        {},
        MetadataValueError,
        "even and at most 16",
    ),
    "unknown scaling": ({"rope.scaling.type": "dynamic"}, "llama", {}, NotImplementedError, "scaled by 'dynamic'"),
    "a factor that is no number": ({"rope.scaling.factor": "4"}, "llama", {}, MetadataTypeError, "a float was asked"),
    "a negative factor": ({"rope.scaling.factor": -1.0}, "llama", {}, MetadataValueError, "factor is -1.0"),
    "unknown parameters of YaRN": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1},
        "qwen2",
        {},
        NotImplementedError,
        "yarn_log_multiplier",
    ),
    "more experts used than there are": (
        {"expert_count": np.uint32(4), "expert_used_count": np.uint32(5)},
        "llama",
        {},
        MetadataValueError,
        "expert_used_count is 5",
    ),
    "a string of experts": ({"expert_count": "4"}, "llama", {}, MetadataTypeError, "an integer was asked"),
    "a cap of zero": ({"attn_logit_softcapping": 0.0}, "gemma2", {}, MetadataValueError, "softcapping is 0.0"),
    "a window of strings": ({"attention.sliding_window": "8"}, "gemma2", {}, MetadataTypeError, "an integer, got 8"),
    "a pattern of zero": (
        {"attention.sliding_window_pattern": np.uint32(0)},
        "gemma3",
        {},
        MetadataValueError,
        "pattern is 0",
    ),
    "a pattern that is too short": (
        {"attention.sliding_window_pattern": bools(True)},
        "gemma3",
        {},
        MetadataValueError,
        "one for each of 2 blocks",
    ),
    "factors of another number": (
        {},
        "phi3",
        {**PHI3_LONG, "rope_factors_long.weight": np.ones(7, np.float32)},
        FormatError,
        r"shape \(7,\) for 8 frequencies",
    ),
    "factors of zero": (
        {},
        "phi3",
        {**PHI3_LONG, "rope_factors_short.weight": np.zeros(8, np.float32)},
        FormatError,
        "not finite and above zero",
    ),
    "no embeddings": ({}, "llama", {"token_embd.weight": REMOVED}, NameNotFoundError, "token_embd"),
    "flat embeddings": ({}, "llama", {"token_embd.weight": np.zeros(64, np.float32)}, FormatError, r"shape \(64,\)"),
    "another architecture": ({}, "mamba", {}, NotImplementedError, "architecture 'mamba' cannot be turned"),
}


@pytest.mark.parametrize(("changes", "architecture", "tensors", "error", "message"), BAD.values(), ids=list(BAD))
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any],
    architecture: str,
    tensors: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message) as caught:
        made(tmp_path, changes, architecture, tensors)
    assert isinstance(caught.value, mmgguf.GGUFError | NotImplementedError)
    assert str(caught.value).isprintable()


def test_a_token_that_is_not_in_the_vocabulary_counts_for_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="padding_token_id is 96, which is not in the vocabulary of 96"):
        _, fields = made(tmp_path, {"tokenizer.ggml.padding_token_id": np.uint32(96)})
    assert fields["pad_token_id"] is None


def test_transformers_names_are_made_for_blocks_that_are_there(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    metadata = {"general.architecture": "llama", "llama.block_count": np.uint32(2**31)}
    mmgguf.write(tmp_path / "x.gguf", metadata, {"blk.0.attn_norm.weight": np.zeros(4, np.float32)})
    with pytest.raises(MetadataValueError, match="block_count"):
        load_model(torch.nn.Linear(2, 2), tmp_path / "x.gguf", rename="hf")
