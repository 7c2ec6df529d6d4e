"""Convert GGUF to safetensors and back; memory does not grow with the model.

>>> from mmgguf.safetensors import save_file
>>> save_file("model.gguf", "model.safetensors", dtype="bfloat16")

The package safetensors writes a file only from tensors that are all in memory, so the writer is our own; the format
is small: a u64 with the length of the header, the header as JSON (``{"name": {"dtype", "shape", "data_offsets"}}``,
and ``"__metadata__"`` with strings by string), then the data without gaps, all little-endian.  Reading is left to
that package.

Metadata: a STRING stays the text that it is.  All other values are JSON texts, and one more key, `TYPES_KEY`, holds
by key what they were, as a JSON text too: ``{"llama.block_count": "UINT32", "tokenizer.ggml.tokens": "STRING[]"}``.
So the way back finds every value as it was.  ``"format": "pt"`` is added, which transformers asks for.

Blocks that stay blocks are U8, of shape ``(*shape[:-1], bytes per row)``; `BLOCKS_KEY` holds by name what they are, as
a JSON text: ``{"blk.0.attn_q.weight": "Q4_K"}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .conversion import chunks, result_dtype
from .errors import FormatError, GGUFError, MissingExtraError, UnknownTypeError, shown
from .file import GGUFFile, Source, opened
from .format.metadata import Metadata
from .format.strings import is_utf8
from .format.target import replacing, require_other_file
from .format.values import TypedValue
from .format.writer import TypedTensor, write
from .selection import Names, Progress, match, select, walk
from .storage.descriptors import open_descriptor
from .types import LAYOUTS, GGMLType, ValueType

__all__ = ["BLOCKS_KEY", "TYPES_KEY", "save_file", "to_gguf"]

#: The metadata key that tells the order of the others (safetensors keeps none), and the types of their values.
TYPES_KEY: Final = "mmgguf.types"
#: The metadata key that tells the ggml types of tensors that are stored blocks.
BLOCKS_KEY: Final = "mmgguf.blocks"
#: The type there of a string that is written as it is; all other values are JSON.
_TEXT: Final = "TEXT"
#: Safetensors' own limit for headers, in bytes.
MAX_HEADER_SIZE: Final = 100_000_000

_GGML_TYPES: Final = {
    "F64": GGMLType.F64,
    "F32": GGMLType.F32,
    "F16": GGMLType.F16,
    "BF16": GGMLType.BF16,
    "I64": GGMLType.I64,
    "I32": GGMLType.I32,
    "I16": GGMLType.I16,
    "I8": GGMLType.I8,
}
_NAMES: Final = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int16): "I16",
    np.dtype(np.int8): "I8",
}
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
#: Keys that are not true of the new file: where tensors lie, and in how many files.
_NOT_CARRIED: Final = ("general.alignment", "split.")
#: Tensors of more than one dimension of which llama.cpp, too, computes with float32 alone: all kinds of norms, and what
#: its converter (conversion/base.py) leaves in float32.
_FLOAT32_NAMES: Final = re.compile(
    r"norm[^.]*\.weight$|\.(ffn_gate_inp|ffn_gate_inp_shexp|ssm_conv1d(_[qkv])?|shortconv\.conv|time_mix_first"
    r"|time_mix_(decay_)?w[12]|time_mix_lerp_fused|altup_(correct|predict)_coef)\.weight$|^(position_embd|token_types)\.weight$"
)
#: Keys that are not true any more where numbers were stored otherwise.
_OF_STORAGE: Final = ("general.file_type", "general.quantization_version")


def save_file(
    source: Source,
    path: str | os.PathLike[str],
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    dequantize: bool = True,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a GGUF file's tensors as a safetensors file, atomically: the path holds the old file or the new one.

    Parameters
    ----------
    source : path-like or GGUFFile
        The GGUF file.
    path : path-like
        The file to make or to replace.
    names, dtype, progress
        As of `mmgguf.load_file`.
    dequantize : bool, default True
        False leaves blocks as they are, as rows of bytes; `to_gguf` makes the same tensors of them again.
    metadata : mapping of str to str, optional
        To be written in the place of the GGUF file's own.

    Raises
    ------
    GGUFError
        The source is not valid, a name is missing, a ggml type is unknown; a name is not UTF-8, or the header would
        exceed safetensors' limit.
    TypeError
        A dtype that is not offered.
    OSError
        What the operating system refuses; the path is that of the source, under whatever name.

    Notes
    -----
    Tensors are laid out by the size of their elements, then in the file's order, so that all of them are aligned.

    Examples
    --------
    >>> save_file("model.gguf", "model.safetensors", dtype="bfloat16")
    """
    with opened(source) as f:
        dtypes = {name: result_dtype(f[name], dtype, dequantize) for name in select(f, names)}
        # Rows of bytes come last: they need no alignment, and end wherever they end.
        sizes = {name: 1 if dtype.names else dtype.itemsize for name, dtype in dtypes.items()}
        order = sorted(dtypes, key=lambda name: -sizes[name])
        if metadata is None:
            converted = any(f[name].layout.dtype != dtypes[name] for name in order)
            metadata = _encode_metadata(f.metadata, converted, f.path)
        elif not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise TypeError("metadata of safetensors is strings by string")
        blocks = {name: GGMLType(f[name].type).name for name in order if dtypes[name].names}
        if blocks:
            metadata = {**metadata, BLOCKS_KEY: json.dumps(blocks)}
        header = _encode_header(f, {name: dtypes[name] for name in order}, metadata)
        with replacing(path, [shard.path for shard in f.shards]) as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            for tensor in walk(f, order, progress, key=lambda tensor: -sizes[tensor.name]):
                for chunk in chunks(tensor, dtype, dequantize=dequantize):
                    file.write(chunk.view(np.uint8).data)


