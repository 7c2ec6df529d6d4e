"""The header of a GGUF file: bytes → `Header`, with every structural check.

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

Nothing is allocated on the word of the file: every count is first compared with the bytes that remain, divided by
the least that one item can take.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import numpy as np

from .blocks import LAYOUTS, ByteOrder, Layout, layout_of
from .constants import (
    DEFAULT_ALIGNMENT,
    LEGACY_MAGICS,
    MAGIC,
    MAGIC_REVERSED,
    MAX_DIMS,
    MAX_STRING_SIZE,
    GGMLType,
    ValueType,
)
from .errors import (
    DuplicateKeyError,
    FormatError,
    NotGGUFError,
    TruncatedError,
    UnknownTypeError,
    VersionError,
    shown,
)
from .metadata import ArrayInfo, Metadata, RetainedArrays
from .seeker import DEFAULT_BUFFER_SIZE, BufferedSeeker
from .strings import Chain, decode, encoded_size, scan
from .values import NUMBERS

__all__ = ["Header", "TensorInfo", "parse_header", "read_header"]

#: ggml keeps ``ne`` and sizes in int64, numpy in ssize_t.
_MAX_INT: Final = (1 << 63) - 1
_VERSIONS: Final = (1, 2, 3)
_READABLE: Final = "versions 1, 2 and 3 can be read"
_GGML_TYPES: Final[dict[int, GGMLType]] = {int(t): t for t in GGMLType}
#: Block size and type size by id.
_SIZES: Final[dict[int, tuple[int, int]]] = {int(t): (row.block_size, row.type_size) for t, row in LAYOUTS.items()}
#: The same as tables for numpy, by id; 0 where there is no such type.
_BLOCK_SIZES: Final = np.zeros(max(_SIZES) + 1, np.int64)
_TYPE_SIZES: Final = np.zeros(max(_SIZES) + 1, np.int64)
for _id, _row in _SIZES.items():
    _BLOCK_SIZES[_id], _TYPE_SIZES[_id] = _row
_VALUE_TYPES: Final[dict[int, ValueType]] = {int(t): t for t in ValueType}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of a tensor.

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
    type: GGMLType | int
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
        layout = self.layout
        return (self.ne[0] if self.ne else 1) // layout.block_size * layout.type_size

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding; raises `UnknownTypeError`."""
        return self.row_size * math.prod(self.ne[1:])


class TensorInfos(Mapping[str, TensorInfo]):
    """The tensor infos of a file by name, in its order; each is made when it is first asked for.

    Making the records takes as long as parsing does, and most programs open a file for some of its tensors.

    Parameters
    ----------
    infos : dict
        By name: the bytes that follow n_dims.  Owned from now on.
    layouts : list of struct.Struct
        By n_dims: what these bytes are.
    """

    __slots__ = ("_infos", "_layouts")

    def __init__(self, infos: dict[str, bytes | TensorInfo], layouts: list[struct.Struct]) -> None:
        self._infos = infos
        self._layouts = {layout.size: layout.unpack for layout in layouts}

    def __getitem__(self, name: str) -> TensorInfo:
        info = self._infos[name]
        if type(info) is bytes:
            *ne, type_id, offset = self._layouts[len(info)](info)
            # Two threads may both come here; their records are equal.
            info = self._infos[name] = TensorInfo(name, tuple(ne), _GGML_TYPES.get(type_id, type_id), offset)
        return cast(TensorInfo, info)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __repr__(self) -> str:
        return repr(dict(self))


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
        """The byte where each key-value pair begins, and after the last the one where the tensor infos do."""
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
        """The byte where each tensor info begins, and after the last the one where the header ends."""
        width = self.length_size
        *_, position = self.pair_positions()
        yield position
        for info in self.tensors.values():
            position += width + encoded_size(info.name) + 4 + width * len(info.ne) + 12
            yield position


def read_header(file: BinaryIO | Any, buffer_size: int = DEFAULT_BUFFER_SIZE) -> Header:
    """Read the header of a GGUF file from any seekable binary file object, a remote one too.

    Parameters
    ----------
    file : binary file object
        Its first byte is the file's.  It stays open; nothing behind the header is read but what one buffer holds.
    buffer_size : int, default 65536
        Bytes to fetch at a time.

    Returns
    -------
    Header
        Its metadata arrays are kept in memory, and do not need the file any more.

    Raises
    ------
    GGUFError
        The bytes are not a GGUF header; `mmgguf.errors` has the kinds.
    """
    return parse_header(BufferedSeeker(file, buffer_size), RetainedArrays())


