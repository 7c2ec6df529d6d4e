"""Bytes of the key-value cache and of recurrent states, layer by layer, as llama.cpp allocates them.

The rules are those of ``llama_context`` (how many cells; ``src/llama-context.cpp``), ``llama_kv_cache``,
``llama_kv_cache_iswa`` and ``llama_memory_recurrent`` at tag b10472.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..types import LAYOUTS, GGMLType
from .hyperparameters import Hyperparameters

__all__ = ["Cells", "Options", "cache_type", "keys_and_values", "states"]

#: Cells come in multiples of this.
CELL_STEP: Final = 256
#: Sequences that llama.cpp takes (``LLAMA_MAX_SEQ`` in ``src/llama-cparams.h``).
MAX_SEQUENCES: Final = 256
_MAX: Final = (1 << 32) - 1
_FLOAT32: Final = 4


def cache_type(name: str | GGMLType) -> GGMLType:
    """The ggml type of that name, in either case: ``"q8_0"``."""
    if isinstance(name, GGMLType):
        return name
    try:
        return GGMLType[name.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"cache type {name!r:.60} is not a ggml type such as f16, q8_0 or q4_0") from None


@dataclass(frozen=True, slots=True)
class Options:
    """How a model will be run; the names of `mmgguf.estimate`'s arguments.

    Raises
    ------
    ValueError
        An argument out of its bounds, or a quantized cache of values without flash attention.
    """

    context: int
    sequences: int = 1
    cache_type_k: GGMLType = GGMLType.F16
    cache_type_v: GGMLType = GGMLType.F16
    flash_attention: bool = True
    swa_full: bool = False
    ubatch: int = 512
    unified: bool = True

    def __post_init__(self) -> None:
        for name, value, most in (
            ("context", self.context, _MAX),
            ("sequences", self.sequences, MAX_SEQUENCES),
            ("ubatch", self.ubatch, _MAX),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r:.60}")
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be between 1 and {most}, got {value}")
        if not self.flash_attention and LAYOUTS[self.cache_type_v].block_size > 1:
            # llama_init_from_model refuses it.
            raise ValueError(f"a cache of values in {self.cache_type_v.name.lower()} needs flash attention")


@dataclass(frozen=True, slots=True)
class Cells:
    """Places for tokens that a cache has.

    Attributes
    ----------
    streams : int
        Caches side by side: one for all sequences, or one for each.
    full, sliding : int
        Tokens that one of them holds in a layer.
    ubatch : int
        Tokens that are computed together.
    """

    streams: int
    full: int
    sliding: int
    ubatch: int

    @classmethod
    def of(cls, options: Options, window: int) -> Cells:
        context = _padded(options.context)
        streams = 1 if options.unified else options.sequences
        full = context if options.unified else _padded(context // streams)
        ubatch = min(options.ubatch, options.context)
        seen = window * (options.sequences if options.unified else 1) + ubatch
        sliding = full if options.swa_full or not window else _padded(min(full, seen))
        return cls(streams, full, sliding, ubatch)


def _padded(cells: int) -> int:
    return -(-cells // CELL_STEP) * CELL_STEP


def _row_size(type_: GGMLType, elements: int) -> int:
    layout = LAYOUTS[type_]
    if elements % layout.block_size:
        raise ValueError(
            f"a cache in {type_.name.lower()} has blocks of {layout.block_size} elements, "
            f"which {elements} elements of this model are not made of"
        )
    return elements // layout.block_size * layout.type_size


def keys_and_values(model: Hyperparameters, options: Options, cells: Cells) -> list[int]:
    """Bytes of each layer's cache.

    Raises
    ------
    ValueError
        A quantized type whose blocks do not divide this model's heads.
    """
    k, v = options.cache_type_k, options.cache_type_v
    if options.flash_attention:
        for size in model.head_sizes:
            for type_ in {k, v}:
                _row_size(type_, size)
    # Values that are stored transposed, as without flash attention, all get the widest layer's room.
    widest = max(model.value_sizes) if not options.flash_attention else None
    known: dict[tuple[str, int, int], int] = {}
    result = []
    for kind, keys, values in zip(model.kinds, model.key_sizes, model.value_sizes, strict=True):
        case = kind, keys, values
        if case not in known:
            known[case] = 0
            if kind not in ("none", "recurrent"):
                token = _row_size(k, keys)
                if not model.latent:
                    token += _row_size(v, values if widest is None else widest)
                known[case] = cells.streams * (cells.sliding if kind == "sliding" else cells.full) * token
        result.append(known[case])
    return result


def states(model: Hyperparameters, options: Options) -> list[int]:
    """Bytes of each layer's recurrent state, which no context changes."""
    one = model.state * _FLOAT32 * options.sequences
    return [one if kind in ("recurrent", "both") else 0 for kind in model.kinds]
