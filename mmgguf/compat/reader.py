"""`GGUFReader`, `ReaderField` and `ReaderTensor`, by the names and with the behaviour of pip's ``gguf``."""

from __future__ import annotations

import math
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, DuplicateKeyError, FormatError, GGUFError, TruncatedError, shown
from ..format.constants import DEFAULT_ALIGNMENT
from ..format.header import Header, TensorInfo
from ..format.metadata import ArrayInfo
from ..format.parser import parse_header
from ..format.strings import Chain, StringArray, encoded_size
from ..format.values import NUMBERS
from ..storage.descriptors import open_descriptor
from ..types import GGMLType, Layout, ValueType, byte_order_character, layout_of
from .lazy import Array, ArrayParts, Index, NumberParts, Parts, StringParts
from .peer import ENDIAN, GGUF, TENSOR_TYPES, VALUE_TYPES, added_type

__all__ = ["GGUFReader", "ReaderField", "ReaderTensor"]

_ARRAY: Final = VALUE_TYPES[ValueType.ARRAY]
_STRING: Final = VALUE_TYPES[ValueType.STRING]
_BYTES: Final = np.dtype(np.uint8)

#: The types whose data has a dtype of its own; all others, BF16 among them, are bytes.
_ITEM_TYPES: Final = {
    GGMLType.F16: "f2",
    GGMLType.F32: "f4",
    GGMLType.F64: "f8",
    GGMLType.I8: "i1",
    GGMLType.I16: "i2",
    GGMLType.I32: "i4",
    GGMLType.I64: "i8",
}


class ReaderField(NamedTuple):
    """A metadata pair, a number of the file's head, or a tensor info, as it is stored.

    Attributes
    ----------
    offset : int
        Where it begins in the file.
    name : str
        The key, the tensor's name, or ``GGUF.version``, ``GGUF.tensor_count`` and ``GGUF.kv_count``.
    parts : sequence of ndarray
        The stored pieces: views of the file, each of shape (n,).
    data : sequence of int
        Which parts hold the value.
    types : list of GGUFValueType
        The value's type, for an array that is not empty the element's type too; empty for tensor infos.
    """

    offset: int
    name: str
    parts: Sequence[Array] = ()
    data: Sequence[int] = (-1,)
    types: Sequence[Any] = ()

    def contents(self, index_or_slice: Index = slice(None)) -> Any:
        """The value as Python data: for arrays one element, or a list; None for a tensor info.

        Raises
        ------
        UnicodeDecodeError
            A string is not UTF-8.
        """
        if not self.types:
            return None
        if self.types[0] != _ARRAY:
            value = self.parts[-1]
            return str(value.tobytes(), "utf-8") if self.types[0] == _STRING else value.tolist()[0]
        if isinstance(self.parts, ArrayParts) and self.data is self.parts.indexes:
            return self.parts.contents(index_or_slice)
        # A field that somebody has put together.
        if not isinstance(index_or_slice, slice):
            return self._element(self.parts[self.data[index_or_slice]])[0]
        return [value for i in self.data[index_or_slice] for value in self._element(self.parts[i])]

    def _element(self, part: Array) -> list[Any]:
        return [str(part.tobytes(), "utf-8")] if self.types[-1] == _STRING else part.tolist()


class ReaderTensor(NamedTuple):
    """A tensor.

    Attributes
    ----------
    name : str
        Its name.
    tensor_type : GGMLQuantizationType
        gguf's own enum member; of `GGMLType` where gguf is not installed or does not know the type.
    shape : ndarray of uint64, shape (n_dims,)
        Dimensions as stored, fastest first: a view of the file.
    n_elements, n_bytes : int
        Elements, and bytes that they take in the file.
    data_offset : int
        Where the data begins in the file.
    data : ndarray
        A view of the file, in numpy's order of dimensions.  F16, F32, F64 and the integers have their dtype and the
        logical shape; everything else, BF16 too, is uint8 whose last axis is the bytes of a row.
    field : ReaderField
        The tensor info as stored.
    """

    name: str
    tensor_type: Any
    shape: npt.NDArray[np.uint64]
    n_elements: int
    n_bytes: int
    data_offset: int
    data: Array
    field: ReaderField


