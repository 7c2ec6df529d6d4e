"""The header of a GGUF file as records: `Header` and `TensorInfo`; and the format, told once.

The format, as the specification (``ggml/docs/gguf.md``) has it.  All numbers are little-endian unless the version says
otherwise; ``str`` is a u64 length and that many bytes, without terminator::

    magic "GGUF" · version u32 · tensor_count u64 · metadata_kv_count u64
    metadata_kv_count × ( key str · value type u32 · value )
    tensor_count × ( name str · n_dims u32 · ne u64[n_dims] · ggml type u32 · offset u64 )
    padding to `general.alignment` (default 32)
    data section: each tensor at data_offset + offset, padded to the alignment

    value types   0 u8   1 i8   2 u16   3 i16   4 u32   5 i32   6 f32   7 bool   8 str
                  9 array: element type u32 · count u64 · elements   10 u64   11 i64   12 f64

Version 1 has u32 for string lengths, counts, array lengths and ``ne``.  Versions 2 and 3 share a layout.

Where this reader is not as the specification says, and why:

* "The alignment is a multiple of 8": powers of two are taken, which is what ggml checks.
* "A model is big-endian": nothing in the file says so.  The version does: its low 16 bits are zero when read in the
  wrong order.  Some writers reverse the magic too (``FUGG``).
* "Keys are lower_snake_case, names at most 64 bytes": files in the wild break both.  They are read, and `mmgguf.verify`
  reports them.  Empty and repeated keys are refused, as ggml does, and so are repeated tensor names.
* Arrays of arrays, which the specification allows, are refused, as ggml does.
* "Offsets must be a multiple of the alignment": yes.  ggml also wants the running sum of padded sizes.  Here each
  tensor has to lie inside the file and none may overlap; holes and other orders are for `mmgguf.verify`.
* An unknown ggml type is not an error until its data is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from ..errors import UnknownTypeError, shown
from ..types import ByteOrder, GGMLType, Layout, UnknownType, ValueType, layout_of
from .metadata import Metadata
from .records import Records
from .strings import encoded_size
from .values import NUMBERS

__all__ = ["Header", "TensorInfo", "TensorInfos"]

_GGML_TYPES: Final[dict[int, GGMLType]] = {int(t): t for t in GGMLType}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, dimensions, ggml type and offset, as the file stores them.

    Attributes
    ----------
    name : str
        Its name; bytes that are not UTF-8 are surrogates.
    ne : tuple of int
        Dimensions as stored, fastest first.
    type : GGMLType or int
        The ggml type; a plain int if unknown.
    offset : int
        Where its data begins, in bytes from the start of the data section.
    """

    name: str
    ne: tuple[int, ...]
    type: GGMLType | UnknownType
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """`ne` reversed: numpy's order."""
        return self.ne[::-1]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.ne)

    @property
    def layout(self) -> Layout:
        """The layout of its blocks; raises `UnknownTypeError` for an unknown ggml type."""
        layout = layout_of(self.type)
        if layout is None:
            raise self.unknown_type()
        return layout

    def unknown_type(self) -> UnknownTypeError:
        """The error to raise where a layout is needed and the ggml type has none."""
        return UnknownTypeError(f"{shown(self.name)}: unknown ggml type {int(self.type)}; a newer mmgguf may know it")

    @property
    def row_size(self) -> int:
        """Bytes per row of ``ne[0]`` elements; raises `UnknownTypeError`."""
        return self.layout.row_size(self.ne[0] if self.ne else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding; raises `UnknownTypeError`."""
        return self.layout.nbytes(self.shape)


class TensorInfos(Mapping[str, TensorInfo]):
    """The tensor infos of a file by name, in its order; each is made when it is first asked for.

    Making the records takes as long as parsing does, and most programs open a file for some of its tensors.

    Parameters
    ----------
    infos : dict
        By name: where in `stored` the n_dims are.  Owned from now on.
    stored : bytes
        The tensor infos as the file has them, one after another, and 64 bytes more.
    records : Records
        How the file stores its fields.
    places : pair of ndarray of intp, optional
        What `places` gives besides `stored`, where it is known already.
    """

    __slots__ = ("_infos", "_places", "_records", "_stored")

    def __init__(
        self,
        infos: dict[str, int | TensorInfo] | dict[str, int],
        stored: bytes,
        records: Records,
        places: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None,
    ) -> None:
        self._infos = cast(dict[str, int | TensorInfo], infos)
        self._stored = stored
        self._records = records
        self._places = places

    def __getitem__(self, name: str) -> TensorInfo:
        info = self._infos[name]
        if type(info) is int:
            (n_dims,) = self._records.u32.unpack_from(self._stored, info)
            *ne, type_id, offset = self._records.info_tails[n_dims].unpack_from(self._stored, info + 4)
            # Two threads may both come here; their records are equal.
            type_ = _GGML_TYPES[type_id] if type_id in _GGML_TYPES else UnknownType(type_id)
            info = self._infos[name] = TensorInfo(name, tuple(ne), type_, offset)
        return cast(TensorInfo, info)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __repr__(self) -> str:
        return repr(dict(self))

    def extents(self) -> tuple[list[str], list[int | None], list[int]]:
        """Names, bytes of data and offsets of all, for who looks at each once; None for the bytes of an unknown type.

        Most tensors of a model have the shape and type of others: what these take is computed once for all of them.
        """
        infos = list(self._infos.values())
        if TensorInfo in set(map(type, infos)):
            made = list(self.values())
            sizes = [info.nbytes if layout_of(info.type) else None for info in made]
            return list(self), sizes, [info.offset for info in made]
        stored, places, tails = self.places()
        records = self._records
        heads = [stored[start : stop + 4] for start, stop in zip(places.tolist(), tails.tolist(), strict=True)]
        nbytes: dict[bytes, int | None] = {}
        for head in set(heads):
            (n_dims,) = records.u32.unpack_from(head)
            *ne, type_id, _ = records.info_tails[n_dims].unpack_from(head + bytes(8), 4)
            layout = layout_of(type_id)
            nbytes[head] = None if layout is None else layout.nbytes(tuple(ne[::-1]))
        offsets = records.numbers_of(stored, 8)[tails + 4].tolist()
        return list(self._infos), [nbytes[head] for head in heads], offsets

    def places(self) -> tuple[bytes, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The tensor infos as the file has them, and where in these each n_dims and each ggml type is.

        To be called before any record is made.
        """
        if self._places is None:
            places = np.array(list(self._infos.values()), np.intp)
            dims = self._records.numbers_of(self._stored, 4)[places].astype(np.intp)
            self._places = places, places + (4 + self._records.width * dims)
        return self._stored, *self._places


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in front of a file's data section.

    Attributes
    ----------
    version : int
        1, 2 or 3.
    byte_order : {"little", "big"}
        Of the header and of the data.
    metadata : Metadata
        The key-value pairs.
    tensors : Mapping of str to TensorInfo
        In the file's order.
    alignment : int
        In bytes; a power of two.
    data_offset : int
        Where the data section begins, in bytes from the start of the file.
    nbytes : int
        Bytes of the header itself, before the padding that leads to `data_offset`.
    """

    version: int
    byte_order: ByteOrder
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_offset: int
    nbytes: int

    @property
    def length_size(self) -> int:
        """Bytes of a string's length, of a count and of each of `ne`: 4 in version 1, else 8."""
        return 4 if self.version == 1 else 8

    def pair_positions(self) -> Iterator[int]:
        """Where each key-value pair begins, in bytes, and at the end where the tensor infos begin."""
        width, metadata = self.length_size, self.metadata
        yield (position := 8 + 2 * width)
        for key in metadata:
            position += width + encoded_size(key) + 4
            if (array := metadata.array_info(key)) is not None:
                position = array.offset + array.nbytes
            elif (type_ := metadata.type_of(key)) is ValueType.STRING:
                position += width + encoded_size(metadata[key])
            else:
                position += NUMBERS[type_].dtype.itemsize
            yield position

    def info_positions(self) -> Iterator[int]:
        """Where each tensor info begins, in bytes, and at the end where the header ends."""
        width = self.length_size
        *_, position = self.pair_positions()
        yield position
        for info in self.tensors.values():
            position += width + encoded_size(info.name) + 4 + width * len(info.ne) + 12
            yield position
