"""Make transformers' configuration from a file's metadata, by one table per architecture.

The left side is a key of GGUF's metadata after the architecture's prefix, as its specification names them; the right
side a field of the configuration class.  Rules that stand in no metadata are those of llama.cpp, for which the file was
made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ..file import GGUFFile
from .hyperparameters import (
    block_count,
    count,
    factors,
    head_dim,
    key_value_heads,
    number,
    rotary,
    token,
    vocabulary,
    wrong,
)

__all__ = ["ARCHITECTURES", "PERMUTED", "Architecture", "architecture_of", "configuration"]

_Rule = Callable[[GGUFFile], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make a model of transformers from a file of one architecture.

    Attributes
    ----------
    model_type : str
        As transformers calls the architecture.
    permuted : bool
        Whether llama.cpp stores the rows of queries and keys with the two halves of each head interleaved.
    norm_offset : float
        What llama.cpp added to the weights of the norms.
    fields : dict
        From keys of the metadata to fields of the configuration, beside those that all have.
    rule : callable, optional
        What is no such pair.
    """

    model_type: str
    permuted: bool = False
    norm_offset: float = 0.0
    fields: dict[str, str] = field(default_factory=dict)
    rule: _Rule | None = None


#: What every architecture here has: counts.
_FIELDS: Final = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_TOKENS: Final = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def _llama(f: GGUFFile) -> dict[str, Any]:
    return {
        "head_dim": head_dim(f),
        "attention_bias": "blk.0.attn_q.bias" in f,
        "mlp_bias": "blk.0.ffn_up.bias" in f,
    }


def _gemma(layers_of_27b: int) -> _Rule:
    def rule(f: GGUFFile) -> dict[str, Any]:
        width = head_dim(f)
        # The scale of the scores is in no metadata.  llama.cpp knows the one model whose scale is not that of its heads
        # by its number of layers.
        if block_count(f) == layers_of_27b:
            scale = count(f, "embedding_length") // count(f, "attention.head_count")
        else:
            scale = width
        result: dict[str, Any] = {"head_dim": width, "query_pre_attn_scalar": scale}
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if key in f.config:
                result[key] = number(f, key)
        if "attention.sliding_window" in f.config:
            result["sliding_window"] = count(f, "attention.sliding_window")
        return result

    return rule


