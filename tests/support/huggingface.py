"""Tiny random models of transformers, and GGUF files of them as llama.cpp's converter would write.

The converter is no package: what it does to names, rows of queries and keys, norms and experts is done here, with the
names and the writer of pip's gguf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

__all__ = ["MODELS", "TinyModel", "make", "write"]

VOCABULARY = 96


@dataclass(frozen=True, eq=False)
class TinyModel:
    """A configuration of transformers, and how its file differs from the others."""

    id: str
    config: Callable[[], Any]
    architecture: str
    permuted: bool = False
    norm_offset: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Whether transformers reads such files itself, and gives what the original gives.
    read_by_transformers: bool = True


def _common(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        **more,
    }


MODELS = [
    TinyModel("llama", lambda: transformers.LlamaConfig(**_common()), "llama", permuted=True),
    TinyModel(
        "llama-tied-biased",
        lambda: transformers.LlamaConfig(
            **_common(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=4)
        ),
        "llama",
        permuted=True,
        # It leaves the biases of queries and keys permuted, and knows nothing of any.
        read_by_transformers=False,
    ),
    TinyModel(
        "llama-3.1",
        lambda: transformers.LlamaConfig(
            **_common(
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            )
        ),
        "llama",
        permuted=True,
        read_by_transformers=False,  # it ignores the factors
    ),
    TinyModel(
        "mistral",
        lambda: transformers.MistralConfig(**_common(head_dim=32, sliding_window=None)),
        "llama",
        permuted=True,
        read_by_transformers=False,  # it looks for an architecture mistral, which no file has
    ),
    TinyModel("qwen2", lambda: transformers.Qwen2Config(**_common(use_sliding_window=False)), "qwen2"),
    TinyModel(
        "qwen2-yarn",
        lambda: transformers.Qwen2Config(
            **_common(
                use_sliding_window=False,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1000000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            )
        ),
        "qwen2",
        metadata={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
        read_by_transformers=False,
    ),
    TinyModel("qwen3", lambda: transformers.Qwen3Config(**_common(head_dim=128, tie_word_embeddings=True)), "qwen3"),
    TinyModel(
        "qwen3-narrow",
        lambda: transformers.Qwen3Config(**_common(head_dim=32)),
        "qwen3",
        read_by_transformers=False,  # it takes all heads to be 128 wide
    ),
    TinyModel(
        "gemma2",
        lambda: transformers.Gemma2Config(**_common(head_dim=256, sliding_window=8, tie_word_embeddings=True)),
        "gemma2",
        norm_offset=1.0,
    ),
    TinyModel(
        "gemma2-narrow",
        lambda: transformers.Gemma2Config(
            **_common(head_dim=32, query_pre_attn_scalar=32, sliding_window=8, attn_logit_softcapping=40.0)
        ),
        "gemma2",
        norm_offset=1.0,
        read_by_transformers=False,  # it leaves the scale of the scores and the caps at the defaults of the big models
    ),
    TinyModel(
        "gemma3",
        lambda: transformers.Gemma3TextConfig(
            **_common(head_dim=256, num_hidden_layers=7, sliding_window=8, tie_word_embeddings=True)
        ),
        "gemma3",
        norm_offset=1.0,
    ),
    TinyModel(
        "gemma3-scaled",
        lambda: transformers.Gemma3TextConfig(
            **_common(
                head_dim=32,
                num_hidden_layers=7,
                query_pre_attn_scalar=32,
                sliding_window=8,
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            )
        ),
        "gemma3",
        norm_offset=1.0,
        metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        read_by_transformers=False,  # likewise
    ),
    TinyModel("phi3", lambda: transformers.Phi3Config(**_common()), "phi3"),
    TinyModel(
        "phi3-long",
        lambda: transformers.Phi3Config(
            **_common(
                original_max_position_embeddings=32,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0 + 0.1 * i for i in range(8)],
                    "long_factor": [2.0 + 0.5 * i for i in range(8)],
                    "original_max_position_embeddings": 32,
                },
            )
        ),
        "phi3",
        metadata={"rope.scaling.original_context_length": 32},
        read_by_transformers=False,
    ),
    TinyModel(
        "mixtral",
        lambda: transformers.MixtralConfig(**_common(num_local_experts=4, num_experts_per_tok=2)),
        "llama",
        permuted=True,
        metadata={"expert_count": 4, "expert_used_count": 2},
        read_by_transformers=False,  # it reads every file of this architecture as one without experts
    ),
    TinyModel(
        "qwen3-moe",
        lambda: transformers.Qwen3MoeConfig(
            **_common(head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=768, norm_topk_prob=True)
        ),
        "qwen3moe",
        metadata={"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 768},
    ),
]


def make(model: TinyModel, seed: int = 0) -> Any:
    """The model with random weights, norms and biases too, in float32."""
    torch.manual_seed(seed)
    result = transformers.AutoModelForCausalLM.from_config(model.config(), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_(std=0.5)
    return result.eval()


def write(
    path: Path, tiny: TinyModel, model: Any, type_: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> Path:
    """The model as a GGUF file, its matrices as blocks of that type."""
    config = model.config
    writer = gguf.GGUFWriter(path, tiny.architecture)
    writer.add_name(tiny.id)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            writer.add_float32(f"{tiny.architecture}.{key}", getattr(config, key))
    if tiny.architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    for key, value in tiny.metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{tiny.architecture}.{key}", value)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    for name, array in _tensors(tiny, model):
        stored = array
        if array.ndim > 1 and "ffn_gate_inp" not in name:
            stored = gguf.quants.quantize(array, type_)
            writer.add_tensor(name, stored, raw_dtype=type_)
        else:
            writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(tiny: TinyModel, model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    config = model.config
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[tiny.architecture]
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        array = value.numpy()
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if key.endswith(".experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), np.split(array, 2, axis=1), strict=True):
                yield table.get_name(key.replace("gate_up_proj", part)) + ".weight", half.copy()
            continue
        name = table.get_name(key, try_suffixes=(".weight", ".bias"))
        name = name if "." in name and name.rsplit(".", 1)[1] in ("weight", "bias") else name + ".weight"
        if tiny.permuted and ".attn_q." in name:
            array = permute(array, config.num_attention_heads)
        elif tiny.permuted and ".attn_k." in name:
            array = permute(array, config.num_key_value_heads)
        if name.endswith("norm.weight"):
            array = array + np.float32(tiny.norm_offset)
        yield name, np.ascontiguousarray(array)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        base = 1.0 / (rope["rope_theta"] ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16))
        yield "rope_freqs.weight", (base / model.model.rotary_emb.inv_freq).numpy()
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            yield f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], np.float32)


def permute(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys as files of the llama architectures have them: the halves of each head interleaved."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
