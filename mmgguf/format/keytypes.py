"""The type that a metadata key is stored as, for those that the specification or llama.cpp's writers name.

The specification (``ggml/docs/gguf.md``) names keys and types.  Where the writers of llama.cpp (``gguf_writer.py``,
``llama-quantize``, ``llama-gguf-split``, ``llama-imatrix``) store another type than it says, as UINT32 for
``[llm].block_count``, the table has what they store: that is what readers meet.  Scalars and arrays are told apart,
because some keys (``attention.head_count``) may be either: one number for the model, or one for each layer.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from ..types import ValueType

__all__ = ["array_type", "scalar_type"]

#: Keys of fixed names, as scalars.  ``#`` stands for a number, ``*`` for any text.
_SCALARS: Final = {
    ValueType.STRING: """
        general.architecture general.type general.name general.author general.version general.organization
        general.finetune general.basename general.description general.quantized_by general.size_label
        general.license general.license.name general.license.link general.url general.doi general.uuid
        general.repo_url general.source.url general.source.doi general.source.uuid general.source.repo_url
        general.source.huggingface.repository general.sampling.sequence
        general.base_model.#.name general.base_model.#.author general.base_model.#.version
        general.base_model.#.organization general.base_model.#.description general.base_model.#.url
        general.base_model.#.doi general.base_model.#.uuid general.base_model.#.repo_url
        general.dataset.#.name general.dataset.#.author general.dataset.#.version general.dataset.#.organization
        general.dataset.#.description general.dataset.#.url general.dataset.#.doi general.dataset.#.uuid
        general.dataset.#.repo_url
        tokenizer.ggml.model tokenizer.ggml.pre tokenizer.chat_template tokenizer.chat_template.*
        tokenizer.huggingface.json tokenizer.rwkv.world
        clip.projector_type clip.vision.projector_type clip.audio.projector_type
        adapter.type adapter.lora.task_name adapter.lora.prompt_prefix
        quantize.imatrix.file quantize.imatrix.dataset
    """,
    ValueType.UINT32: """
        general.quantization_version general.alignment general.file_type general.base_model.count
        general.dataset.count
        tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.unknown_token_id
        tokenizer.ggml.separator_token_id tokenizer.ggml.seperator_token_id tokenizer.ggml.padding_token_id
        tokenizer.ggml.cls_token_id tokenizer.ggml.mask_token_id tokenizer.ggml.eot_token_id
        tokenizer.ggml.eom_token_id tokenizer.ggml.prefix_token_id tokenizer.ggml.suffix_token_id
        tokenizer.ggml.middle_token_id tokenizer.ggml.fim_pre_token_id tokenizer.ggml.fim_suf_token_id
        tokenizer.ggml.fim_mid_token_id tokenizer.ggml.fim_pad_token_id tokenizer.ggml.fim_rep_token_id
        tokenizer.ggml.fim_sep_token_id tokenizer.ggml.token_type_count
        clip.vision.projection_dim clip.vision.patch_size clip.vision.embedding_length
        clip.vision.feed_forward_length clip.vision.block_count clip.vision.attention.head_count
        clip.vision.image_size clip.vision.image_max_pixels clip.vision.image_min_pixels
        clip.vision.preproc_max_tiles clip.vision.preproc_min_tiles clip.vision.preproc_image_size
        clip.vision.spatial_merge_size clip.vision.projector.scale_factor clip.vision.n_wa_pattern
        clip.vision.window_size clip.vision.sam.block_count clip.vision.sam.embedding_length
        clip.vision.sam.head_count
        clip.audio.projection_dim clip.audio.embedding_length clip.audio.feed_forward_length
        clip.audio.block_count clip.audio.attention.head_count clip.audio.num_mel_bins
        clip.audio.projector.stack_factor clip.audio.projector.window_size
        clip.audio.projector.downsample_rate clip.audio.projector.head_count clip.audio.chunk_size
        clip.audio.conv_kernel_size clip.audio.max_pos_emb
        imatrix.chunk_count imatrix.chunk_size
    """,
    ValueType.INT32: """
        general.sampling.top_k general.sampling.penalty_last_n general.sampling.mirostat
        quantize.imatrix.entries_count quantize.imatrix.chunks_count split.tensors.count
    """,
    ValueType.UINT16: "split.no split.count",
    ValueType.FLOAT32: """
        general.sampling.top_p general.sampling.min_p general.sampling.xtc_probability
        general.sampling.xtc_threshold general.sampling.temp general.sampling.penalty_repeat
        general.sampling.mirostat_tau general.sampling.mirostat_eta
        adapter.lora.alpha clip.vision.attention.layer_norm_epsilon clip.audio.attention.layer_norm_epsilon
        xielu.alpha_n xielu.alpha_p xielu.beta xielu.eps
    """,
    ValueType.BOOL: """
        tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token tokenizer.ggml.add_sep_token
        tokenizer.ggml.add_space_prefix tokenizer.ggml.remove_extra_whitespaces
        clip.has_vision_encoder clip.has_audio_encoder clip.has_llava_projector clip.use_gelu clip.use_silu
        diffusion.shift_logits
    """,
}

#: Keys of fixed names, as arrays: the type of the elements.
_ARRAYS: Final = {
    ValueType.STRING: """
        general.tags general.languages general.datasets tokenizer.ggml.tokens tokenizer.ggml.merges
        tokenizer.ggml.added_tokens tokenizer.chat_templates imatrix.datasets
    """,
    ValueType.FLOAT32: """
        tokenizer.ggml.scores clip.vision.image_mean clip.vision.image_std
        xielu.alpha_n xielu.alpha_p xielu.beta xielu.eps
    """,
    ValueType.INT32: "tokenizer.ggml.token_type clip.vision.wa_layer_indexes",
    ValueType.UINT32: "adapter.alora.invocation_tokens",
    ValueType.UINT8: "tokenizer.ggml.precompiled_charsmap",
    ValueType.BOOL: "clip.vision.is_deepstack_layers",
}

#: What follows the architecture's name and a dot, as scalars.
_MODEL_SCALARS: Final = {
    ValueType.STRING: "tensor_data_layout rope.scaling.type",
    ValueType.UINT32: """
        vocab_size context_length embedding_length embedding_length_out embedding_length_per_layer_input
        features_length block_count leading_dense_block_count decoder_block_count decoder_start_token_id
        feed_forward_length full_attention_interval interleave_moe_layer_step n_deepstack_layers
        expert_count expert_used_count expert_shared_count expert_group_count expert_group_used_count
        expert_gating_func experts_per_group expert_feed_forward_length expert_shared_feed_forward_length
        expert_chunk_feed_forward_length moe_every_n_layers moe_latent_size nextn_predict_layers
        pooling_type rescale_every_n_layers time_mix_extra_dim time_decay_extra_dim token_shift_count
        altup.active_idx altup.num_inputs wkv.head_size shortconv.l_cache kda.head_dim
        posnet.embedding_length posnet.block_count convnext.embedding_length convnext.block_count
        attention.head_count attention.head_count_kv attention.key_length attention.value_length
        attention.key_length_mla attention.value_length_mla attention.key_length_swa attention.value_length_swa
        attention.indexer.head_count attention.indexer.key_length attention.indexer.top_k
        attention.shared_kv_layers attention.group_norm_groups attention.q_lora_rank attention.kv_lora_rank
        attention.decay_lora_rank attention.iclr_lora_rank attention.value_residual_mix_lora_rank
        attention.gate_lora_rank attention.relative_buckets_count attention.sliding_window
        attention.sliding_window_pattern attention.temperature_length
        rope.dimension_count rope.dimension_count_swa rope.scaling.original_context_length
        ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank ssm.group_count
    """,
    ValueType.FLOAT32: """
        logit_scale attn_logit_softcapping router_logit_softcapping final_logit_softcapping
        expert_weights_scale expert_group_scale residual_scale embedding_scale
        attention.max_alibi_bias attention.clamp_kqv attention.layer_norm_epsilon
        attention.layer_norm_rms_epsilon attention.group_norm_epsilon attention.scale attention.output_scale
        attention.temperature_scale
        rope.freq_base rope.freq_base_swa rope.scale_linear rope.scaling.factor rope.scaling.alpha
        rope.scaling.attn_factor rope.scaling.yarn_log_multiplier rope.scaling.yarn_ext_factor
        rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    """,
    ValueType.BOOL: """
        use_parallel_residual expert_weights_norm swin_norm attention.causal rope.scaling.finetuned
        ssm.dt_b_c_rms
    """,
}

#: The same as arrays: one number for each layer, mostly.
_MODEL_ARRAYS: Final = {
    ValueType.INT32: "feed_forward_length attention.head_count attention.head_count_kv rope.dimension_sections",
    ValueType.FLOAT32: "activation_sparsity_scale swiglu_clamp_exp swiglu_clamp_shexp",
    ValueType.STRING: "classifier.output_labels",
    ValueType.BOOL: "attention.sliding_window_pattern",
}

#: First parts of keys that are no architecture.
_FIRST: Final = frozenset(
    "general tokenizer split clip adapter quantize imatrix xielu diffusion mmgguf".split()  # noqa: SIM905, as above
)
_DENSE: Final = re.compile(r"dense_[0-9]+_feat_(?:in|out)")


@cache
def _fixed(arrays: bool) -> tuple[dict[str, ValueType], list[tuple[re.Pattern[str], ValueType]]]:
    exact: dict[str, ValueType] = {}
    patterns: list[tuple[re.Pattern[str], ValueType]] = []
    for type_, keys in (_ARRAYS if arrays else _SCALARS).items():
        for key in keys.split():
            if "#" in key or "*" in key:
                pattern = re.escape(key).replace(r"\#", "[0-9]+").replace(r"\*", ".+")
                patterns.append((re.compile(pattern, re.DOTALL), type_))
            else:
                exact[key] = type_
    return exact, patterns


@cache
def _of_models(arrays: bool) -> dict[str, ValueType]:
    table = _MODEL_ARRAYS if arrays else _MODEL_SCALARS
    return {key: type_ for type_, keys in table.items() for key in keys.split()}


def _find(key: str, arrays: bool) -> ValueType | None:
    exact, patterns = _fixed(arrays)
    if (type_ := exact.get(key)) is not None:
        return type_
    first, _, rest = key.partition(".")
    if first not in _FIRST:
        if not arrays and _DENSE.fullmatch(rest):
            return ValueType.UINT32
        return _of_models(arrays).get(rest)
    return next((type_ for pattern, type_ in patterns if pattern.fullmatch(key)), None)


def scalar_type(key: str) -> ValueType | None:
    """The type of a key's value; None for a key that the table does not have, or has as an array only.

    >>> scalar_type("llama.block_count").name
    'UINT32'
    """
    return _find(key, False)


def array_type(key: str) -> ValueType | None:
    """The element type of a key whose value is an array; None for other keys.

    >>> array_type("llama.attention.head_count_kv").name
    'INT32'
    """
    return _find(key, True)