def _encode_header(f: GGUFFile, dtypes: Mapping[str, np.dtype[Any]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype in dtypes.items():
        if dtype not in _NAMES and not dtype.names:
            offered = "float32, float16, bfloat16, float64"
            raise TypeError(f"dtype must be one of {offered}, got {dtype}")
        if name == "__metadata__":
            raise FormatError(f"{f.path}: a tensor named '__metadata__', which safetensors reserves")
        layout, shape = f[name].layout, f[name].shape
        end = position + (layout.nbytes(shape) if dtype.names else f[name].size * dtype.itemsize)
        stored = ("U8", layout.packed_shape(shape)) if dtype.names else (_NAMES[dtype], shape)
        entries[name] = {"dtype": stored[0], "shape": stored[1], "data_offsets": (position, end)}
        position = end
    try:
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        bad = error.object[max(error.start - 20, 0) : error.end]
        raise FormatError(f"{f.path}: a name or key that is not UTF-8, which safetensors needs: …{bad!a}") from None
    header += b" " * (-len(header) % 8)  # so that the data is aligned
    if len(header) > MAX_HEADER_SIZE:
        raise FormatError(
            f"{f.path}: the header takes {len(header)} bytes, safetensors' limit is {MAX_HEADER_SIZE}; "
            "pass less metadata"
        )
    return header


def _encode_metadata(metadata: Metadata, converted: bool, where: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    types: dict[str, str] = {}
    for key in metadata:
        if key.startswith(_NOT_CARRIED) or (converted and key in _OF_STORAGE):
            continue
        if key in (TYPES_KEY, BLOCKS_KEY):
            raise FormatError(f"{where}: a metadata key {key!r}, which the conversion reserves")
        typed = metadata.typed(key)
        value = typed.value
        if typed.type is ValueType.STRING and is_utf8(value):
            texts[key], types[key] = value, _TEXT
            continue
        if typed.element_type is None:
            types[key] = typed.type.name
        else:
            types[key] = f"{typed.element_type.name}[]"
            value = value.tolist() if isinstance(value, np.ndarray) else list(value)
        # ASCII: inside JSON, bytes that are not UTF-8 have a form that the text around it can hold.
        texts[key] = json.dumps(value)
    if types:
        texts[TYPES_KEY] = json.dumps(types)
    return {"format": "pt"} | texts


def to_gguf(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a safetensors file's tensors as a GGUF file, one tensor in memory at a time.

    Types are plain ones, but for the blocks that `save_file` left as they were.

    Parameters
    ----------
    source : path-like
        The safetensors file.
    path : path-like
        The file to make or to replace.
    names : str or iterable of str, optional
        Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.  They are not renamed.
    dtype : {float32, float16, bfloat16, float64}, optional
        What floats become; by default all keep their dtype, as integers do.  Never float16 or bfloat16: what has one
        dimension, norms, and the few others of which llama.cpp takes float32 alone.  These become float32.
    progress : callable, optional
        Called with (bytes done, bytes in all).
    metadata : mapping, optional
        Beside, and before, the source's own: values as `mmgguf.write` takes them.  The source's own are what
        `save_file` wrote, or else strings; ``general.alignment`` and ``split.*`` are not taken from there.

    Raises
    ------
    GGUFError
        The source is not valid; a name is missing; a tensor's dtype, name or shape is one that GGUF cannot hold.
    TypeError
        A dtype that is not offered.
    MissingExtraError
        The package safetensors is not installed.
    OSError
        What the operating system refuses; the path is that of the source, under whatever name.

    Examples
    --------
    >>> save_file("model.gguf", "model.safetensors")
    >>> to_gguf("model.safetensors", "again.gguf")
    >>> mmgguf.open("again.gguf").architecture
    'llama'
    """
    target = None if dtype is None else np.dtype(dtype)
    if target is not None and _NAMES.get(target) not in _FLOATS:
        raise TypeError(f"dtype must be one of float32, float16, bfloat16, float64, got {target}")
    where = os.fspath(source)
    require_other_file(path, [where])
    with _reading(where) as file:
        known = dict.fromkeys(file.offset_keys() if hasattr(file, "offset_keys") else file.keys())
        parts = {name: file.get_slice(name) for name in match(known, names, where)}
        texts = file.metadata() or {}
        blocks = {name: type_ for name, type_ in _block_types(texts, where).items() if name in parts}
        shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        for name, type_ in blocks.items():
            shapes[name] = _shape_of_blocks(parts[name], type_, f"{where}: {shown(name)}")
        types = {
            name: blocks.get(name) or _ggml_type(name, part, target, f"{where}: {shown(name)}")
            for name, part in parts.items()
        }
        total = sum(LAYOUTS[types[name]].nbytes(shapes[name]) for name in parts)
        done = 0

        def load(name: str) -> npt.NDArray[Any]:
            nonlocal done
            if progress is not None:
                progress(done, total)
            array: npt.NDArray[Any] = file.get_tensor(name)
            if name not in blocks:
                array = array.astype(LAYOUTS[types[name]].dtype, copy=False)
            done += array.nbytes
            return array

        pairs = dict(metadata or {})
        for key, value in _decode_metadata(texts, where).items():
            pairs.setdefault(key, value)
        tensors = {name: TypedTensor(partial(load, name), types[name], shapes[name]) for name in parts}
        try:
            write(path, pairs, tensors)
        except (TypeError, ValueError) as error:
            if isinstance(error, GGUFError):
                raise
            raise FormatError(f"{where}: {error}") from error
        if progress is not None:
            progress(total, total)


@contextmanager
def _reading(path: str) -> Iterator[Any]:
    """Open a file by the package safetensors; its errors become this library's."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        if error.name != "safetensors":
            raise
        raise MissingExtraError("safetensors", "safetensors") from None
    open_descriptor(path)  # says more than the package does where this fails
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        # The text quotes the file, at any length and with whatever characters.
        raise FormatError(f"{path}: not a valid safetensors file: {shown(str(error))}") from None


def _ggml_type(name: str, part: Any, target: np.dtype[Any] | None, where: str) -> GGMLType:
    stored = part.get_dtype()
    if stored not in _GGML_TYPES:
        raise UnknownTypeError(f"{where}: no ggml type holds {shown(stored)}")
    type_ = _GGML_TYPES[stored if target is None or stored not in _FLOATS else _NAMES[target]]
    # llama.cpp adds and multiplies such tensors as they are stored, and has no code for halves there.
    halves = (GGMLType.F16, GGMLType.BF16)
    return GGMLType.F32 if type_ in halves and (len(part.get_shape()) < 2 or _FLOAT32_NAMES.search(name)) else type_


def _block_types(texts: Mapping[str, str], where: str) -> dict[str, GGMLType]:
    try:
        types = {name: GGMLType[type_] for name, type_ in dict(json.loads(texts.get(BLOCKS_KEY, "{}"))).items()}
        plain = next((type_ for type_ in types.values() if LAYOUTS[type_].is_plain), None)
        if plain is not None:
            raise ValueError(f"{plain.name} has no blocks")
        return types
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{where}: metadata {BLOCKS_KEY!r}: {error!r:.100}") from None


def _shape_of_blocks(part: Any, type_: GGMLType, where: str) -> tuple[int, ...]:
    layout, stored, shape = LAYOUTS[type_], part.get_dtype(), tuple(part.get_shape())
    if stored != "U8" or not shape or shape[-1] % layout.type_size:
        raise FormatError(
            f"{where}: {shown(stored)} of shape {shape!s:.100} are no rows of {type_.name}'s blocks of "
            f"{layout.type_size} bytes"
        )
    return (*shape[:-1], shape[-1] // layout.type_size * layout.block_size)


def _decode_metadata(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    key = TYPES_KEY
    try:
        types = dict(json.loads(texts.get(TYPES_KEY, "{}")))
        for key in types:
            # How this file is laid out is not for another one to say: an alignment of 2^31 makes padding of gigabytes.
            if not key.startswith(_NOT_CARRIED):
                pairs[key] = _decode_value(types[key], texts[key])
        for key, text in texts.items():
            if key not in types and key not in (TYPES_KEY, BLOCKS_KEY, "format") and not key.startswith(_NOT_CARRIED):
                pairs[key] = text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where}: metadata {key!r:.100}: not what {TYPES_KEY} says: {error!r:.100}") from None
    return pairs


def _decode_value(type_: str, text: str) -> TypedValue | str:
    if type_ == _TEXT:
        return text
    element = type_.removesuffix("[]")
    if element == type_:
        return TypedValue(json.loads(text), ValueType[type_])
    return TypedValue(json.loads(text), ValueType.ARRAY, ValueType[element])
