"""Write metadata and tensors as a GGUF file.

Everything that can be wrong with the arguments is found before a file is made: `write` first plans (types, shapes,
offsets, the bytes of the header), then streams to a temporary file that takes the target's name (`mmgguf.format.target`
has what that means for crashes, permissions and links).
"""

from __future__ import annotations

import math
import operator
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol, TypeGuard, cast

import ml_dtypes
import numpy as np

from ..errors import UnknownTypeError
from ..types import LAYOUTS, ByteOrder, GGMLType, Layout, ValueType, align, byte_order_character
from .checks import MAX_INT, shape_problem
from .constants import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY_SIZE, MAX_NAME_SIZE, MAX_STRING_SIZE
from .shards import shard_name
from .target import replacing
from .values import NUMBERS, TypedValue, encode_string, encode_value, type_for

__all__ = ["TypedTensor", "replacing", "write"]

#: What is written: 3 has version 2's layout and is the only one that may be big-endian.
VERSION: Final = 3
#: ggml stores the alignment as u32, the specification asks for a multiple of 8, ggml for a power of two.
MIN_ALIGNMENT: Final = 8
MAX_ALIGNMENT: Final = 1 << 31
#: The most bytes that are converted or copied at a time.
CHUNK_SIZE: Final = 8 << 20

_ALIGNMENT_KEY: Final = "general.alignment"

Array = np.ndarray[Any, np.dtype[Any]]