def _gemma3(f: GGUFFile) -> dict[str, Any]:
    result = _gemma(62)(f)
    rope = rotary(f, 1_000_000.0)
    result["rope_parameters"] = {
        "full_attention": rope,
        "sliding_attention": {"rope_type": "default", "rope_theta": number(f, "rope.freq_base_swa", 10_000.0)},
    }
    # Five layers that slide, one that does not, unless the file says otherwise.
    key, layers = "attention.sliding_window_pattern", block_count(f)
    if isinstance(f.config.get(key, 6), int):
        pattern = count(f, key, 6)
        slides = [(i + 1) % pattern != 0 for i in range(layers)]
    else:
        slides = [bool(slide) for slide in f.config.get_array(key)[:layers]]
        if len(slides) < layers:
            raise wrong(f, key, f"{len(slides)} values", f"one for each of {layers} blocks")
    result["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return result


def _phi3(f: GGUFFile) -> dict[str, Any]:
    config, width = f.config, head_dim(f)
    turned = count(f, "rope.dimension_count", width)
    rope = rotary(f, 10_000.0, turned)
    rope["partial_rotary_factor"] = turned / width
    original = count(f, "rope.scaling.original_context_length", count(f, "context_length"))
    if "rope_factors_long.weight" in f and "rope_factors_short.weight" in f:
        rope |= {
            "rope_type": "longrope",
            "long_factor": factors(f, "rope_factors_long.weight", turned // 2).tolist(),
            "short_factor": factors(f, "rope_factors_short.weight", turned // 2).tolist(),
            "original_max_position_embeddings": original,
        }
        if "rope.scaling.attn_factor" in config:
            rope["attention_factor"] = number(f, "rope.scaling.attn_factor")
    # llama.cpp switches phi3's sliding window off.
    return {"rope_parameters": rope, "original_max_position_embeddings": original, "sliding_window": None}


def _mixtral(f: GGUFFile) -> dict[str, Any]:
    return {"head_dim": head_dim(f), "sliding_window": None}


def _qwen2(f: GGUFFile) -> dict[str, Any]:
    return {"use_sliding_window": False}


def _qwen3(f: GGUFFile) -> dict[str, Any]:
    return {"head_dim": head_dim(f), "attention_bias": "blk.0.attn_q.bias" in f, "use_sliding_window": False}


def _qwen3moe(f: GGUFFile) -> dict[str, Any]:
    # llama.cpp normalizes the weights of the chosen experts for this architecture.
    return {**_qwen3(f), "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


ARCHITECTURES: Final[dict[str, Architecture]] = {
    # Mistral's models are stored as llama's.
    "llama": Architecture("llama", permuted=True, rule=_llama),
    "qwen2": Architecture("qwen2", rule=_qwen2),
    "qwen3": Architecture("qwen3", rule=_qwen3),
    "qwen3moe": Architecture(
        "qwen3_moe",
        fields={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        rule=_qwen3moe,
    ),
    "gemma2": Architecture("gemma2", norm_offset=1.0, rule=_gemma(46)),
    "gemma3": Architecture("gemma3_text", norm_offset=1.0, rule=_gemma3),
    "phi3": Architecture("phi3", rule=_phi3),
}
#: Architectures for which llama.cpp's converter orders the rows of the attention's q and k anew (the classes in its
#: folder conversion/ that call ``permute`` or have ``undo_permute = True``).
PERMUTED: Final = frozenset(
    ("arcee", "arctic", "baichuan", "bailingmoe", "deci", "deepseek", "eagle3", "granite", "granitehybrid")
) | {"granitemoe", "internlm2", "llada", "llama", "minicpm", "mistral3", "nanbeige", "olmo", "smollm3", "xverse"}

#: The architecture ``llama`` of files with experts.
_MIXTRAL: Final = Architecture(
    "mixtral",
    permuted=True,
    fields={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    rule=_mixtral,
)


def architecture_of(f: GGUFFile) -> Architecture:
    """The entry of a file's architecture; raises NotImplementedError where there is none."""
    found = ARCHITECTURES.get(f.architecture)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise NotImplementedError(
            f"{f.path}: the architecture {f.architecture!r:.60} cannot be turned into a model of transformers; "
            f"those that can are {known}"
        )
    if f.architecture == "llama" and f.config.get_int("expert_count", 0) != 0:
        return _MIXTRAL
    return found


def configuration(f: GGUFFile) -> tuple[str, dict[str, Any]]:
    """The model type of transformers, and the fields of its configuration.

    Raises
    ------
    GGUFError
        Metadata that is missing, of another type, or makes no sense.
    NotImplementedError
        What transformers cannot have.
    """
    architecture = architecture_of(f)
    block_count(f)
    result: dict[str, Any] = {name: count(f, key) for key, name in (_FIELDS | architecture.fields).items()}
    result["rms_norm_eps"] = number(f, "attention.layer_norm_rms_epsilon")
    result["num_key_value_heads"] = key_value_heads(f)
    if "expert_used_count" in architecture.fields:
        experts, used = count(f, "expert_count"), count(f, "expert_used_count")
        if used > experts:
            raise wrong(f, "expert_used_count", used, f"at most {experts}, the number of experts")
    result["vocab_size"] = vocabulary(f)
    result["tie_word_embeddings"] = "output.weight" not in f
    for key, name in _TOKENS.items():
        # None too: the classes have defaults of their own, which belong to other vocabularies.
        result[name] = token(f, key)
    if architecture.rule is not None:
        result |= architecture.rule(f)
    if "rope_parameters" not in result:
        result["rope_parameters"] = rotary(f, 10_000.0)
    return architecture.model_type, result
