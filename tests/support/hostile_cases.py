"""The table of broken and odd files: bytes, the error that they must give, and a pattern of its message.

A case without an error is accepted, and its `check` says what the result has to be.  Each is built for every version
and byte order that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmgguf import Header
from mmgguf.errors import DuplicateKeyError, FormatError, GGUFError, NotGGUFError, TruncatedError, VersionError

from . import build
from .build import ARRAY, F32, I8, INT32, Q4_0, Q4_K, Q8_0, STRING, U32_MAX, U64_MAX, UINT8, UINT32, UINT64, Build

ORDERS: tuple[build.ByteOrder, ...] = ("little", "big")
INCOMPLETE = "download incomplete"


@dataclass(frozen=True)
class Hostile:
    """One row of the table."""

    id: str
    make: Callable[[Build], object]
    error: type[GGUFError] | None
    match: str = ""
    check: Callable[[Header], None] | None = None
    versions: tuple[int, ...] = (1, 2, 3)
    orders: tuple[build.ByteOrder, ...] = ORDERS

    def examples(self) -> Iterator[bytes]:
        """The row for each version and byte order."""
        for version in self.versions:
            for order in self.orders:
                b = Build(version, order)
                self.make(b)
                yield bytes(b)


def raw(data: bytes) -> Callable[[Build], object]:
    """A case of given bytes, whatever the version."""

    def make(b: Build) -> None:
        b.out[:] = data

    return make


def once(id_: str, data: bytes, error: type[GGUFError] | None, match: str) -> Hostile:
    return Hostile(id_, raw(data), error, match, versions=(3,), orders=("little",))


def no_tensors(pairs: Callable[[Build], object], count: int = 1) -> Callable[[Build], object]:
    """A file of metadata alone."""
    return lambda b: pairs(b.start(tensors=0, pairs=count))


def one_tensor(ne: list[int], type_: int = F32, offset: int = 0, name: bytes = b"w") -> Callable[[Build], object]:
    """A file with one tensor and 256 bytes of data section."""
    return lambda b: b.start(tensors=1, pairs=0).tensor(name, ne, type_, offset).data(bytes(256))


def tensors(*infos: tuple[bytes, list[int], int, int], data: int = 256) -> Callable[[Build], object]:
    def make(b: Build) -> None:
        b.start(tensors=len(infos), pairs=0)
        for info in infos:
            b.tensor(*info)
        b.data(bytes(data))

    return make


def aligned(type_: int, value: int | bytes) -> Callable[[Build], object]:
    """A file whose alignment is stored as that value of that type."""

    def make(b: Build) -> None:
        b.start(tensors=0, pairs=1).pair(b"general.alignment", type_)
        if isinstance(value, bytes):
            b.string(value)
        else:
            b.scalar(type_, value)

    return make


def lists(key: str, expected: object) -> Callable[[Header], None]:
    """A check: the metadata has this key with this value."""

    def check(header: Header) -> None:
        value = header.metadata[key]
        assert (list(value) if isinstance(expected, list) else value) == expected
        assert list(header.metadata) == [key]

    return check


def has(name: str, ne: tuple[int, ...], type_: int, nbytes: int | None) -> Callable[[Header], None]:
    """A check: the header has this tensor alone."""

    def check(header: Header) -> None:
        (info,) = header.tensors.values()
        assert (info.name, info.ne, info.type) == (name, ne, type_)
        assert info.shape == ne[::-1]
        if nbytes is not None:
            assert info.nbytes == nbytes

    return check


def data_offset(alignment: int) -> Callable[[Header], None]:
    def check(header: Header) -> None:
        assert header.alignment == alignment
        assert header.data_offset % alignment == 0
        assert 0 <= header.data_offset - header.nbytes < alignment

    return check


# Counts and lengths that no file has: (id, value, versions).  In version 1 these fields have 32 bits.
HUGE = [
    ("2^64-1", U64_MAX, (2, 3)),
    ("2^63", 1 << 63, (2, 3)),
    ("2^63-1", (1 << 63) - 1, (2, 3)),
    ("2^61", 1 << 61, (2, 3)),  # times eight it wraps to nothing
    ("2^32-1", U32_MAX, (1, 2, 3)),
    ("2^31", 1 << 31, (1, 2, 3)),
]

MAGICS = [
    once("empty", b"", TruncatedError, f"needs 4 bytes, file has 0: {INCOMPLETE}"),
    once("one-byte", b"G", TruncatedError, f"needs 4 bytes, file has 1: {INCOMPLETE}"),
    once("two-bytes", b"GG", TruncatedError, f"needs 4 bytes, file has 2: {INCOMPLETE}"),
    once("three-bytes", b"GGU", TruncatedError, f"needs 4 bytes, file has 3: {INCOMPLETE}"),
    once("other-byte", b"P", NotGGUFError, "not a GGUF file: begins with b'P'"),
    once("magic-alone", b"GGUF", TruncatedError, r"version: needs 4 bytes at byte 4, 0 there \(file has 4\)"),
    once("zip", b"PK\x03\x04" + bytes(60), NotGGUFError, r"not a GGUF file: begins with b'PK\\x03\\x04', not b'GGUF'"),
    once("lower-case", b"gguf" + bytes(60), NotGGUFError, "not a GGUF file"),
    once("zeros", bytes(64), NotGGUFError, "not a GGUF file"),
    once("ggml", b"lmgg" + bytes(60), NotGGUFError, "ggml file, a format from before GGUF: convert"),
    once("ggmf", b"fmgg" + bytes(60), NotGGUFError, "ggmf file, a format from before GGUF: convert"),
    once("ggjt", b"tjgg" + bytes(60), NotGGUFError, "ggjt file, a format from before GGUF: convert"),
    once("ggla", b"algg" + bytes(60), NotGGUFError, "ggla file, a format from before GGUF: convert"),
    once("version-0", b"GGUF" + bytes(60), VersionError, "version 0 at byte 4: versions 1, 2 and 3 can be read"),
    once("version-4", b"GGUF\x04" + bytes(60), VersionError, "version 4 at byte 4"),
    once("version-4-big", b"GGUF\0\0\0\x04" + bytes(60), VersionError, r"version 67108864 \(4 if big-endian\)"),
    once("version-2^31", b"GGUF\0\0\0\x80" + bytes(60), VersionError, "version 2147483648 "),
    once("version-2^32-1", b"GGUF\xff\xff\xff\xff" + bytes(60), VersionError, "version 4294967295 at byte 4"),
    Hostile("magic-reversed", lambda b: b.start(0, 0).out.__setitem__(slice(4), b"FUGG"), None),
]

COUNTS = [
    *(
        Hostile(f"{what}-{name}", make, TruncatedError, rf"{what} count {value} .*remain .*{INCOMPLETE}", versions=v)
        for name, value, v in HUGE
        for what, make in (
            ("tensor", lambda b, value=value: b.start(tensors=value, pairs=0).raw(bytes(64))),
            ("key-value", lambda b, value=value: b.start(tensors=0, pairs=value).raw(bytes(64))),
        )
    ),
    Hostile("one-tensor-none-there", lambda b: b.start(1, 0), TruncatedError, "tensor count 1 .*0 remain"),
    Hostile("one-pair-none-there", lambda b: b.start(0, 1), TruncatedError, "key-value count 1 .*0 remain"),
    Hostile("nothing", lambda b: b.start(0, 0), None, check=data_offset(32)),
]


def _beyond(b: Build, kind: str, value: int) -> None:
    """A file that ends after a length that its end cannot hold, with ten bytes behind it."""
    if kind == "name":
        b.start(1, 0).size(value, kind).raw(bytes(10) + bytes(20))
        return
    b.start(0, 1)
    match kind:
        case "key":
            b.size(value, kind)
        case "string":
            b.pair(b"key", STRING).size(value, kind)
        case "string in an array":
            b.array(b"key", STRING, 1).size(value, kind)
        case "array of u8":
            b.array(b"key", UINT8, value)
        case "array of u64":
            b.array(b"key", UINT64, value)
        case "array of strings":
            b.array(b"key", STRING, value)
    b.raw(bytes(10))


_KINDS = {
    "key": "metadata key: length {}",
    "string": "key: length {}",
    "string in an array": "key",
    "array of u8": "key: array length {}",
    "array of u64": "key: array length {}",
    "array of strings": "key: array length {}",
    "name": "tensor info 0",
}

LENGTHS = [
    *(
        Hostile(
            f"{kind}-{name}".replace(" ", "-"),
            lambda b, kind=kind, value=value: _beyond(b, kind, value),
            TruncatedError,
            rf"(?s){where.format(value)}.*{INCOMPLETE}",
            versions=versions,
        )
        for kind, where in _KINDS.items()
        for name, value, versions in HUGE
    ),
    *(
        Hostile(
            f"{kind}-remaining-and-1".replace(" ", "-"),
            lambda b, kind=kind: _beyond(b, kind, 11 if kind != "name" else 31),
            TruncatedError,
            INCOMPLETE,
        )
        for kind in _KINDS
    ),
    Hostile(
        "a-billion-strings",
        lambda b: b.start(0, 1).array(b"k", STRING, 10**9),
        TruncatedError,
        "k: array length 1000000000 .* 0 remain",
    ),
    Hostile(
        "strings-cut",
        lambda b: b.start(0, 1).array(b"k", STRING, 3).string(b"one").string(b"two").raw(bytes(2)),
        TruncatedError,
        INCOMPLETE,
    ),
    Hostile(
        "last-string-too-long",
        lambda b: b.start(0, 1).array(b"k", STRING, 2).string(b"one").string(b"two", length=4),
        TruncatedError,
        r"k: string 1 of 2 ends at byte \d+, .* the file has \d+ bytes",
    ),
    Hostile(
        "empty-arrays",
        lambda b: b.start(0, 2).array(b"a", STRING, 0).array(b"b", UINT64, 0),
        None,
        check=lambda h: lists_equal(h, {"a": [], "b": []}),
    ),
]


def lists_equal(header: Header, expected: dict[str, list[object]]) -> None:
    assert {key: list(value) for key, value in header.metadata.items()} == expected


def _nested(depth: int) -> Callable[[Build], object]:
    def make(b: Build) -> None:
        b.start(0, 1).pair(b"deep", ARRAY)
        for _ in range(depth):
            b.integer(ARRAY, 4, "element type").size(1, "array length")
        b.integer(UINT8, 4, "element type").size(1, "array length").raw(b"\1")

    return make


TYPES = [
    *(
        Hostile(
            f"value-type-{t}",
            lambda b, t=t: b.start(0, 1).pair(b"key", t).raw(bytes(16)),
            FormatError,
            rf"key: value type {t} at byte \d+, the last one is 12",
        )
        for t in (13, 255, 1 << 31, U32_MAX)
    ),
    *(
        Hostile(
            f"element-type-{t}",
            lambda b, t=t: b.start(0, 1).array(b"key", t, 1).raw(bytes(16)),
            FormatError,
            rf"key: element: value type {t} at byte \d+, the last one is 12",
        )
        for t in (13, 255, 1 << 31, U32_MAX)
    ),
    *(
        Hostile(f"arrays-{depth}-deep", _nested(depth), FormatError, r"deep: array of arrays at byte \d+")
        for depth in (1, 2, 3000)
    ),
]


def _key(key: bytes) -> Callable[[Build], object]:
    return no_tensors(lambda b: b.number(key, UINT8, 7).raw(bytes(8)))


NAMES = [
    Hostile("empty-key", _key(b""), FormatError, r"metadata pair 0 at byte \d+: the key is empty"),
    Hostile(
        "duplicate-key",
        no_tensors(lambda b: b.number(b"a.b", UINT8, 1).number(b"c", UINT8, 1).number(b"a.b", UINT8, 2), 3),
        DuplicateKeyError,
        r"metadata pair 2 at byte \d+: the key a\.b was there before",
    ),
    Hostile(
        "duplicate-key-escapes",
        no_tensors(lambda b: b.number(b"\x1b[2J", UINT8, 1).number(b"\x1b[2J", UINT8, 2), 2),
        DuplicateKeyError,
        r"the key '\\x1b\[2J' was there before",
    ),
    Hostile(
        "duplicate-key-of-a-megabyte",
        no_tensors(lambda b: b.number(b"k" * (1 << 20), UINT8, 1).number(b"k" * (1 << 20), UINT8, 2), 2),
        DuplicateKeyError,
        r"^.{0,400}the key 'k{100}'… \(1048576 characters\) was there before$",
        versions=(3,),
    ),
    Hostile("nul-in-key", _key(b"a\0b"), None, check=lists("a\0b", 7)),
    Hostile(
        "keys-equal-up-to-a-nul",
        no_tensors(lambda b: b.number(b"a\0b", UINT8, 1).number(b"a\0c", UINT8, 2).number(b"a", UINT8, 3), 3),
        None,
        check=lambda h: assert_(dict(h.metadata) == {"a\0b": 1, "a\0c": 2, "a": 3}),
    ),
    Hostile("undecodable-key", _key(b"caf\xe9"), None, check=lists("caf\udce9", 7)),
    *(
        Hostile(
            f"name-of-{n}",
            one_tensor([2], name=b"n" * n),
            None,
            check=has("n" * n, (2,), F32, 8),
        )
        for n in (0, 63, 64, 65, 70_000)
    ),
    Hostile("nul-in-name", one_tensor([2], name=b"w\0x"), None, check=has("w\0x", (2,), F32, 8)),
    Hostile("undecodable-name", one_tensor([2], name=b"\xff\xfe"), None, check=has("\udcff\udcfe", (2,), F32, 8)),
    Hostile(
        "duplicate-name",
        tensors((b"w", [2], F32, 0), (b"v", [2], F32, 32), (b"w", [2], F32, 64)),
        FormatError,
        r"w: two tensors of that name \(second tensor info at byte \d+\)",
    ),
    Hostile(
        "duplicate-long-name",
        tensors((b"w" * 70_000, [2], F32, 0), (b"w" * 70_000, [2], F32, 64)),
        FormatError,
        r"^.{0,300}'w{100}'… \(70000 characters\): two tensors of that name.{0,100}$",
    ),
]


def assert_(condition: bool) -> None:
    assert condition


ALIGNMENTS = [
    Hostile("alignment-0", aligned(UINT32, 0), FormatError, "general.alignment: 0 is not a power of two"),
    Hostile("alignment-3", aligned(UINT32, 3), FormatError, "general.alignment: 3 is not a power of two"),
    Hostile("alignment-24", aligned(UINT32, 24), FormatError, "general.alignment: 24 is not a power of two"),
    Hostile("alignment-2^32-1", aligned(UINT32, U32_MAX), FormatError, "4294967295 is not a power of two"),
    Hostile("alignment-negative", aligned(INT32, -32), FormatError, "stored as INT32, must be UINT32"),
    Hostile("alignment-u64", aligned(UINT64, 32), FormatError, "stored as UINT64, must be UINT32"),
    Hostile("alignment-u8", aligned(UINT8, 32), FormatError, "stored as UINT8, must be UINT32"),
    Hostile("alignment-f32", aligned(build.FLOAT32, 32), FormatError, "stored as FLOAT32, must be UINT32"),
    Hostile("alignment-bool", aligned(build.BOOL, 1), FormatError, "stored as BOOL, must be UINT32"),
    Hostile("alignment-string", aligned(STRING, b"32"), FormatError, "stored as STRING, must be UINT32"),
    Hostile(
        "alignment-array",
        no_tensors(lambda b: b.numbers(b"general.alignment", UINT32, [32])),
        FormatError,
        "stored as ARRAY, must be UINT32",
    ),
    *(
        Hostile(f"alignment-{n}-accepted", aligned(UINT32, n), None, check=data_offset(n))
        for n in (1, 2, 4, 8, 64, 1 << 31)
    ),
    Hostile(
        "alignment-2^31-and-a-tensor",
        lambda b: b.start(1, 1).number(b"general.alignment", UINT32, 1 << 31).tensor(b"w", [2]).raw(bytes(256)),
        TruncatedError,
        r"w: .* needs 2147483656 bytes, file has \d+: download incomplete\? \(tensor info at byte \d+\)",
    ),
    Hostile(
        "alignment-2^31-and-an-empty-tensor",
        lambda b: b.start(1, 1).number(b"general.alignment", UINT32, 1 << 31).tensor(b"w", [0]),
        None,
        check=lambda h: assert_(h.tensors["w"].nbytes == 0 and h.data_offset == 1 << 31),
    ),
]

_WIDE = (2, 3)

DIMENSIONS = [
    *(
        Hostile(
            f"n_dims-{n}",
            lambda b, n=n: b.start(1, 0).tensor(b"w", [1] * min(n, 9), n_dims=n).data(bytes(64)),
            FormatError,
            rf"w: {n} dimensions, at most 8 are read \(GGML_MAX_DIMS is 4\); tensor info at byte \d+",
        )
        for n in (9, 1 << 31, U32_MAX)
    ),
    Hostile("n_dims-5", one_tensor([1, 2, 1, 1, 2]), None, check=has("w", (1, 2, 1, 1, 2), F32, 16)),
    Hostile("n_dims-8", one_tensor([1] * 8), None, check=has("w", (1,) * 8, F32, 4)),
    Hostile("n_dims-0", one_tensor([]), None, check=has("w", (), F32, 4)),
    Hostile("n_dims-0-of-blocks", one_tensor([], Q4_0), FormatError, "row of 1 elements is not .* Q4_0's"),
    *(
        Hostile(f"zero-dimension-{i}", one_tensor(ne, t), None, check=has("w", tuple(ne), t, 0))
        for i, (ne, t) in enumerate([([0], F32), ([4, 0], F32), ([0, 4], Q4_0), ([256, 0, 3], Q4_K), ([0] * 4, I8)])
    ),
    *(
        Hostile(
            f"wraps-{i}",
            one_tensor(ne, t),
            TruncatedError,
            r"w: dimensions \(.*needs \d+ bytes, file has",
            versions=_WIDE,
        )
        for i, (ne, t) in enumerate(
            [
                ([4194305, 4194305, 211106198978564], F32),
                ([(1 << 63) - 1, 2], I8),
                ([4, (1 << 30) - 1, (1 << 30) + 1], F32),
                ([1 << 63], I8),
                ([1 << 62], F32),
                ([1 << 32, 1 << 32], I8),
                ([1 << 16] * 4, F32),
                ([U64_MAX], I8),
                ([U64_MAX] * 4, I8),
                ([1 << 63], Q4_K),
            ]
        )
    ),
    Hostile("wraps-32-bits", one_tensor([1 << 16, 1 << 16], I8), TruncatedError, r"w: dimensions \(65536, 65536\)"),
    *(
        Hostile(
            f"empty-but-beyond-64-bits-{i}",
            one_tensor(ne, t),
            FormatError,
            r"w: dimensions \(.*\) are beyond 64 bits \(tensor info at byte \d+\)",
            versions=_WIDE,
        )
        for i, (ne, t) in enumerate(
            [
                ([1 << 63, 0], I8),
                ([0, U64_MAX], F32),
                ([0, (1 << 62) + 1], F32),
                ([1 << 62, 0], I8),
                ([256, 1 << 56, 0], Q4_K),
            ]
        )
    ),
]

ROWS = [
    Hostile(
        "row-of-33",
        one_tensor([33, 2], Q4_0),
        FormatError,
        r"w: row of 33 elements is not a multiple of Q4_0's block size 32 \(tensor info at byte \d+\)",
    ),
    Hostile("row-of-100", one_tensor([100, 256], Q4_K), FormatError, "row of 100 .* Q4_K's block size 256"),
    Hostile("row-of-1", one_tensor([1, 32], Q8_0), FormatError, "row of 1 .* Q8_0's block size 32"),
    *(
        Hostile(f"type-{t}", one_tensor([100, 3], t), None, check=has("w", (100, 3), t, None))
        for t in (4, 5, 31, 32, 33, 36, 37, 38, 43, 255, 1 << 31, U32_MAX)
    ),
]

OFFSETS = [
    Hostile(
        "offset-beyond",
        one_tensor([2], offset=1024),
        TruncatedError,
        r"w: dimensions \(2,\) at offset 1024: needs \d+ bytes, file has \d+: download incomplete",
    ),
    Hostile("offset-2^63", one_tensor([2], offset=1 << 63), TruncatedError, INCOMPLETE),
    *(
        # offset + size is a small number again in 64 bits: a view of the header, if that were believed.
        Hostile(f"offset-wraps-{i}", one_tensor([8], offset=(1 << 64) - 32 * i), TruncatedError, INCOMPLETE)
        for i in (1, 2, 4)
    ),
    Hostile(
        "offset-unaligned",
        one_tensor([2], offset=4),
        FormatError,
        r"w: offset 4 is not a multiple of the alignment 32 \(tensor info at byte \d+\)",
    ),
    Hostile(
        "offset-unaligned-huge", one_tensor([2], offset=U64_MAX), FormatError, "not a multiple of the alignment 32"
    ),
    Hostile("unknown-type-offset-beyond", one_tensor([2], 99, offset=1 << 40), TruncatedError, INCOMPLETE),
    Hostile("unknown-type-unaligned", one_tensor([2], 99, offset=5), FormatError, "not a multiple of the align"),
    Hostile(
        "overlap",
        tensors((b"v", [16], F32, 0), (b"w", [16], F32, 32)),
        FormatError,
        r"w: begins at offset 32, inside v, which ends at 64 \(tensor info at byte \d+\)",
    ),
    Hostile(
        "same-place", tensors((b"v", [16], F32, 0), (b"w", [16], F32, 0)), FormatError, "begins at offset 0, inside"
    ),
    Hostile(
        "inside-another",
        tensors((b"w", [4], F32, 64), (b"v", [64], F32, 0)),
        FormatError,
        "w: begins at offset 64, inside v, which ends at 256",
    ),
    Hostile(
        "overlap-later",
        tensors((b"a", [64], F32, 0), (b"b", [0], F32, 32), (b"c", [4], F32, 224)),
        FormatError,
        "c: begins at offset 224, inside a",
    ),
    Hostile(
        "sum-of-sizes-wraps",
        tensors((b"v", [1 << 62], I8, 0), (b"w", [1 << 62, 3], I8, 1 << 62), (b"x", [32], I8, 0)),
        TruncatedError,
        INCOMPLETE,
        versions=_WIDE,
    ),
    Hostile(
        "other-order-and-holes",
        tensors((b"v", [8], F32, 192), (b"w", [8], F32, 64)),
        None,
        check=lambda h: assert_([(i.name, i.offset) for i in h.tensors.values()] == [("v", 192), ("w", 64)]),
    ),
    Hostile(
        "empty-tensors-anywhere",
        tensors((b"a", [64], F32, 0), (b"b", [0], F32, 0), (b"c", [0], F32, 128), (b"d", [0], F32, 256)),
        None,
        check=lambda h: assert_(len(h.tensors) == 4),
    ),
    Hostile(
        "empty-tensor-without-padding",
        lambda b: b.start(1, 0).tensor(b"e", [3, 0]),
        None,
        check=has("e", (3, 0), F32, 0),
    ),
    Hostile(
        "short-by-one",
        lambda b: b.start(1, 0).tensor(b"w", [8]).pad().raw(bytes(31)),
        TruncatedError,
        r"w: dimensions \(8,\) at offset 0: needs \d+ bytes, file has \d+: download incomplete",
    ),
    Hostile(
        "without-tail-padding",
        lambda b: b.start(1, 0).tensor(b"w", [9]).pad().raw(bytes(36)),
        None,
        check=has("w", (9,), F32, 36),
    ),
    Hostile(
        "trailing-bytes",
        lambda b: b.start(1, 0).tensor(b"w", [8]).pad().raw(bytes(32)).raw(b"junk" * 100),
        None,
        check=has("w", (8,), F32, 32),
    ),
]

TABLE: list[Hostile] = [*MAGICS, *COUNTS, *LENGTHS, *TYPES, *NAMES, *ALIGNMENTS, *DIMENSIONS, *ROWS, *OFFSETS]
