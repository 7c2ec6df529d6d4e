"""GGUF files as bytes, put together field by field, wrong ones as readily as right ones.

Shares no code with the package.  Every integer field is recorded with its place, so that a fuzzer can overwrite it.

>>> b = Build(version=3, byte_order="little").start(tensors=0, pairs=1)
>>> bytes(b.number(b"answer", UINT8, 42))[:4]
b'GGUF'
"""

from __future__ import annotations

import struct
from typing import Any, Final, Literal, NamedTuple, Self

ByteOrder = Literal["little", "big"]

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)

#: By value type: the format character of `struct`.
CODES: Final = dict(enumerate("BbHhIif?")) | {UINT64: "Q", INT64: "q", FLOAT64: "d"}

F32, F16, Q4_0, Q8_0, Q4_K, I8, BF16 = 0, 1, 2, 8, 12, 24, 30

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1


class Field(NamedTuple):
    """An integer field: where it begins, how many bytes it has, and what it is."""

    position: int
    width: int
    what: str


class Build:
    """A growing file.  Each method appends and returns the builder; `bytes` gives the result.

    Numbers that are too large for their field are cut, so that one case serves versions with narrow and wide fields.
    """

    def __init__(self, version: int = 3, byte_order: ByteOrder = "little", magic: bytes = b"GGUF") -> None:
        self.version = version
        self.byte_order: ByteOrder = byte_order
        self.fields: list[Field] = []
        self.out = bytearray(magic)
        #: Bytes of a length or count: version 1 has narrow ones.
        self.width = 4 if version == 1 else 8
        self.integer(version, 4, "version")

    def __bytes__(self) -> bytes:
        return bytes(self.out)

    def __len__(self) -> int:
        return len(self.out)

    # Pieces.

    def raw(self, data: bytes) -> Self:
        self.out += data
        return self

    def integer(self, value: int, width: int, what: str) -> Self:
        self.fields.append(Field(len(self.out), width, what))
        return self.raw((value & ((1 << 8 * width) - 1)).to_bytes(width, self.byte_order))

    def size(self, value: int, what: str) -> Self:
        """A count or a length: u64, in version 1 u32."""
        return self.integer(value, self.width, what)

    def string(self, data: bytes, length: int | None = None, what: str = "string length") -> Self:
        return self.size(len(data) if length is None else length, what).raw(data)

    def scalar(self, type_: int, value: Any) -> Self:
        return self.raw(struct.pack((">" if self.byte_order == "big" else "<") + CODES[type_], value))

    # Whole parts of a header.

    def start(self, tensors: int, pairs: int) -> Self:
        """The two counts that follow magic and version."""
        return self.size(tensors, "tensor count").size(pairs, "pair count")

    def pair(self, key: bytes, type_: int) -> Self:
        """Key and value type; the value is up to the caller."""
        return self.string(key, what="key length").integer(type_, 4, "value type")

    def number(self, key: bytes, type_: int, value: Any) -> Self:
        return self.pair(key, type_).scalar(type_, value)

    def text(self, key: bytes, value: bytes) -> Self:
        return self.pair(key, STRING).string(value)

    def array(self, key: bytes, element_type: int, count: int, payload: bytes = b"") -> Self:
        self.pair(key, ARRAY).integer(element_type, 4, "element type")
        return self.size(count, "array length").raw(payload)

    def texts(self, key: bytes, values: list[bytes]) -> Self:
        """An array of strings."""
        self.array(key, STRING, len(values))
        for value in values:
            self.string(value)
        return self

    def numbers(self, key: bytes, type_: int, values: list[Any]) -> Self:
        """An array of numbers."""
        self.array(key, type_, len(values))
        for value in values:
            self.scalar(type_, value)
        return self

    def tensor(self, name: bytes, ne: list[int], type_: int = F32, offset: int = 0, n_dims: int | None = None) -> Self:
        """A tensor info."""
        self.string(name, what="name length").integer(len(ne) if n_dims is None else n_dims, 4, "dimensions")
        for n in ne:
            self.size(n, "ne")
        return self.integer(type_, 4, "ggml type").integer(offset, 8, "offset")

    def pad(self, alignment: int = 32, fill: bytes = b"\0") -> Self:
        return self.raw(fill * (-len(self.out) % alignment))

    def data(self, *parts: bytes, alignment: int = 32) -> Self:
        """Padding, and the data section: each part padded to the alignment."""
        self.pad(alignment)
        for part in parts:
            self.raw(part).pad(alignment)
        return self


def small(version: int = 3, byte_order: ByteOrder = "little") -> Build:
    """A valid little file with every kind of field."""
    b = Build(version, byte_order).start(tensors=2, pairs=5)
    b.text(b"general.architecture", b"llama").number(b"llama.block_count", UINT32, 1)
    b.texts(b"tokenizer.ggml.tokens", [b"a", b"", b"hello", b"x" * 300])
    b.numbers(b"tokenizer.ggml.scores", FLOAT32, [0.5, -1.0, 2.0, 0.0])
    b.number(b"general.quantization_version", UINT32, 2)
    b.tensor(b"blk.0.w", [32, 2], Q8_0, 0).tensor(b"out", [3], F32, 96)
    order = ">" if byte_order == "big" else "<"
    blocks = struct.pack(order + "e32b", 0.5, *range(32)) + struct.pack(order + "e32b", 2.0, *range(-32, 0))
    return b.data(blocks, struct.pack(order + "3f", 1.0, 2.0, 3.0))