class GGUFReader:
    """Read one GGUF file, or change it in place, with the interface of pip's ``gguf.GGUFReader``.

    A single shard of a split model is read by itself.

    Parameters
    ----------
    path : path-like or binary file object
        The file; a file object needs a ``fileno``.
    mode : {"r", "r+", "c"}
        ``"r"``: arrays are read-only.  ``"r+"``: writing to an array writes to the file.  ``"c"``: arrays are
        writable, the file never changes.

    Attributes
    ----------
    fields : OrderedDict of str to ReaderField
        By key, in file order, after ``GGUF.version``, ``GGUF.tensor_count`` and ``GGUF.kv_count``.
    tensors : list of ReaderTensor
        In file order.
    data : memmap of uint8, shape (file size,)
        The file.
    alignment, data_offset : int
        Alignment of the data section, and where it begins.
    byte_order : {"I", "S"}
        ``"S"`` if the file's byte order is not this machine's.
    endianess : GGUFEndian
        The file's byte order.

    Raises
    ------
    GGUFError
        The file is not valid GGUF; a `ValueError` too.
    DuplicateKeyError
        A key is there twice; a `KeyError` too.
    """

    byte_order: Literal["I", "S"] = "I"
    alignment: int = DEFAULT_ALIGNMENT
    closed: bool = False

    gguf_scalar_to_np: Mapping[Any, type[np.generic]] = {
        VALUE_TYPES[type_]: row.dtype.type for type_, row in NUMBERS.items()
    }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Of how pip's reader works inside, only this is done here.
        inside = {"_get", "_get_str", "_push_field", "_get_field_parts", "_get_tensor_info_field"}
        overridden = sorted(vars(cls).keys() & (inside | {"_build_fields", "_build_tensor_info"}))
        if not overridden:
            return
        if GGUF is None:
            raise TypeError(f"{cls.__name__} overrides {overridden[0]}, which this reader does not call")
        # It has to be called, so the class gets the reader that does.
        root = next(c for c in cls.__mro__ if GGUFReader in c.__bases__)
        root.__bases__ = tuple(original_reader() if base is GGUFReader else base for base in root.__bases__)

    def __init__(self, path: os.PathLike[str] | str | Any, mode: Literal["r", "r+", "c"] = "r") -> None:
        if mode not in ("r", "r+", "c"):
            raise ValueError(f"mode must be 'r', 'r+' or 'c', got {mode!r}")
        if hasattr(path, "fileno"):
            self._open(path, mode)
        elif mode == "r+":
            with open(path, "r+b", buffering=0) as file:
                self._open(file, mode)
        else:
            # The file that is parsed is the one that is mapped, whatever happens to its name meanwhile.
            # `open` owns the number that it gets, so it gets one of its own.
            with open(path, "rb", buffering=0, opener=lambda name, _: os.dup(open_descriptor(name))) as file:
                self._open(file, mode)

    def _open(self, file: Any, mode: Literal["r", "r+", "c"]) -> None:
        try:
            # Who builds no tensors, or others, may have no more than the beginning of a file.
            builds_tensors = type(self)._build_tensors is GGUFReader._build_tensors
            size = None if builds_tensors else math.inf
            self._header: Header = parse_header(file, size=size)
            self.data: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(file, np.uint8, mode)
            # The same memory without the cost of np.memmap, which runs Python code for every view.
            self._base: Array = self.data.view(np.ndarray)
            order = self._header.byte_order
            self._chain = Chain(order, self._header.length_size)
            self._dtypes = {type_: row.stored(order) for type_, row in NUMBERS.items()}
            self._length = self._dtypes[ValueType.UINT32 if self._header.version == 1 else ValueType.UINT64]
            self.byte_order = "I" if order == sys.byteorder else "S"
            self.endianess = ENDIAN.BIG if order == "big" else ENDIAN.LITTLE
            self.alignment = self._header.alignment
            self.data_offset = self._header.data_offset
            self.fields: OrderedDict[str, ReaderField] = OrderedDict()
            self._fill_fields()
            if not builds_tensors:
                self.tensors = []
                self._build_tensors(self.data_offset, self._tensor_fields())
        except GGUFError as error:
            error.args = (f"{getattr(file, 'name', file)}: {error}",)
            raise

    def get_field(self, key: str) -> ReaderField | None:
        """The field of that key, or None."""
        return self.fields.get(key)

    def get_tensor(self, idx: int) -> ReaderTensor:
        """Tensor number `idx`."""
        return self.tensors[idx]

    def close(self) -> None:
        """Let go of the file; arrays that were handed out stay valid, and keep it mapped."""
        self.closed = True
        for name in ("data", "fields", "tensors", "_base", "_header"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if self.closed and name in ("data", "fields", "_base", "_header"):
            raise ClosedError("the reader is closed")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # Where everything lies follows from the parsed header: surrogates encode to the very bytes that they came from.

    def _fill_fields(self) -> None:
        header, length, u32 = self._header, self._length, self._dtypes[ValueType.UINT32]
        position = 4
        counts = (("version", u32), ("tensor_count", length), ("kv_count", length))
        for key, dtype in counts:
            type_ = VALUE_TYPES[ValueType.UINT32 if dtype == u32 else ValueType.UINT64]
            parts = Parts(self._base, ((dtype, 1),), position)
            self.fields[f"GGUF.{key}"] = ReaderField(position, f"GGUF.{key}", parts, [0], [type_])
            position += dtype.itemsize
        for key, position in zip(header.metadata, header.pair_positions(), strict=False):
            if key in self.fields:
                raise DuplicateKeyError(f"metadata key at byte {position}: {shown(key)} is taken")
            self.fields[key] = self._field(key, position)

    def _field(self, key: str, offset: int) -> ReaderField:
        """The field of a metadata key that begins at `offset`."""
        metadata, length, u32 = self._header.metadata, self._length, self._dtypes[ValueType.UINT32]
        type_ = metadata.type_of(key)
        spans = [(length, 1), (_BYTES, encoded_size(key)), (u32, 1)]
        types = [VALUE_TYPES[type_]]
        if type_ is ValueType.STRING:
            spans += [(length, 1), (_BYTES, encoded_size(metadata[key]))]
            return ReaderField(offset, key, Parts(self._base, spans, offset), [4], types)
        array = metadata.array_info(key)
        if array is None:
            spans.append((self._dtypes[type_], 1))
            return ReaderField(offset, key, Parts(self._base, spans, offset), [3], types)
        if array.count:
            types.append(VALUE_TYPES[array.element_type])
        spans += [(u32, 1), (length, 1)]
        parts = self._array_parts(spans, offset, array)
        return ReaderField(offset, key, parts, parts.indexes, types)

    def _array_parts(self, spans: list[tuple[np.dtype[Any], int]], offset: int, array: ArrayInfo) -> ArrayParts:
        if array.element_type is ValueType.STRING:
            data = self._base[array.offset : array.offset + array.nbytes]
            strings = StringArray(data, array.count, self._chain)
            return StringParts(self._base, spans, offset, data, strings, self._length)
        values: Array = np.ndarray((array.count,), self._dtypes[array.element_type], self._base, array.offset)
        return NumberParts(self._base, spans, offset, values)

    @cached_property
    def tensors(self) -> list[ReaderTensor]:
        """All tensors, in file order; raises `UnknownTypeError` if one's type is unknown."""
        return [self._tensor(info, f) for info, f in zip(self._infos(), self._tensor_fields(), strict=True)]

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        """Make `tensors`; for subclasses, which override it to make none, or others."""
        self.tensors = [self._tensor(self._header.tensors[field.name], field) for field in fields]

    def _infos(self) -> Iterable[TensorInfo]:
        return self._header.tensors.values()

    def _tensor_fields(self) -> list[ReaderField]:
        fields = []
        length, u32, u64 = self._length, self._dtypes[ValueType.UINT32], self._dtypes[ValueType.UINT64]
        for info, position in zip(self._infos(), self._header.info_positions(), strict=False):
            spans = (
                (length, 1),
                (_BYTES, encoded_size(info.name)),
                (u32, 1),
                (length, len(info.ne)),
                (u32, 1),
                (u64, 1),
            )
            fields.append(ReaderField(position, info.name, Parts(self._base, spans, position), [1, 3, 4, 5], []))
        return fields

    def _tensor(self, info: TensorInfo, field: ReaderField) -> ReaderTensor:
        shape, offset = info.shape, self._header.data_offset + info.offset
        # An empty tensor may begin behind the end of a file that is not padded.
        begin = min(offset, len(self._base))
        if layout_of(info.type) is None and (added := added_type(int(info.type))) is not None:
            return self._added_tensor(info, field, *added)
        self._require(info, offset + info.nbytes)
        item_type = _ITEM_TYPES.get(GGMLType(info.type)) if layout_of(info.type) else None
        if item_type is not None:
            order = byte_order_character(self._header.byte_order)
            data: Array = np.ndarray(shape, np.dtype(order + item_type), self._base, begin)
        else:
            data = np.ndarray((*shape[:-1], info.row_size), np.uint8, self._base, begin)
        return ReaderTensor(
            info.name,
            TENSOR_TYPES[int(info.type)],
            field.parts[3],
            info.n_elements,
            info.nbytes,
            offset,
            data,
            field,
        )

    def _require(self, info: TensorInfo, end: int) -> None:
        # The header's checks saw to it, but where they were told that this may be the beginning of a file.
        if end > len(self._base) and info.n_elements:
            text = f"needs {end} bytes, the file has {len(self._base)}: download incomplete?"
            raise TruncatedError(f"{shown(info.name)}: {text}")

    def _added_tensor(
        self, info: TensorInfo, field: ReaderField, member: Any, block_size: int, type_size: int
    ) -> ReaderTensor:
        """A tensor of a type that the program has added to gguf's tables: the header's checks could not know it."""
        shape, offset = info.shape, self._header.data_offset + info.offset
        layout = Layout(block_size, np.dtype((np.void, type_size)))
        nbytes = layout.nbytes(shape)
        if (shape[-1] if shape else 1) % block_size:
            raise FormatError(f"{shown(info.name)}: rows of {shape} are no whole blocks of {block_size} elements")
        self._require(info, offset + nbytes)
        data: Array = np.ndarray(layout.packed_shape(shape or (1,)), np.uint8, self._base, offset)
        return ReaderTensor(info.name, member, field.parts[3], info.n_elements, nbytes, offset, data, field)


def original_reader() -> Any:
    """pip's own reader, whether or not `install` has put this one in its place."""
    from . import _original

    return _original(GGUF.gguf_reader, "GGUFReader")
