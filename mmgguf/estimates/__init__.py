"""The memory that a model needs to run in llama.cpp, from its header: to the byte where that can be known.

>>> e = mmgguf.estimate("model.gguf", context=8192)
>>> e.weights, e.kv_cache, sorted(e.exact)
(133248, 8388608, ['kv_cache', 'output', 'recurrent_state', 'weights'])

`architectures` has a row for each architecture that is known, `hyperparameters` reads the metadata, `cache` and
`weights` have the arithmetic, `compute` the one part that is estimated, and `placement` deals layers out to devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..errors import GGUFError
from ..file import Source as FileSource
from ..file import opened
from ..format.header import Header
from ..types import GGMLType
from .architectures import ARCHITECTURES, Architecture
from .cache import Options, cache_type
from .compute import widths_of
from .hyperparameters import MAX_LAYERS, Hyperparameters, Keys
from .placement import Device, Placement
from .result import Estimate, Layer, Model
from .weights import Weights

__all__ = ["ARCHITECTURES", "Architecture", "Device", "Estimate", "Layer", "Placement", "estimate"]

#: What is estimated for a model that does not say what it was trained on.
_DEFAULT_CONTEXT: Final = 4096
#: ``general.type`` of files that are loaded beside a model.
_BESIDE: Final = frozenset({"adapter", "mmproj", "projector", "imatrix"})
#: Architectures that are projectors, whatever their type.
_PROJECTORS: Final = frozenset({"clip"})
_TOKENS: Final = "tokenizer.ggml.tokens"

Source = FileSource | Header


def estimate(
    source: Source,
    *,
    context: int | None = None,
    sequences: int = 1,
    cache_type_k: str | GGMLType = "f16",
    cache_type_v: str | GGMLType = "f16",
    flash_attention: bool = True,
    swa_full: bool = False,
    ubatch: int = 512,
    unified: bool = True,
    add: Iterable[Source] = (),
) -> Estimate:
    """The memory that a model needs to run in llama.cpp.

    Only the header is read.  Weights, cache, states and output are what llama.cpp allocates, to the byte; its compute
    buffers follow no formula and are estimated; what an unknown architecture keeps is None.  The rules are those of
    llama.cpp at tag b10472.

    Parameters
    ----------
    source : GGUFFile, Header, or what `mmgguf.open` takes
        The model, or any shard of it; a path, a URL, a file object, bytes.
    context : int, optional
        Tokens of all sequences together (``--ctx-size``); what the model was trained on by default.
    sequences : int, default 1
        How many are kept at a time (``--parallel``).
    cache_type_k, cache_type_v : str or GGMLType, default "f16"
        What keys and values are stored as (``--cache-type-k``, ``--cache-type-v``).
    flash_attention : bool, default True
        Without it, the compute buffer holds the scores of all heads.
    swa_full : bool, default False
        Sliding layers keep all tokens (``--swa-full``).
    ubatch : int, default 512
        Tokens that are computed together (``--ubatch-size``).
    unified : bool, default True
        One cache for all sequences (``--kv-unified``); else one for each, with its part of the context.
    add : iterable of sources
        Files to load beside the model, projectors or adapters: their weights are added.

    Returns
    -------
    Estimate

    Raises
    ------
    GGUFError
        A file that is not valid GGUF; hyperparameters that are missing, of a wrong type, or cannot be meant.
    OSError
        The system cannot open it.
    ValueError, TypeError
        An argument out of its bounds, or a quantized cache that cannot be: blocks that do not divide the heads, or
        values without flash attention.

    Examples
    --------
    >>> e = mmgguf.estimate("model.gguf", context=8192, cache_type_k="q8_0")
    >>> e.kv_cache, e.place([24 << 30]).offloaded, e.largest_context([24 << 30])
    (6422528, 2, 128)
    """
    k, v = cache_type(cache_type_k), cache_type(cache_type_v)
    beside = sum(_beside(one) for one in add)
    if isinstance(source, Header):
        model = _model("", [source], beside)
    else:
        with opened(source) as f:
            model = _model(f.path, [shard.header for shard in f.shards], beside)
    if context is None:
        context = model.trained_context or _DEFAULT_CONTEXT
    return Estimate(model, Options(context, sequences, k, v, flash_attention, swa_full, ubatch, unified))


def _beside(source: Source) -> int:
    """Bytes of the tensors of a file that is loaded beside a model."""
    if isinstance(source, Header):
        return Weights.of([source], 0).span
    with opened(source) as f:
        return Weights.of([shard.header for shard in f.shards], 0).span


def _model(path: str, headers: list[Header], beside: int) -> Model:
    """What estimates need of a file that is open."""
    try:
        return _read(path, headers, beside)
    except GGUFError as error:
        if path:
            error.args = (f"{path}: {error}",)
        raise


def _read(path: str, headers: list[Header], beside: int) -> Model:
    metadata = headers[0].metadata
    architecture = metadata.get_str("general.architecture", "")
    row = ARCHITECTURES.get(architecture)
    keys = Keys(metadata, architecture)
    kind = metadata.get("general.type")
    weights_only = architecture in _PROJECTORS or (isinstance(kind, str) and kind in _BESIDE)
    known, widths = None, None
    if row is not None and not weights_only:
        known = Hyperparameters.read(keys, row)
        widths = widths_of(keys, row, known)
        layers = known.layers
    else:
        row = None
        layers = keys.integer("block_count", 0, most=MAX_LAYERS)
    weights = Weights.of(headers, layers, known.trunk if known is not None else None)
    tokens = metadata.array_info(_TOKENS) if _TOKENS in metadata else None
    return Model(
        path=path,
        architecture=architecture,
        row=row,
        hyperparameters=known,
        widths=widths,
        weights=weights,
        added=beside,
        vocabulary=weights.rows if tokens is None else tokens.count,
        weights_only=weights_only,
        trained_context=keys.integer("context_length", 0) or None,
    )
