"""The table of GGUF files that drives the tests of the reader and of the writer.

A `Case` says what is in a file as plain Python data, and makes the file's bytes through an encoder of its own
that shares no code with the package: the reader is tested from those bytes, the writer against them.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmgguf.format.values import TypedValue
from mmgguf.types import LAYOUTS, ByteOrder, GGMLType, ValueType

_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


def _undecodable(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


#: Every scalar type with values that show its width, its sign and its limits.
NUMBERS: dict[ValueType, list[Any]] = {
    ValueType.UINT8: [0, 1, 0x12, 255],
    ValueType.INT8: [0, -1, 127, -128],
    ValueType.UINT16: [0, 0x1234, 65535],
    ValueType.INT16: [-2, 0x1234, 32767, -32768],
    ValueType.UINT32: [0x12345678, 0, (1 << 32) - 1],
    ValueType.INT32: [-3, 0x12345678, -(1 << 31), (1 << 31) - 1],
    ValueType.FLOAT32: [1.5, -0.0, math.inf, -math.inf, 2.0**-149],
    ValueType.BOOL: [True, False, True],
    ValueType.UINT64: [0x123456789ABCDEF0, 0, (1 << 64) - 1],
    ValueType.INT64: [-4, 0x123456789ABCDEF0, -(1 << 63), (1 << 63) - 1],
    ValueType.FLOAT64: [0.1, -0.0, math.inf, 5e-324],
}

#: Strings that are hard on a reader.  The lengths 255 and 256 lie on both sides of a length prefix whose
#: second byte is zero; strings of zeros and of little numbers look like length prefixes themselves.
STRINGS: dict[str, str] = {
    "empty": "",
    "ascii": "hello world",
    "unicode": "naïve — Ω 漢字 🦙 \u202e",
    "nul": "a\0b\0",
    "only_nul": "\0" * 9,
    "looks_like_a_prefix": "\x03" + "\0" * 7 + "abc",
    "lone_bytes": _undecodable(b"\xff\xfe\x80 caf\xe9"),
    "cut_utf8": _undecodable("漢".encode()[:2]),
    "encoded_surrogate": _undecodable(b"\xed\xa0\x80"),
    "newlines": "a\r\nb\tc\x1b[31m",
    "length_255": "x" * 255,
    "length_256": "y" * 256,
    "length_257": "z" * 257,
    "length_65536": "é" * 32768,
    "long": "long " * 30_000,
}


BOTH = frozenset({"c", "pip"})
ONLY_C = frozenset({"c"})
ONLY_PIP = frozenset({"pip"})
NEITHER: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a case: `raw` is its data in a little-endian file."""

    type: GGMLType
    shape: tuple[int, ...]
    raw: bytes = field(repr=False)

    def stored(self, byte_order: ByteOrder) -> bytes:
        """Its data in a file of that byte order."""
        if byte_order == "little":
            return self.raw
        return np.frombuffer(self.raw, LAYOUTS[self.type].dtype).byteswap().tobytes()

    @property
    def blocks(self) -> np.ndarray[Any, Any]:
        """The stored form, little-endian, as `Tensor.data` and the writer have it."""
        layout = LAYOUTS[self.type]
        shape = (*self.shape[:-1], self.shape[-1] // layout.block_size) if self.shape else ()
        return np.frombuffer(self.raw, layout.dtype).reshape(shape)


@dataclass(frozen=True)
class Case:
    """A file as Python data: the metadata's values are those that a reader gives, arrays as lists.

    `peers` are those who read it too: ``"c"``, the C library, and ``"pip"``, the package gguf.
    """

    id: str
    metadata: dict[str, TypedValue] = field(default_factory=dict, repr=False)
    tensors: dict[str, StoredTensor] = field(default_factory=dict, repr=False)
    alignment: int = 32
    byte_order: ByteOrder = "little"
    peers: frozenset[str] = BOTH

    def swapped(self) -> Case:
        """The same in a big-endian file."""
        return replace(self, id=self.id + "-big", byte_order="big", peers=self.peers & ONLY_PIP)

    @property
    def offsets(self) -> dict[str, int]:
        """Where each tensor begins in the data section."""
        offsets, position = {}, 0
        for name, tensor in self.tensors.items():
            offsets[name] = position
            position += -(-len(tensor.raw) // self.alignment) * self.alignment
        return offsets

    def header(self, version: int = 3) -> bytes:
        """The file up to the end of the tensor infos, without padding."""
        order = "<" if self.byte_order == "little" else ">"
        size = order + ("I" if version == 1 else "Q")

        def string(text: str) -> bytes:
            raw = text.encode("utf-8", "surrogateescape")
            return struct.pack(size, len(raw)) + raw

        def scalar(type_: ValueType, value: Any) -> bytes:
            return string(value) if type_ is ValueType.STRING else struct.pack(order + _CODES[type_], value)

        out = [b"GGUF", struct.pack(order + "I", version)]
        out += [struct.pack(size, len(self.tensors)), struct.pack(size, len(self.metadata))]
        for key, typed in self.metadata.items():
            out += [string(key), struct.pack(order + "I", typed.type)]
            if typed.element_type is None:
                out.append(scalar(typed.type, typed.value))
            else:
                out += [struct.pack(order + "I", typed.element_type), struct.pack(size, len(typed.value))]
                out += [scalar(typed.element_type, item) for item in typed.value]
        for name, tensor in self.tensors.items():
            out += [string(name), struct.pack(order + "I", len(tensor.shape))]
            out += [struct.pack(size, n) for n in reversed(tensor.shape)]
            out += [struct.pack(order + "IQ", tensor.type, self.offsets[name])]
        return b"".join(out)

    def write(self, folder: Path) -> Path:
        """Make the file in a folder, named for the case."""
        path = folder / f"{self.id}.gguf"
        path.write_bytes(self.encoded())
        return path

    def encoded(self, version: int = 3) -> bytes:
        """The whole file, its tail padded to the alignment."""
        out = bytearray(self.header(version))
        for raw in (b"", *(tensor.stored(self.byte_order) for tensor in self.tensors.values())):
            out += raw
            out += bytes(-len(out) % self.alignment)
        return bytes(out)

    @property
    def data_offset(self) -> int:
        """Where the data section of the version 3 file begins."""
        return -(-len(self.header()) // self.alignment) * self.alignment


def array(element_type: ValueType, values: list[Any]) -> TypedValue:
    return TypedValue(values, ValueType.ARRAY, element_type)


def random_tensor(type_: GGMLType, blocks: tuple[int, ...], seed: int = 0) -> StoredTensor:
    """Random block bytes, every bit pattern included; `blocks` is the shape in blocks."""
    layout = LAYOUTS[type_]
    size = math.prod(blocks) * layout.type_size
    raw = np.random.default_rng((int(type_), seed)).integers(0, 256, size, np.uint8).tobytes()
    return StoredTensor(type_, (*blocks[:-1], blocks[-1] * layout.block_size), raw)


def _scalars() -> dict[str, TypedValue]:
    return {
        f"number.{type_.name.lower()}.{i}": TypedValue(value, type_)
        for type_, values in NUMBERS.items()
        for i, value in enumerate(values)
    }


def _strings() -> dict[str, TypedValue]:
    return {f"string.{name}": TypedValue(text, ValueType.STRING) for name, text in STRINGS.items()}


def _arrays() -> dict[str, TypedValue]:
    arrays = {f"array.{t.name.lower()}": array(t, values * 3) for t, values in NUMBERS.items()}
    arrays["array.string"] = array(ValueType.STRING, list(STRINGS.values()))
    return arrays


def _empty_arrays() -> dict[str, TypedValue]:
    return {f"array.{t.name.lower()}": array(t, []) for t in ValueType if t is not ValueType.ARRAY}


def _vocabulary(n: int) -> dict[str, TypedValue]:
    """Arrays as a tokenizer has them: short strings, here and there an odd one."""
    odd = list(STRINGS.values())[:-2]
    tokens = [odd[i // 97 % len(odd)] if i % 97 == 0 else f"tök{i:x}"[: 1 + i % 7] for i in range(n)]
    return {
        "general.architecture": TypedValue("llama", ValueType.STRING),
        "tokenizer.ggml.model": TypedValue("gpt2", ValueType.STRING),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [-i / 4 for i in range(n)]),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [1 + i % 5 for i in range(n)]),
        "tokenizer.ggml.after": TypedValue(7, ValueType.UINT32),
    }


def _aligned(alignment: int) -> Case:
    metadata = {} if alignment == 32 else {"general.alignment": TypedValue(alignment, ValueType.UINT32)}
    tensors = {
        f"t{size}": random_tensor(GGMLType.I8, (size,)) for size in (1, 7, alignment - 1, alignment, alignment + 1, 3)
    }
    return Case(f"alignment-{alignment}", metadata, tensors, alignment)


_ALL_TYPES = {f"blk.0.{t.name.lower()}.weight": random_tensor(t, (3, 2)) for t in GGMLType}
_IN_C = {name: t for name, t in _ALL_TYPES.items() if t.type is not GGMLType.Q2_0}

_LITTLE = [
    Case("empty"),
    Case("scalars", _scalars()),
    Case("strings", _strings()),
    Case("arrays", _arrays()),
    Case("empty-arrays", _empty_arrays()),
    Case("vocabulary", _vocabulary(1000)),
    Case(
        "keys",
        {
            "a": TypedValue(1, ValueType.UINT8),
            "Upper-Case.and-dashes": TypedValue(2, ValueType.UINT8),
            "schlüssel.漢": TypedValue(3, ValueType.UINT8),
            "k" * 255: TypedValue(4, ValueType.UINT8),
            "k" * 256: TypedValue(5, ValueType.UINT8),
            "k" * 65535: TypedValue(6, ValueType.UINT8),
        },
    ),
    # pip's gguf decodes names and keys strictly.
    Case("undecodable-key", {_undecodable(b"\xff"): TypedValue(1, ValueType.UINT8)}, peers=ONLY_C),
    Case(
        "undecodable-name",
        {},
        {
            _undecodable(b"w\xfe"): random_tensor(GGMLType.F32, (2,)),
            _undecodable(b"w\xff"): random_tensor(GGMLType.F32, (3,)),
        },
        peers=ONLY_C,
    ),
    Case("all-types", {"general.architecture": TypedValue("test", ValueType.STRING)}, _IN_C),
    # Newer than the libraries that the tests have.
    Case("newest-types", {}, {"q2_0": random_tensor(GGMLType.Q2_0, (3, 2))}, peers=NEITHER),
    Case(
        "dimensions",
        {},
        {
            "one": random_tensor(GGMLType.F32, (5,)),
            "two": random_tensor(GGMLType.F16, (3, 5)),
            "three": random_tensor(GGMLType.Q4_0, (2, 3, 1)),
            "four": random_tensor(GGMLType.Q4_K, (2, 1, 3, 2)),
            "ones": random_tensor(GGMLType.F32, (1, 1, 1, 1)),
            "single": random_tensor(GGMLType.F64, (1,)),
            "n" * 63: random_tensor(GGMLType.I16, (7,)),
        },
    ),
    # ggml's own limit for names is 63 bytes, the specification's 64.
    Case("longest-name", {}, {"n" * 64: random_tensor(GGMLType.F32, (2,))}, peers=ONLY_PIP),
    Case(
        "no-dimensions",
        {},
        {"scalar": StoredTensor(GGMLType.F32, (), struct.pack("<f", 1.25))},
    ),
    Case(
        "zero-size",
        {},
        {
            "before": random_tensor(GGMLType.F32, (3,)),
            "none": random_tensor(GGMLType.F32, (0,)),
            "no_columns": random_tensor(GGMLType.Q8_0, (3, 0)),
            "after": random_tensor(GGMLType.I8, (3,)),
        },
    ),
    # The C library divides by every dimension but the first: it dies of these.
    Case(
        "zero-rows",
        {},
        {
            "no_rows": random_tensor(GGMLType.Q4_K, (0, 1)),
            "after": random_tensor(GGMLType.I8, (3,)),
            "last": random_tensor(GGMLType.F16, (2, 0, 4)),
        },
        peers=ONLY_PIP,
    ),
    *(_aligned(1 << power) for power in range(3, 13)),
]

_BIG = ("empty", "scalars", "strings", "arrays", "empty-arrays", "vocabulary", "all-types", "dimensions")

#: Every file of the table; the ids are unique.
CASES: list[Case] = [*_LITTLE, *(case.swapped() for case in _LITTLE if case.id in _BIG)]
BY_ID: dict[str, Case] = {case.id: case for case in CASES}
