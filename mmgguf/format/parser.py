"""Parse the header of a GGUF file.

Nothing is allocated on the word of the file: every count is first compared with the bytes that remain, divided by
the least that one item can take.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import DuplicateKeyError, FormatError, NotGGUFError, TruncatedError, VersionError, shown
from ..types import ByteOrder, ValueType, align
from .checks import check_data, is_sound
from .constants import DEFAULT_ALIGNMENT, LEGACY_MAGICS, MAGIC, MAGIC_REVERSED, MAX_DIMS, MAX_DIMS_READ, MAX_STRING_SIZE
from .header import Header, TensorInfo, TensorInfos
from .infos import ordinary_infos
from .metadata import ArrayInfo, ArraySource, Metadata, RetainedArrays
from .records import records_of
from .seeker import DEFAULT_BUFFER_SIZE, BufferedSeeker
from .strings import decode, encoded_size, scan
from .values import NUMBERS

__all__ = ["parse_header"]

_VERSIONS: Final = (1, 2, 3)
_READABLE: Final = "versions 1, 2 and 3 can be read"
#: Bytes that a tensor info takes, with something to spare.
_ORDINARY: Final = 96
_VALUE_TYPES: Final[dict[int, ValueType]] = {int(t): t for t in ValueType}


def parse_header(
    file: Any,
    source: ArraySource | None = None,
    *,
    size: float | None = None,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
    path: str = "",
) -> Header:
    """Parse the header of a file, from its first byte on.

    Parameters
    ----------
    file : binary file object
        As `BufferedSeeker` takes it; afterwards its position is somewhere behind the header.
    source : ArraySource, optional
        Gives the bytes of metadata arrays when they are touched; `RetainedArrays` are given them now.  Without it
        these arrays cannot be read.
    size : int or math.inf, optional
        Bytes of the whole file, which tensors have to lie in; by default those that the file object has.
    buffer_size : int, default 65536
        Bytes to fetch at a time.
    path : str, optional
        Where the file is, for the errors of its metadata.

    Raises
    ------
    GGUFError
        The bytes are not a GGUF header; `mmgguf.errors` has the kinds.
    """
    seeker = BufferedSeeker(file, buffer_size)
    return _Parser(seeker, source, path).header(seeker.size if size is None else size)


class _Parser:
    def __init__(self, seeker: BufferedSeeker, source: ArraySource | None, path: str) -> None:
        self.seeker = seeker
        self.source = source
        self.path = path
        self.retained = source if isinstance(source, RetainedArrays) else None
        self.version, self.byte_order = self._version()
        self.records = records = records_of(self.byte_order, 4 if self.version == 1 else 8)
        self.chain, self.size_t, self.u32 = records.chain, records.size_t, records.u32

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

    def header(self, size: float) -> Header:
        tensor_count = self.size("tensor count")
        kv_count = self.size("metadata key-value count")
        width = self.size_t.size
        # A pair has at least a key of one byte, a value type and a byte; a tensor the length of a name, n_dims, type
        # and offset.
        self.require(kv_count, width + 6, "metadata key-value count")
        self.require(tensor_count, width + 16, "tensor count")
        metadata = self.metadata(kv_count)
        alignment = self.alignment(metadata)
        infos, nbytes = self.tensor_infos(tensor_count)
        data_offset = align(nbytes, alignment)
        header = Header(self.version, self.byte_order, metadata, infos, alignment, data_offset, nbytes)
        if not is_sound(infos, header, self.records, size):
            check_data(header, size)
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
        return Metadata(values, types, self.chain, self.source, self.path)

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
        return self.seeker.unpack(self.records.numbers[type_], what)[0]

    def array(self, what: str) -> ArrayInfo:
        seeker = self.seeker
        number, count = seeker.unpack(self.records.array_head, what)
        offset = seeker.tell()
        element_type = _VALUE_TYPES.get(number)
        if element_type is None:
            where = offset - self.records.array_head.size
            raise FormatError(f"{what}: element: value type {number} at byte {where}, the last one is 12")
        if element_type is ValueType.ARRAY:
            where = offset - self.records.array_head.size
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

    def tensor_infos(self, count: int) -> tuple[TensorInfos, int]:
        """The tensor infos by name, and where in the file they end.

        Parsed from what the seeker has buffered, in place: as many at a time as look alike, the others one by one.
        """
        seeker, records = self.seeker, self.records
        size_t, u32 = records.size_t.unpack_from, records.u32.unpack_from
        width, limit = records.width, seeker.size
        sizes = [16 + n * width for n in range(MAX_DIMS_READ + 1)]
        longest = sizes[MAX_DIMS]
        infos: dict[str, int | TensorInfo] = {}
        parsed: list[bytes] = []
        buffer, position, origin = b"", 0, seeker.tell()
        beginning, is_new = origin, False

        def fetch(needed: int) -> None:
            # Puts aside what was parsed; afterwards `needed` bytes are there from position 0.
            nonlocal buffer, position, origin, is_new
            rest = buffer[position:]
            parsed.append(buffer[:position])
            origin += position
            left, what = count - len(infos), f"tensor info {len(infos)} of {count}"
            more = max(needed - len(rest), min(seeker.buffered, left * _ORDINARY))
            buffer, position = rest + seeker.read(more, what), 0
            is_new = True

        while (number := len(infos)) < count:
            if position + width > len(buffer):
                fetch(width)
            if is_new:
                several, places, stop = ordinary_infos(buffer, position, count - number, records)
                if len(several) == count:  # as in most files; `origin` is `beginning` still
                    stored = buffer[:stop] + bytes(8 * MAX_DIMS_READ)
                    return TensorInfos(several, stored, records, places), origin + stop
                if several and infos.keys().isdisjoint(several):
                    before = origin - beginning
                    infos.update((name, before + end) for name, end in several.items())
                    position = stop
                    continue
                is_new = False  # once for each buffer: where many are odd, little is done twice
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
            name = decode(buffer[end - length : end])
            (n_dims,) = u32(buffer, end)
            if n_dims > MAX_DIMS_READ:
                raise FormatError(
                    f"{shown(name)}: {n_dims} dimensions, at most {MAX_DIMS_READ} are read "
                    f"(GGML_MAX_DIMS is {MAX_DIMS}); tensor info at byte {origin + position}"
                )
            stop = end + sizes[n_dims]
            if stop > len(buffer):
                fetch(width + length + sizes[n_dims])
                end, stop = width + length, width + length + sizes[n_dims]
            if name in infos:
                raise FormatError(
                    f"{shown(name)}: two tensors of that name (second tensor info at byte {origin + position})"
                )
            infos[name] = origin - beginning + end
            position = stop
        # With something behind, so that all dimensions that there may be can be looked at in each.
        parsed += buffer[:position], bytes(8 * MAX_DIMS_READ)
        return TensorInfos(infos, b"".join(parsed), records), origin + position
