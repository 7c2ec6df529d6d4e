"""An estimate of llama.cpp's compute buffer, which no formula gives: it depends on how a graph's tensors share memory.

llama.cpp builds the graph of a full batch and lets ``ggml-alloc`` lay its tensors into one buffer, each in the place of
those that are no longer needed.  What remains is the largest sum of tensors that live at once.  Three moments compete,
and for each a sum was read off measured buffers: in the feed-forward part gate, up and activation beside five times the
residual stream; in a mixture of experts also the chosen experts' results, twice; in attention without flash attention
the scores of all heads.  The mask, tokens × cells, is there all the time.  ``docs/guides/estimate.md`` has the errors.
"""

from __future__ import annotations

from typing import Final

from .architectures import Architecture
from .cache import Cells, Options
from .hyperparameters import Hyperparameters, Keys

__all__ = ["compute_buffer", "widths_of"]

#: Bytes of the numbers that are computed with, and of a mask's with flash attention.
_FLOAT32: Final = 4
_FLOAT16: Final = 2
#: Positions, ids and places of a token, in numbers.
_INDICES: Final = 10
#: How many tensors of the feed-forward part's width live at once: gate, up and activation, but where there is no gate.
_FFN: Final = {"bert.cpp": 1, "nemotron-h.cpp": 2, "nemotron-h-moe.cpp": 2}
#: Gemma 3n's width of a layer's own embedding (``n_embd_altup`` in ``src/llama-hparams.h``).
_PER_LAYER: Final = 256


def widths_of(keys: Keys, row: Architecture, model: Hyperparameters) -> tuple[int, ...] | None:
    """Numbers per token that live at once, in the parts of a layer that may be the largest.

    None where the metadata does not say how wide these parts are.
    """
    embedding = model.embedding
    ffn = max(keys.each("feed_forward_length", model.layers, [0] * model.layers))
    used = keys.integer("expert_used_count", 0)
    chosen = used * keys.integer("expert_feed_forward_length", ffn)
    leading = keys.integer("leading_dense_block_count", 0)
    inner = keys.integer("ssm.inner_size", 0)
    each = keys.integer("embedding_length_per_layer_input", _PER_LAYER)
    if not (ffn or chosen or inner or row.state):
        return None
    widths = []
    if not used or leading:
        widths.append(_FFN.get(row.source, 3) * ffn + 5 * embedding)
    if used:
        widths += [3 * chosen + 5 * embedding, chosen + 2 * used * embedding + 3 * embedding]
    if row.source == "gemma3n.cpp":  # the per-layer embeddings of all layers are computed at once
        widths.append(4 * each * model.layers + 9 * embedding)
    if inner:
        widths.append(7 * inner + embedding)
    if row.state == "rwkv":
        widths.append((20 if "rwkv7" in row.source else 16) * embedding)
    return tuple(widths)


def compute_buffer(
    widths: tuple[int, ...] | None, model: Hyperparameters, options: Options, cells: Cells, vocabulary: int
) -> int | None:
    """Bytes that the computation of one batch needs, estimated from `widths_of`; None without them."""
    if not widths:
        return None
    kinds = set(model.kinds)
    # Encoders see their batch only.
    seen = [cells.ubatch] if kinds == {"none"} else []
    if kinds & {"full", "both"}:
        seen.append(cells.full)
    if "sliding" in kinds:
        seen.append(cells.sliding)
    mask = sum(seen) * (_FLOAT16 if options.flash_attention else _FLOAT32)
    most = max(widths)
    if seen and not options.flash_attention:
        kv = max(map(sum, zip(model.key_sizes, model.value_sizes, strict=True)))
        query = model.heads * max(model.head_sizes, default=model.embedding // max(model.heads, 1))
        most = max(most + kv, 2 * model.embedding + 4 * query + kv + model.heads * max(seen))
    batch = cells.ubatch * (_FLOAT32 * (most + _INDICES) + mask)
    return max(batch, _FLOAT32 * options.sequences * (vocabulary + 2 * model.embedding))