class StoredTensor(Protocol):
    """The part of the interface of `Tensor` that `write` uses."""

    @property
    def type(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> Array: ...


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """Tensor data together with the ggml type that it is stored as.

    Needed where the dtype does not tell the type (Q4_0 and IQ4_NL have the same blocks), for raw bytes, and
    for data that is made only when its turn comes.

    Attributes
    ----------
    data : numpy.ndarray or callable
        An array, or a function without arguments that returns one and is called once, when the tensor is
        written. The array holds

        * elements or blocks: dtype ``LAYOUTS[type].dtype`` in either byte order, shape ``(*shape[:-1],
          blocks)``;
        * or raw bytes: uint8, little-endian as in `LAYOUTS`, shape ``(*shape[:-1], bytes)``.

        One dimension will do instead of that shape, if `shape` is given.
    type : GGMLType
        What the data is stored as.
    shape : tuple of int, optional
        The logical shape, in numpy's order; for a function it is needed.

    Examples
    --------
    >>> blocks = np.zeros((4, 2), LAYOUTS[GGMLType.IQ4_NL].dtype)
    >>> tensor = TypedTensor(blocks, GGMLType.IQ4_NL)                                   # shape (4, 64)
    >>> lazy = TypedTensor(lambda: np.ones((4, 64), "f2"), GGMLType.F16, (4, 64))
    """

    data: Any
    type: GGMLType
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A tensor as it will be written."""

    name: str
    raw_name: bytes
    type: GGMLType
    shape: tuple[int, ...]
    load: Callable[[], Any]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.type]

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes(self.shape)


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    alignment: int | None = None,
    byte_order: ByteOrder = "little",
    target: AbstractContextManager[BinaryIO] | None = None,
) -> None:
    """Write a file as `mmgguf.write` does; with `target`, to that instead of the path, which is then only a name.

    Nothing is opened before all arguments are known to be good.
    """
    if byte_order not in ("little", "big"):
        raise ValueError(f"byte_order: expected 'little' or 'big', got {byte_order!r}")
    pairs, alignment = _plan_metadata(metadata, None if alignment is None else _check_alignment(alignment))
    plans = _plan_tensors(tensors)
    header = _encode_header(pairs, plans, alignment, byte_order)
    check_split(pairs.get(b"split.count"), path)
    with replacing(path) if target is None else target as file:
        file.write(header)
        _pad(file, len(header), alignment)
        for plan in plans:
            for chunk in _chunks(_load(plan), plan.layout.stored(byte_order)):
                file.write(chunk)
            _pad(file, plan.nbytes, alignment)


# ---------------------------------------------------------------- planning


def _check_alignment(alignment: int) -> int:
    if (
        not isinstance(alignment, int | np.integer)
        or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise ValueError(f"alignment: expected a power of two from 8 to 2^31, got {alignment!r}")
    return int(alignment)


def _plan_metadata(metadata: Mapping[str, Any], alignment: int | None) -> tuple[dict[bytes, TypedValue], int]:
    """The pairs to write, and the alignment: the argument, else what the pairs say, else the default."""
    # The metadata of an opened file knows its stored types better than its values do.
    typed = getattr(metadata, "typed", None)
    pairs: dict[bytes, TypedValue] = {}
    for key in metadata:
        raw = _raw_name(key, "metadata key", MAX_KEY_SIZE, "the specification's limit for keys")
        if raw in pairs:
            raise ValueError(f"metadata key {key!r}: its bytes occur twice")
        value = metadata[key] if typed is None else typed(key)
        pairs[raw] = type_for(key, value, f"metadata {key!r}")
    stated = pairs.get(_ALIGNMENT_KEY.encode())
    if stated is None:
        if alignment not in (None, DEFAULT_ALIGNMENT):
            pairs[_ALIGNMENT_KEY.encode()] = TypedValue(alignment, ValueType.UINT32)
        return pairs, alignment or DEFAULT_ALIGNMENT
    where = f"metadata {_ALIGNMENT_KEY!r}: {stated.type.name} {stated.value!r:.60}"
    if stated.type is not ValueType.UINT32:
        raise ValueError(f"{where} must be UINT32")
    if alignment is not None and stated.value != alignment:
        raise ValueError(f"{where} contradicts the argument alignment={alignment}")
    return pairs, _check_alignment(stated.value)


def check_split(stated: TypedValue | None, path: str | os.PathLike[str]) -> None:
    """Refuse a ``split.count`` of more than one in a file without a shard's name, which could not be opened."""
    if stated is None:
        return
    if stated.type not in NUMBERS or NUMBERS[stated.type].dtype.kind not in "iu":
        raise ValueError(f"metadata 'split.count': {stated.type.name} {stated.value!r:.60} must be an integer type")
    if stated.value > 1:
        shard_name(os.fsdecode(path), int(stated.value))


def _raw_name(name: Any, what: str, limit: int, whose: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected str, got {type(name).__name__}: {name!r:.60}")
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {name!r:.60}: has no UTF-8 form: {error.reason} at {error.start}") from None
    if not raw:
        raise ValueError(f"{what}: is empty")
    if b"\0" in raw:
        raise ValueError(f"{what} {name!r:.60}: holds a NUL, where C's readers would cut it off")
    if len(raw) > limit:
        raise ValueError(f"{what} {name!r:.60}: {len(raw)} bytes, {whose} is {limit}")
    return raw


def _plan_tensors(tensors: Mapping[str, Any]) -> list[_Plan]:
    plans: dict[bytes, _Plan] = {}
    for name in tensors:
        raw = _raw_name(name, "tensor name", MAX_NAME_SIZE, "the specification's limit for tensor names (ggml's is 63)")
        if raw in plans:
            raise ValueError(f"tensor name {name!r}: its bytes occur twice")
        plans[raw] = _plan_tensor(name, raw, tensors[name])
    return list(plans.values())


def _plan_tensor(name: str, raw: bytes, value: Any) -> _Plan:
    if isinstance(value, TypedTensor):
        type_, shape, data = _known_type(value.type, name), value.shape, value.data
        if callable(data):
            if shape is None:
                raise ValueError(f"{name}: data that a function makes needs a shape")
            return _checked(_Plan(name, raw, type_, _as_shape(shape, name), cast("Callable[[], Any]", data)))
    elif _is_stored_tensor(value):
        # Its data is looked up when its turn comes: a file read through `storage="read"` reads it only then.
        tensor = value
        return _checked(_Plan(name, raw, _known_type(value.type, name), tuple(value.shape), lambda: tensor.data))
    elif hasattr(value, "ggml_type") and hasattr(value, "logical_shape"):  # packed weights in a framework's memory
        type_, shape, data = _known_type(value.ggml_type, name), value.logical_shape, _as_array(value.data, name)
    else:
        data, shape = _as_array(value, name), None
        type_ = _type_of(data.dtype, name)
    array = _as_blocks(data, type_, name)
    if shape is None:
        shape = _logical_shape(array, LAYOUTS[type_], name)
    plan = _checked(_Plan(name, raw, type_, _as_shape(shape, name), lambda: array))
    _fit(array, plan)
    return plan


def _as_array(value: Any, name: str) -> Array:
    """Convert a value with `numpy.asarray`, and torch tensors also where numpy cannot."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    try:
        if torch is None or not isinstance(value, torch.Tensor):
            return np.asarray(value)
        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            array: Array = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            return array
        return np.asarray(tensor)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # a list of unequal lists, a dtype that numpy lacks
        raise (ValueError if isinstance(error, ValueError) else TypeError)(f"{name}: {error}") from None


def _is_stored_tensor(value: Any) -> TypeGuard[StoredTensor]:
    # torch's tensors have attributes of all these names too, but there `type` is a method.
    return isinstance(getattr(value, "type", None), int) and hasattr(value, "ne") and hasattr(value, "data")


def _known_type(type_: int, name: str) -> GGMLType:
    try:
        return GGMLType(type_)
    except ValueError:
        raise UnknownTypeError(f"{name}: ggml type {type_!r} is unknown, so the size of its data is too") from None


def _type_of(dtype: np.dtype[Any], name: str) -> GGMLType:
    matches = [type_ for type_, layout in LAYOUTS.items() if _is_layout(dtype, layout)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(type_.name for type_ in matches)
        raise TypeError(f"{name}: {names} have the same blocks; name one with TypedTensor(data, type)")
    plain = ", ".join(str(layout.dtype) for layout in LAYOUTS.values() if layout.is_plain)
    raise TypeError(
        f"{name}: no ggml type has dtype {dtype}; known are {plain} and the dtypes in LAYOUTS, "
        "and TypedTensor(data, type) takes raw bytes as uint8"
    )


def _is_layout(dtype: np.dtype[Any], layout: Layout) -> bool:
    return dtype in (layout.dtype, layout.stored("big"))


def _as_blocks(data: Any, type_: GGMLType, name: str) -> Array:
    """The data with the type's own dtype, in one of the two byte orders; raw bytes are reinterpreted."""
    array = np.asarray(data)
    layout = LAYOUTS[type_]
    if _is_layout(array.dtype, layout):
        return array
    if array.dtype != np.uint8:
        raise TypeError(f"{name}: {type_.name} takes {layout.dtype} or raw uint8, got {array.dtype}")
    if not array.ndim or array.shape[-1] % layout.type_size:
        raise ValueError(
            f"{name}: the last axis of raw bytes of shape {array.shape} is not a whole number of "
            f"{type_.name}'s blocks of {layout.type_size} bytes"
        )
    if array.strides[-1] != 1:
        array = np.ascontiguousarray(array)  # no view can gather a block whose bytes lie apart
    return array.view(layout.dtype)


def _logical_shape(array: Array, layout: Layout, name: str) -> tuple[int, ...]:
    if layout.is_plain:
        return tuple(array.shape)
    if not array.ndim:
        raise ValueError(f"{name}: a single block without dimensions; its last axis should count the blocks")
    return (*array.shape[:-1], array.shape[-1] * layout.block_size)


def _as_shape(shape: Any, name: str) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"{name}: shape must be a tuple of integers, got {shape!r:.60}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name}: shape {sizes} has a negative size")
    return sizes


def _checked(plan: _Plan) -> _Plan:
    where, shape = plan.name, plan.shape
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{where}: {len(shape)} dimensions, ggml's limit is {MAX_DIMS}")
    if (problem := shape_problem(shape[::-1], plan.type)) is not None:
        raise ValueError(f"{where}: {problem}")
    if plan.nbytes > MAX_INT:
        raise ValueError(f"{where}: shape {shape} takes {plan.nbytes} bytes, more than 63 bits can count")
    return plan


def _fit(array: Array, plan: _Plan) -> None:
    """Check the array's shape against the planned one: equal except for the blocks, or flat."""
    expected = plan.shape
    if expected:
        expected = (*expected[:-1], expected[-1] // plan.layout.block_size)
    if array.shape != expected and (array.ndim != 1 or array.size != math.prod(expected)):
        unit = "elements" if plan.layout.is_plain else f"blocks of {plan.layout.block_size}"
        raise ValueError(
            f"{plan.name}: {plan.type.name} of shape {plan.shape} is {expected} {unit}, the data has {array.shape}"
        )


# ---------------------------------------------------------------- encoding


def _encode_header(
    pairs: Mapping[bytes, TypedValue], plans: list[_Plan], alignment: int, byte_order: ByteOrder
) -> bytes:
    order = byte_order_character(byte_order)
    parts = [MAGIC, struct.pack(order + "IQQ", VERSION, len(plans), len(pairs))]
    for key, typed in pairs.items():
        where = f"metadata {key.decode('utf-8', 'surrogateescape')!r}"
        parts.append(encode_string(key, byte_order, where))
        parts.append(struct.pack(order + "I", typed.type))
        parts.append(value := encode_value(typed, byte_order, where))
        if typed.type is ValueType.STRING and len(value) > MAX_STRING_SIZE + 8:
            raise ValueError(f"{where}: string of {len(value) - 8} bytes, at most {MAX_STRING_SIZE} are read")
    offset = 0
    for plan in plans:
        ne = plan.shape[::-1]
        parts.append(encode_string(plan.raw_name, byte_order, plan.name))
        parts.append(struct.pack(f"{order}I{len(ne)}QIQ", len(ne), *ne, plan.type, offset))
        offset += align(plan.nbytes, alignment)
        if offset > MAX_INT:
            raise ValueError(f"{plan.name}: ends at offset {offset} of the data, more than 63 bits can count")
    return b"".join(parts)


def _pad(file: BinaryIO, size: int, alignment: int) -> None:
    # An alignment may be large: no zeros are made but those that are needed, and those in chunks.
    missing = -size % alignment
    while missing:
        step = min(missing, CHUNK_SIZE)
        file.write(bytes(step))
        missing -= step


def _load(plan: _Plan) -> Array:
    array = _as_blocks(plan.load(), plan.type, plan.name)
    _fit(array, plan)
    return array


def _bytes_of(array: Array) -> memoryview:
    # Structured dtypes and bfloat16 offer no buffer of their own; bytes always do.
    return array.reshape(-1).view(np.uint8).data


def _chunks(array: Array, target: np.dtype[Any]) -> Iterator[memoryview]:
    """The array's bytes in C order with the dtype `target`, at most `CHUNK_SIZE` at a time."""
    if array.size == 0:
        return
    if array.flags.c_contiguous and array.dtype == target:
        raw = _bytes_of(array)
        for start in range(0, len(raw), CHUNK_SIZE):
            yield raw[start : start + CHUNK_SIZE]
    elif array.nbytes <= CHUNK_SIZE or array.ndim == 0:
        yield _bytes_of(array.astype(target, order="C"))
    else:
        step = max(1, CHUNK_SIZE // (array.nbytes // len(array)))
        for start in range(0, len(array), step):
            part = array[start : start + step]
            # A single item may still be too large: go one axis deeper.
            yield from _chunks(part[0] if step == 1 else part, target)