def parse_header(seeker: BufferedSeeker, retained: RetainedArrays | None = None) -> Header:
    """`read_header` on a seeker.  Without `retained`, metadata arrays need `Metadata.bind` before they are touched."""
    return _Parser(seeker, retained).header()


class _Parser:
    def __init__(self, seeker: BufferedSeeker, retained: RetainedArrays | None) -> None:
        self.seeker = seeker
        self.retained = retained
        self.version, self.byte_order = self._version()
        order = ">" if self.byte_order == "big" else "<"
        width = 4 if self.version == 1 else 8
        self.chain = Chain(self.byte_order, width)
        self.u32 = struct.Struct(order + "I")
        self.size_t = self.chain.prefix
        self.array_head = struct.Struct(order + "I" + ("I" if width == 4 else "Q"))
        self.numbers = {type_: struct.Struct(order + row.code) for type_, row in NUMBERS.items()}
        ne = "I" if self.version == 1 else "Q"
        # What follows n_dims in a tensor info: ne, ggml type, offset.
        self.info_tails = [struct.Struct(f"{order}{n}{ne}IQ") for n in range(MAX_DIMS + 1)]

    def _version(self) -> tuple[int, ByteOrder]:
        size = self.seeker.size
        magic = self.seeker.read(min(4, size))
        if magic in LEGACY_MAGICS:
            raise NotGGUFError(
                f"this is a {LEGACY_MAGICS[magic]} file, a format from before GGUF: convert it with llama.cpp's "
                "convert_llama_ggml_to_gguf.py, or get the model as GGUF"
            )
        if len(magic) < 4 and MAGIC.startswith(magic):
            raise TruncatedError(f"magic: needs 4 bytes, file has {size}: download incomplete?")
        if magic not in (MAGIC, MAGIC_REVERSED):
            raise NotGGUFError(f"not a GGUF file: begins with {magic!r}, not {MAGIC!r}")
        raw = self.seeker.read(4, "version")
        version = int.from_bytes(raw, "little")
        byte_order: ByteOrder = "little"
        swapped = int.from_bytes(raw, "big")
        if version & 0xFFFF == 0 and swapped:
            if swapped not in _VERSIONS:
                raise VersionError(f"GGUF version {version} ({swapped} if big-endian) at byte 4: {_READABLE}")
            version, byte_order = swapped, "big"
        if version not in _VERSIONS:
            raise VersionError(f"GGUF version {version} at byte 4: {_READABLE}")
        return version, byte_order

    def header(self) -> Header:
        tensor_count = self.size("tensor count")
        kv_count = self.size("metadata key-value count")
        width = self.size_t.size
        # A pair has at least a key of one byte, a value type and a byte; a tensor the length of a name, n_dims, type
        # and offset.
        self.require(kv_count, width + 6, "metadata key-value count")
        self.require(tensor_count, width + 16, "tensor count")
        metadata = self.metadata(kv_count)
        alignment = self.alignment(metadata)
        infos, stored, nbytes = self.tensor_infos(tensor_count)
        data_offset = -(-nbytes // alignment) * alignment
        header = Header(self.version, self.byte_order, metadata, infos, alignment, data_offset, nbytes)
        if not self.is_sound(stored, alignment, data_offset):
            check_data(header, self.seeker.size)
        return header

    def size(self, what: str) -> int:
        value: int = self.seeker.unpack(self.size_t, what)[0]
        return value

    def require(self, count: int, least: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, at `least` bytes for each item."""
        seeker = self.seeker
        remaining = seeker.remaining
        if count * least > remaining:
            raise TruncatedError(
                f"{what} {count} before byte {seeker.tell()} needs at least {count * least} bytes, {remaining} remain "
                f"(file has {seeker.size}): download incomplete?"
            )

    def string(self, what: str) -> str:
        (length,) = self.seeker.unpack(self.size_t, what)
        if length > DEFAULT_BUFFER_SIZE:  # a shorter one the seeker refuses as cheaply
            self.require(length, 1, f"{what}: length")
            if length > MAX_STRING_SIZE:
                where = self.seeker.tell() - self.size_t.size
                raise FormatError(
                    f"{what}: string of {length} bytes at byte {where}, at most {MAX_STRING_SIZE} are read"
                )
        return decode(self.seeker.read(length, what))

    def metadata(self, count: int) -> Metadata:
        values: dict[str, Any] = {}
        types: dict[str, ValueType] = {}
        for number in range(count):
            key = self.string("metadata key")
            if not key or key in values:
                where = self.seeker.tell() - encoded_size(key) - self.size_t.size
                pair = f"metadata pair {number} at byte {where}"
                if not key:
                    raise FormatError(f"{pair}: the key is empty")
                raise DuplicateKeyError(f"{pair}: the key {shown(key)} was there before")
            what = shown(key)
            types[key] = type_ = self.value_type(what)
            values[key] = self.value(what, type_)
        return Metadata(values, types, self.chain, self.retained)

    def value_type(self, what: str) -> ValueType:
        number = self.seeker.unpack(self.u32, what)[0]
        type_ = _VALUE_TYPES.get(number)
        if type_ is None:
            raise FormatError(f"{what}: value type {number} at byte {self.seeker.tell() - 4}, the last one is 12")
        return type_

    def value(self, what: str, type_: ValueType) -> Any:
        if type_ is ValueType.STRING:
            return self.string(what)
        if type_ is ValueType.ARRAY:
            return self.array(what)
        return self.seeker.unpack(self.numbers[type_], what)[0]

    def array(self, what: str) -> ArrayInfo:
        seeker = self.seeker
        number, count = seeker.unpack(self.array_head, what)
        offset = seeker.tell()
        element_type = _VALUE_TYPES.get(number)
        if element_type is None:
            where = offset - self.array_head.size
            raise FormatError(f"{what}: element: value type {number} at byte {where}, the last one is 12")
        if element_type is ValueType.ARRAY:
            where = offset - self.array_head.size
            raise FormatError(f"{what}: array of arrays at byte {where}; ggml refuses these too")
        is_string = element_type is ValueType.STRING
        least = self.size_t.size if is_string else NUMBERS[element_type].dtype.itemsize
        if count * least > seeker.size - offset:
            self.require(count, least, f"{what}: array length")
        if is_string:
            nbytes, pieces = scan(seeker, count, self.chain, what, keep=self.retained is not None)
        else:
            nbytes = count * least
            pieces = [seeker.read(nbytes, what)] if self.retained is not None else []
            if self.retained is None:
                seeker.seek(offset + nbytes)
        if self.retained is not None and nbytes:
            self.retained.keep(offset, b"".join(pieces))
        return ArrayInfo(element_type, count, offset, nbytes)

    def alignment(self, metadata: Metadata) -> int:
        key = "general.alignment"
        if key not in metadata:
            return DEFAULT_ALIGNMENT
        type_ = metadata.type_of(key)
        if type_ is not ValueType.UINT32:
            raise FormatError(f"{key}: stored as {type_.name}, must be UINT32")
        alignment: int = metadata[key]
        if alignment == 0 or alignment & (alignment - 1):
            raise FormatError(f"{key}: {alignment} is not a power of two")
        return alignment

    def tensor_infos(self, count: int) -> tuple[TensorInfos, list[list[bytes]], int]:
        """The tensor infos by name, what is stored of them by n_dims, and where in the file they end.

        Parsed from what the seeker has buffered, in place: one call per buffer instead of one per field.
        """
        seeker, size_t, u32 = self.seeker, self.size_t.unpack_from, self.u32.unpack_from
        width, sizes = self.size_t.size, [4 + tail.size for tail in self.info_tails]
        longest, limit = sizes[-1], seeker.size
        infos: dict[str, bytes | TensorInfo] = {}
        stored: list[list[bytes]] = [[] for _ in sizes]
        buffer, position, origin = b"", 0, seeker.tell()

        def fetch(needed: int) -> None:
            # Drops what was parsed; afterwards `needed` bytes are there from position 0.
            nonlocal buffer, position, origin
            rest = buffer[position:]
            origin += position
            more = max(needed - len(rest), seeker.buffered)
            buffer, position = rest + seeker.read(more, f"tensor info {len(infos)} of {count}"), 0

        for number in range(count):
            if position + width > len(buffer):
                fetch(width)
            (length,) = size_t(buffer, position)
            if length > limit:
                raise TruncatedError(
                    f"tensor info {number} at byte {origin + position}: name of {length} bytes, "
                    f"file has {seeker.size}: download incomplete?"
                )
            if length > MAX_STRING_SIZE:
                raise FormatError(
                    f"tensor info {number} at byte {origin + position}: name of {length} bytes, at most "
                    f"{MAX_STRING_SIZE} are read"
                )
            end = position + width + length
            # Enough for any number of dimensions, but no more than there is at the end of the header.
            if end + longest > len(buffer):
                fetch(width + length + 4)
                end = width + length
            name = buffer[end - length : end].decode("utf-8", "surrogateescape")
            (n_dims,) = u32(buffer, end)
            if n_dims > MAX_DIMS:
                raise FormatError(
                    f"{shown(name)}: {n_dims} dimensions, at most {MAX_DIMS} (tensor info at byte {origin + position})"
                )
            stop = end + sizes[n_dims]
            if stop > len(buffer):
                fetch(width + length + sizes[n_dims])
                end, stop = width + length, width + length + sizes[n_dims]
            if name in infos:
                raise FormatError(
                    f"{shown(name)}: two tensors of that name (second tensor info at byte {origin + position})"
                )
            infos[name] = info = buffer[end + 4 : stop]
            stored[n_dims].append(info)
            position = stop
        return TensorInfos(infos, self.info_tails), stored, origin + position

    def is_sound(self, stored: list[list[bytes]], alignment: int, data_offset: int) -> bool:
        """Whether `check_data` will certainly find nothing wrong: all tensors at once, in numpy.

        False also where only numbers of any size could tell.
        """
        order, ne = (">" if self.byte_order == "big" else "<"), (4 if self.version == 1 else 8)
        starts, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for n_dims, infos in enumerate(stored):
            if not infos:
                continue
            fields = [("ne", f"{order}u{ne}", (n_dims,)), ("type", f"{order}u4"), ("offset", f"{order}u8")]
            table = np.frombuffer(b"".join(infos), fields)
            types, shapes = table["type"], table["ne"]
            if types.max() >= len(_BLOCK_SIZES) or table["offset"].max() > self.seeker.size:
                return False
            block_size = _BLOCK_SIZES[types]
            # As floats these cannot overflow, and up to 2**48 they are exact.
            elements = shapes.prod(axis=1, dtype=np.float64)
            if elements.max() > 1 << 48 or not elements.all() or not block_size.all():
                return False
            if n_dims and (shapes[:, 0] % block_size.astype(np.uint64)).any():
                return False
            if not n_dims and (block_size > 1).any():
                return False
            starts.append(table["offset"].astype(np.int64))
            sizes.append(elements.astype(np.int64) // block_size * _TYPE_SIZES[types])
        start = np.concatenate(starts)
        by_place = start.argsort()
        start, end = start[by_place], (start + np.concatenate(sizes))[by_place]
        return bool(
            not len(start)
            or (
                (start % alignment == 0).all()
                and (start[1:] >= end[:-1]).all()
                and end[-1] <= self.seeker.size - data_offset
            )
        )


def check_data(header: Header, size: int) -> None:
    """In a file of `size` bytes, every tensor has whole blocks, is aligned, lies inside and overlaps no other."""
    available = max(size - header.data_offset, 0)
    furthest, in_order = 0, True
    for info in header.tensors.values():
        ne, offset = info.ne, info.offset
        if offset % header.alignment:
            text = f"offset {offset} is not a multiple of the alignment {header.alignment}"
            raise FormatError(problem(header, info, text))
        nbytes = 0
        if (sizes := _SIZES.get(info.type)) is not None:
            block_size, type_size = sizes
            row = ne[0] if ne else 1
            if row % block_size:
                type_name = GGMLType(info.type).name
                text = f"row of {row} elements is not a multiple of {type_name}'s block size {block_size}"
                raise FormatError(problem(header, info, text))
            nbytes = math.prod(ne) // block_size * type_size
            # An empty tensor too: numpy refuses shapes whose other dimensions alone are too large, as float64 too.
            if not nbytes and math.prod(n for n in ne if n) * max(type_size, 8) > _MAX_INT:
                raise FormatError(problem(header, info, f"dimensions {ne} are beyond 64 bits"))
        if offset + nbytes > available:
            needed = header.data_offset + offset + nbytes
            text = f"dimensions {ne} at offset {offset}: needs {needed} bytes, file has {size}: download incomplete?"
            raise TruncatedError(problem(header, info, text))
        if nbytes:
            in_order = in_order and offset >= furthest
            furthest = max(furthest, offset + nbytes)
    if not in_order:
        check_overlaps(header)


def check_overlaps(header: Header) -> None:
    """No two tensors share bytes."""
    sized = (info for info in header.tensors.values() if info.type in _SIZES and info.nbytes)
    for info, other in itertools.pairwise(sorted(sized, key=lambda info: (info.offset, info.nbytes, info.name))):
        end = info.offset + info.nbytes
        if other.offset < end:
            text = f"begins at offset {other.offset}, inside {shown(info.name)}, which ends at {end}"
            raise FormatError(problem(header, other, text))


def problem(header: Header, info: TensorInfo, text: str) -> str:
    """A message about a tensor, with the place of its info."""
    positions = zip(header.tensors, header.info_positions(), strict=False)
    position = next(position for name, position in positions if name == info.name)
    return f"{shown(info.name)}: {text} (tensor info at byte {position})"
