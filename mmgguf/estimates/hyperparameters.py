"""Read the hyperparameters that decide how much memory a model needs; values that make no sense are errors.

The names of the keys and their defaults are those of llama.cpp's ``llama_model_base::load_hparams``
(``src/llama-model.cpp``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ..errors import MetadataTypeError, MetadataValueError, shown
from ..format.metadata import Metadata
from ..format.strings import StringArray
from .architectures import Architecture, Sliding

__all__ = ["MAX_LAYERS", "Hyperparameters", "Keys", "Kind"]

Kind = Literal["full", "sliding", "recurrent", "both", "none", "unknown"]

_NOTHING: Final[tuple[Kind]] = ("none",)
_STATE: Final[tuple[Kind]] = ("recurrent",)
#: More layers llama.cpp does not load (``LLAMA_MAX_LAYERS`` in ``src/llama-hparams.h``).
MAX_LAYERS: Final = 512
#: Hyperparameters are unsigned integers of 32 bits.
_MAX: Final = (1 << 32) - 1
#: llama.cpp's default where the metadata has no ``token_shift_count`` (``src/llama-hparams.h``).
_TOKEN_SHIFTS: Final = 2
#: Of that many layers one attends, where ``full_attention_interval`` is missing (``src/models/qwen3next.cpp``).
_ATTENTION_INTERVAL: Final = 4


class Keys:
    """The hyperparameters of a file: integers in their bounds.

    Parameters
    ----------
    metadata : Metadata
        Of the model.
    architecture : str
        The prefix of its keys.
    """

    __slots__ = ("_metadata", "_prefix")

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self._metadata = metadata
        self._prefix = f"{architecture}."

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._metadata

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = _MAX) -> int:
        """One number; without a default it has to be there."""
        full = self._prefix + key
        value = self._metadata.get_int(full) if default is None else self._metadata.get_int(full, default)
        if not least <= value <= most:
            raise MetadataValueError(f"{shown(full)}: {value} is not between {least} and {most}")
        return value

    def is_array(self, key: str) -> bool:
        """Whether there is an array under that key."""
        full = self._prefix + key
        return full in self._metadata and self._metadata.array_info(full) is not None

    def each(self, key: str, count: int, default: Sequence[int] | None = None, *, shorter: int = 0) -> list[int]:
        """One number or bool for each layer: an array of `count`, or one for all.

        Parameters
        ----------
        key : str
            Without the prefix.
        count : int
            Layers.
        default : sequence of int, optional
            Where there is no such key; without one, there has to be.
        shorter : int
            The array may lack so many at its end; these are 0.
        """
        full = self._prefix + key
        if default is not None and full not in self._metadata:
            return list(default)
        if not self.is_array(key):
            value = self._metadata[full]
            return [int(value) if isinstance(value, bool) else self.integer(key)] * count
        info = self._metadata.array_info(full)
        assert info is not None
        if info.count not in (count, count - shorter):
            raise MetadataValueError(f"{shown(full)}: has {info.count} elements, the model {count} layers")
        array = self._metadata[full]
        if isinstance(array, StringArray) or array.dtype.kind not in "iub":
            kind = "strings" if isinstance(array, StringArray) else str(array.dtype)
            raise MetadataTypeError(f"{shown(full)}: integers were asked for, got an array of {kind}")
        if array.dtype.kind != "b" and ((array < 0).any() or (array > _MAX).any()):
            raise MetadataValueError(f"{shown(full)}: elements are not between 0 and {_MAX}")
        values: list[int] = array.astype(np.int64).tolist()
        return values + [0] * (count - len(values))


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The hyperparameters that decide how much memory each layer needs.

    Attributes
    ----------
    layers : int
        Blocks, those for further tokens included.
    trunk : int
        Blocks without those.
    embedding : int
        Width of the residual stream.
    trained_context : int or None
        Tokens that the model was trained on.
    heads : int
        Query heads of the first layer; 0 without attention.
    kinds : tuple of {"full", "sliding", "recurrent", "both", "none"}
        What each layer keeps.
    key_sizes, value_sizes : tuple of int
        Elements per token in each layer, of all its key-value heads, whether or not the layer keeps them.
    head_sizes : frozenset of int
        Elements of one head's keys or values in the layers that keep them: what blocks of a quantized cache divide.
    window : int
        Tokens that a sliding layer sees.
    latent : bool
        Keys hold the values too.
    state : int
        Elements that a recurrent layer keeps per sequence: of the rolling state and of the other together.
    """

    layers: int
    trunk: int
    embedding: int
    trained_context: int | None
    heads: int
    kinds: tuple[Kind, ...]
    key_sizes: tuple[int, ...]
    value_sizes: tuple[int, ...]
    head_sizes: frozenset[int]
    window: int
    latent: bool
    state: int

    @classmethod
    def read(cls, keys: Keys, row: Architecture) -> Hyperparameters:
        """Those of a file of a known architecture.

        Raises
        ------
        GGUFError
            A key that is missing, of another type, or a value that cannot be meant.
        """
        layers = keys.integer("block_count", least=1, most=MAX_LAYERS)
        further = keys.integer("nextn_predict_layers", 0, most=layers - 1) if row.nextn else 0
        trunk = layers - further
        embedding = keys.integer("embedding_length", least=1)
        trained = keys.integer("context_length") if "context_length" in keys else None
        zeros = (0,) * layers
        if row.memory == "none":
            heads = keys.each("attention.head_count", layers, zeros)[0]
            return cls(
                layers, trunk, embedding, trained, heads, _NOTHING * layers, zeros, zeros, frozenset(), 0, row.latent, 0
            )
        state = _state(keys, row, embedding)
        if row.memory == "recurrent":
            return cls(
                layers, trunk, embedding, trained, 0, _STATE * layers, zeros, zeros, frozenset(), 0, False, state
            )

        heads_of = keys.each("attention.head_count", layers)
        heads = heads_of[0]
        if heads == 0:
            raise MetadataValueError("attention.head_count: the first layer has no heads")
        kv_heads = keys.each("attention.head_count_kv", layers, heads_of)
        key_length = keys.integer("attention.key_length", embedding // heads)
        value_length = keys.integer("attention.value_length", embedding // heads)
        window, slides = _sliding(keys, row.sliding, layers, trunk)
        recurs = _recurrent(keys, row, kv_heads, layers, trunk)
        slides = [slide and not recur for slide, recur in zip(slides, recurs, strict=True)]
        lengths = [(key_length, value_length)] * layers
        if any(slides):
            swa = (
                keys.integer("attention.key_length_swa", key_length),
                keys.integer("attention.value_length_swa", value_length),
            )
            lengths = [swa if slide else (key_length, value_length) for slide in slides]
        attends = _attends(keys, row, kv_heads, recurs, layers, trunk)
        kept = [size for lens, attend in zip(lengths, attends, strict=True) if attend for size in lens]
        mla = [keys.integer(f"attention.{part}_length_mla", 0) for part in ("key", "value")]
        return cls(
            layers,
            trunk,
            embedding,
            trained,
            heads,
            tuple(map(_kind, attends, slides, recurs)),
            tuple(heads * length for heads, (length, _) in zip(kv_heads, lengths, strict=True)),
            tuple(heads * length for heads, (_, length) in zip(kv_heads, lengths, strict=True)),
            frozenset(kept),
            window,
            row.latent and all(mla),
            state,
        )


def _kind(attends: bool, slides: bool, recurs: bool) -> Kind:
    if attends and recurs:
        return "both"
    if recurs:
        return "recurrent"
    return ("sliding" if slides else "full") if attends else "none"


def _sliding(keys: Keys, sliding: Sliding | None, layers: int, trunk: int) -> tuple[int, list[bool]]:
    """The window, and for each layer whether it slides."""
    key = "attention.sliding_window"
    none = [False] * layers
    if sliding is None or sliding.layers not in (None, layers):
        return 0, none
    window = keys.integer(key, sliding.window or 0)
    if window == 0:
        return 0, none
    window = sliding.fixed or window
    pattern = f"{key}_pattern"
    if sliding.pattern == "none":
        return window, [True] * layers
    if sliding.pattern == "array" or keys.is_array(pattern):
        return window, [bool(value) for value in keys.each(pattern, layers, shorter=layers - trunk)]
    period = keys.integer(pattern, sliding.period)
    if sliding.dense_first:
        return window, [period == 0 or i % period != 0 for i in range(layers)]
    return window, [period == 0 or i % period < period - 1 for i in range(layers)]


def _recurrent(keys: Keys, row: Architecture, kv_heads: list[int], layers: int, trunk: int) -> list[bool]:
    """For each layer whether it keeps a state."""
    if row.memory != "hybrid":
        return [False] * layers
    match row.recurrent:
        case "every":
            recurs = [True] * layers
        case "headless":
            recurs = [heads == 0 for heads in kv_heads]
        case "headless-ffn":
            ffn = keys.each("feed_forward_length", layers, (0,) * layers)
            recurs = [heads == 0 and size == 0 for heads, size in zip(kv_heads, ffn, strict=True)]
        case "interval":
            if "attention.recurrent_layers" in keys:
                recurs = [bool(value) for value in keys.each("attention.recurrent_layers", layers)]
            else:
                interval = keys.integer("full_attention_interval", _ATTENTION_INTERVAL, least=1)
                recurs = [(i + 1) % interval != 0 for i in range(layers)]
    return [recur and i < trunk for i, recur in enumerate(recurs)]


def _attends(
    keys: Keys, row: Architecture, kv_heads: list[int], recurs: list[bool], layers: int, trunk: int
) -> list[bool]:
    """For each layer whether it keeps keys and values of its own."""
    cached = layers
    if row.cached == "shared_kv_layers":
        cached = layers - keys.integer("attention.shared_kv_layers", 0, most=layers)
    elif row.cached is not None:
        cached = row.cached
    attends = [i < min(cached, trunk) and heads > 0 for i, heads in enumerate(kv_heads)]
    if row.recurrent == "every":
        return attends
    if row.recurrent == "headless-ffn":
        ffn = keys.each("feed_forward_length", layers, (0,) * layers)
        attends = [attend and size == 0 for attend, size in zip(attends, ffn, strict=True)]
    return [attend and not recur for attend, recur in zip(attends, recurs, strict=True)]


def _state(keys: Keys, row: Architecture, embedding: int) -> int:
    """Elements of float32 that a recurrent layer keeps per sequence (``n_embd_r`` and ``n_embd_s``)."""
    match row.state:
        case None:
            return 0
        case "rwkv":
            head = keys.integer("wkv.head_size", least=1)
            return keys.integer("token_shift_count", _TOKEN_SHIFTS) * embedding + embedding * head
        case "shortconv":
            return embedding * (keys.integer("shortconv.l_cache", least=1) - 1)
        case "kda":
            heads = keys.each("attention.head_count", keys.integer("block_count", least=1, most=MAX_LAYERS))[0]
            head = keys.integer("kda.head_dim", least=1)
            kernel = keys.integer("ssm.conv_kernel")
            return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
        case "ssm" | "ssm-ungrouped":
            inner, size = keys.integer("ssm.inner_size"), keys.integer("ssm.state_size")
            groups = keys.integer("ssm.group_count") if row.state == "ssm" else 0
            return max(keys.integer("ssm.conv_kernel") - 1, 0) * (inner + 2 * groups * size) + size * inner
