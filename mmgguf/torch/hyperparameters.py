"""Hyperparameters from a file's metadata, checked: counts above zero, finite numbers, tokens of the vocabulary.

What does not fit would make transformers hang, run out of memory, or compute nonsense.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, MetadataTypeError, MetadataValueError, shown
from ..file import GGUFFile

__all__ = [
    "block_count",
    "count",
    "factors",
    "head_dim",
    "key_value_heads",
    "number",
    "rotary",
    "token",
    "vocabulary",
    "wrong",
]

#: As in llama.cpp (LLAMA_MAX_LAYERS).
_MOST_BLOCKS: Final = 512
#: Sizes of tensors are products of a few of these, and must fit into 64 bits.
_MOST: Final = (1 << 31) - 1
_REQUIRED: Final[Any] = object()
#: Kinds of YaRN's parameters that transformers has under other names.
_BETAS: Final = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}


def wrong(f: GGUFFile, key: str, got: object, wanted: str) -> MetadataValueError:
    """The error of a value that makes no sense."""
    return MetadataValueError(f"{f.path}: {f.architecture}.{key} is {got}, it must be {wanted}")


def count(f: GGUFFile, key: str, default: Any = _REQUIRED) -> int:
    """An integer from 1 to 2^31 - 1, the same for all layers."""
    value = f.config[key] if default is _REQUIRED else f.config.get(key, default)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value):
        if (value != value[0]).any():
            raise NotImplementedError(
                f"{f.path}: {f.architecture}.{key} differs from layer to layer, which transformers cannot have"
            )
        value = int(value[0])
    if not isinstance(value, int) or isinstance(value, bool):
        raise MetadataTypeError(f"{f.path}: {f.architecture}.{key} must be an integer, got {shown(value)}")
    if not 1 <= value <= _MOST:
        raise wrong(f, key, value, f"from 1 to {_MOST}")
    return value


def number(f: GGUFFile, key: str, default: Any = _REQUIRED) -> float:
    """A finite number above zero."""
    value: float = f.config.get_float(key) if default is _REQUIRED else f.config.get_float(key, default)
    if not (math.isfinite(value) and value > 0):
        raise wrong(f, key, value, "finite and above zero")
    return value


def block_count(f: GGUFFile) -> int:
    """How many blocks the model has: not more than the file has tensors for."""
    blocks = count(f, "block_count")
    if blocks > _MOST_BLOCKS:
        raise wrong(f, "block_count", blocks, f"at most {_MOST_BLOCKS}")
    if not any(name.startswith(f"blk.{blocks - 1}.") for name in f):
        raise FormatError(f"{f.path}: {f.architecture}.block_count is {blocks}, but there is no tensor of the last one")
    return blocks


def head_dim(f: GGUFFile) -> int:
    """The width of a head, of queries, keys and values alike."""
    width, heads = count(f, "embedding_length"), count(f, "attention.head_count")
    if "attention.key_length" not in f.config and width % heads:
        raise wrong(f, "embedding_length", width, f"a multiple of the {heads} heads")
    result = count(f, "attention.key_length", max(1, width // heads))
    values = count(f, "attention.value_length", result)
    if values != result:
        raise NotImplementedError(
            f"{f.path}: keys of {result} and values of {values} elements, which transformers cannot have"
        )
    return result


def key_value_heads(f: GGUFFile) -> int:
    """How many heads keys and values have: a divisor of the number of heads."""
    heads = count(f, "attention.head_count")
    result = count(f, "attention.head_count_kv", heads)
    if heads % result:
        raise wrong(f, "attention.head_count_kv", result, f"a divisor of {heads}, the number of heads")
    return result


def vocabulary(f: GGUFFile) -> int:
    """How many tokens there are embeddings for."""
    shape = f["token_embd.weight"].shape
    if len(shape) != 2 or not shape[0]:
        raise FormatError(f"{f.path}: token_embd.weight has the shape {shape}, it must be (tokens, width)")
    return shape[0]


def token(f: GGUFFile, key: str) -> int | None:
    """The id of a special token, or None; one that is not in the vocabulary counts for nothing, as in llama.cpp."""
    found = f.metadata.get_int(key, None)
    if found is None or 0 <= found < vocabulary(f):
        return found
    warnings.warn(f"{f.path}: {key} is {found}, which is not in the vocabulary of {vocabulary(f)}", stacklevel=2)
    return None


def factors(f: GGUFFile, name: str, length: int) -> npt.NDArray[np.float32]:
    """A tensor of factors of rotary embeddings: so many finite numbers above zero, (length,)."""
    found = np.array(f[name], dtype=np.float32)
    if found.shape != (length,):
        raise FormatError(f"{f.path}: {name} has the shape {found.shape} for {length} frequencies")
    if not (np.isfinite(found) & (found > 0)).all():
        raise FormatError(f"{f.path}: {name} has factors that are not finite and above zero")
    return found


def rotary(f: GGUFFile, base: float, turned: int | None = None) -> dict[str, Any]:
    """The rotary embedding's parameters; factors that a file has as a tensor are applied to the model itself.

    `turned` is how many elements of a head it turns, if that may be less than all.
    """
    config, width = f.config, head_dim(f)
    dimensions = count(f, "rope.dimension_count", width)
    if dimensions > width or dimensions % 2:
        raise wrong(f, "rope.dimension_count", dimensions, f"even and at most {width}, the width of a head")
    if turned is None and dimensions != width:
        raise NotImplementedError(
            f"{f.path}: rotary embeddings of {dimensions} of {width} elements, which transformers cannot have here"
        )
    result: dict[str, Any] = {"rope_type": "default", "rope_theta": number(f, "rope.freq_base", base)}
    # As llama.cpp reads them: a factor without a type means linear scaling.
    scaling = config.get_str("rope.scaling.type", "linear")
    factor = config.get_float("rope.scaling.factor", config.get_float("rope.scale_linear", 0.0)) or 1.0
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise NotImplementedError(f"{f.path}: rotary embeddings scaled by {shown(scaling, quoted=True)}")
    if scaling in ("linear", "yarn") and factor != 1.0:
        if not (math.isfinite(factor) and factor > 0):
            raise wrong(f, "rope.scaling.factor", factor, "finite and above zero")
        result |= {"rope_type": scaling, "factor": factor}
        if scaling == "yarn":
            result |= _yarn(f)
    return result


def _yarn(f: GGUFFile) -> dict[str, Any]:
    key = "rope.scaling.original_context_length"
    result: dict[str, Any] = {"original_max_position_embeddings": count(f, key, count(f, "context_length"))}
    if "rope.scaling.attn_factor" in f.config:
        result["attention_factor"] = number(f, "rope.scaling.attn_factor")
    for key, name in _BETAS.items():
        if key in f.config:
            result[name] = number(f, key)
    unknown = [key for key in f.config if key.startswith("rope.scaling.yarn_") and key not in _BETAS]
    if unknown:
        raise NotImplementedError(f"{f.path}: {f.architecture}.{shown(unknown[0])}, which transformers cannot have")
    return result
