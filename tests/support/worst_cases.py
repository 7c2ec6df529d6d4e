"""Files of about a megabyte, each with as much of one structure as fits: where time or memory would run away."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mmgguf.types import ByteOrder

from .build import ARRAY, BOOL, F16, F32, FLOAT32, I8, STRING, UINT8, UINT16, UINT32, Build

MEGABYTE = 1 << 20
VARIANTS: list[tuple[int, ByteOrder]] = [(3, "little"), (3, "big"), (1, "little")]
PAIRS: dict[str, Callable[[Build, bytes], object]] = {
    "pairs of u8": lambda b, key: b.number(key, UINT8, 1),
    "pairs with bad keys": lambda b, key: b.number(key.upper() + b"-", UINT8, 1),
    "pairs of odd bools": lambda b, key: b.pair(key, BOOL).raw(b"\2"),
    "pairs of empty texts": lambda b, key: b.text(key, b""),
    "pairs of undecodable texts": lambda b, key: b.text(key, b"\xff"),
    "arrays of one u8": lambda b, key: b.numbers(key, UINT8, [1]),
    "arrays of one odd bool": lambda b, key: b.array(key, BOOL, 1).raw(b"\2"),
    "arrays of one float": lambda b, key: b.numbers(key, FLOAT32, [1.0]),
    "arrays of nothing": lambda b, key: b.numbers(key, UINT8, []),
    "arrays of one string": lambda b, key: b.texts(key, [b""]),
    "arrays of 3 strings": lambda b, key: b.texts(key, [b"", b"\xff", b""]),
}


def _name(i: int) -> bytes:
    return np.base_repr(i, 36).lower().encode()


def _strings(lengths: list[int], fill: bytes, version: int = 3, order: ByteOrder = "little") -> bytes:
    """One array of strings, of these lengths in turn."""
    b = Build(version, order)
    prefix = struct.Struct((">" if order == "big" else "<") + ("I" if version == 1 else "Q"))
    pieces = [prefix.pack(n) + fill * n for n in lengths]
    count = len(lengths) * (MEGABYTE // sum(map(len, pieces)))
    b.start(0, 1).array(b"tokenizer.ggml.tokens", STRING, count)
    return bytes(b.raw(b"".join(pieces) * (count // len(lengths))))


def _pairs(
    make: Callable[[Build, bytes], object], version: int = 3, order: ByteOrder = "little", count: int | None = None
) -> bytes:
    """So many pairs, or as many as fit a megabyte."""
    count = count or MEGABYTE // _pair_size(make, version)
    b = Build(version, order).start(0, count)
    for i in range(count):
        make(b, b"%3s" % _name(i + 36**2))
    return bytes(b)


def _pair_size(make: Callable[[Build, bytes], object], version: int) -> int:
    b = Build(version).start(0, 1)
    head = len(b)
    make(b, b"aaa")
    return len(b) - head


def _infos(count: int, make: Callable[[Build, bytes, int], object], data: int = 0, alignment: int = 32) -> bytes:
    b = Build().start(count, int(alignment != 32))
    if alignment != 32:
        b.number(b"general.alignment", UINT32, alignment)
    for i in range(count):
        make(b, b"%3s" % _name(i + 36**2), i)
    return bytes(b.pad(alignment).raw(bytes(data)))


def _one_tensor(name: bytes, ne: list[int], type_: int, data: bytes) -> bytes:
    return bytes(Build().start(1, 0).tensor(name, ne, type_).data(data))


def _long_value(value: bytes, times: int = 1) -> bytes:
    b = Build().start(0, times)
    for i in range(times):
        b.text(_name(i), value)
    return bytes(b)


def _long_keys() -> bytes:
    b = Build().start(0, 16)
    for i in range(16):
        b.number(b"%02d" % i + b"k" * (MEGABYTE // 16), UINT8, 1)
    return bytes(b)


def worst_cases() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names, and functions that make the files."""
    for name, lengths, fill in (
        ("empty strings", [0], b""),
        ("strings of 1", [1], b"x"),
        ("strings of 7 NULs", [7], b"\0"),
        ("strings of 8 NULs", [8], b"\0"),
        ("strings of 255", [255], b"x"),
        ("strings of 256", [256], b"x"),
        ("strings of 0 and 300", [0, 300], b"x"),
        ("strings of 0, 1, 2, 300, 7, 255, 256", [0, 1, 2, 300, 7, 255, 256], b"\1"),
        ("strings of 0xFF", [3], b"\xff"),
        ("strings of 70000", [70_000], b"\0"),
    ):
        for version, order in VARIANTS:
            yield f"{name}, v{version} {order}", partial(_strings, lengths, fill, version, order)
    for version, order in VARIANTS:
        # Version 1 packs more of them into a megabyte.
        for name, make in PAIRS.items():
            yield f"{name}, v{version} {order}", partial(_pairs, make, version, order)
    yield "one key", lambda: bytes(Build().start(0, 1).number(b"k" * MEGABYTE, UINT8, 1))
    yield "16 long keys", _long_keys
    yield "one text", lambda: _long_value(b"v" * MEGABYTE)
    yield "one text of 0xFF", lambda: _long_value(b"\xff" * MEGABYTE)
    yield "one text, wide", lambda: _long_value("🦙".encode() + b"v" * MEGABYTE)
    yield "one text of escapes", lambda: _long_value(b"\x1b" * MEGABYTE)
    yield (
        "architecture",
        lambda: bytes(Build().start(0, 1).text(b"general.architecture", b"\x1b[31m" * (MEGABYTE // 5))),
    )
    yield "array of u8", lambda: bytes(Build().start(0, 1).array(b"k", UINT8, MEGABYTE, bytes(MEGABYTE)))
    yield "array of odd bools", lambda: bytes(Build().start(0, 1).array(b"k", BOOL, MEGABYTE, b"\2" * MEGABYTE))
    yield "array of arrays", lambda: bytes(Build().start(0, 1).array(b"k", ARRAY, 1000, bytes(MEGABYTE)))
    yield (
        "nested arrays",
        lambda: bytes(Build().start(0, 1).array(b"k", ARRAY, 1).raw(struct.pack("<IQ", ARRAY, 1) * (MEGABYTE // 12))),
    )
    yield "empty tensors", lambda: _infos(29_000, lambda b, name, i: b.tensor(name, [0]))
    yield "unknown types", lambda: _infos(29_000, lambda b, name, i: b.tensor(name, [1], 99))
    yield "undecodable names", lambda: _infos(26_000, lambda b, name, i: b.tensor(name + b"\xff\0\x1b", [0]))
    tiny = 24_000
    yield "tiny tensors", lambda: _infos(tiny, lambda b, name, i: b.tensor(name, [1], I8, 8 * i), 8 * tiny, 8)
    yield (
        "tensors backwards",
        lambda: _infos(tiny, lambda b, name, i: b.tensor(name, [1], I8, 8 * (tiny - 1 - i)), 8 * tiny, 8),
    )
    yield (
        "tensors that overlap",
        lambda: _infos(tiny, lambda b, name, i: b.tensor(name, [9], I8, 8 * i), 8 * tiny + 8, 8),
    )
    yield "tensors with holes", lambda: _infos(tiny, lambda b, name, i: b.tensor(name, [1], I8, 16 * i), 16 * tiny, 8)
    yield "last name twice", lambda: _infos(29_000, lambda b, name, i: b.tensor(name if i < 28_999 else b"100", [0]))
    yield "last tensor unaligned", lambda: _infos(29_000, lambda b, name, i: b.tensor(name, [0], F32, i // 28_999))
    yield "last tensor beyond", lambda: _infos(29_000, lambda b, name, i: b.tensor(name, [0], F32, (i // 28_999) << 40))
    yield "scalars", lambda: _infos(24_000, lambda b, name, i: b.tensor(name, [], F32, 4 * i), 96_000, 4)
    yield "dots", lambda: _one_tensor(b"." * MEGABYTE, [1], I8, b"\1")
    yield "digits", lambda: _one_tensor(b"9" * MEGABYTE, [1], I8, b"\1")
    yield "digits and letters", lambda: _one_tensor(b"1a" * (MEGABYTE // 2), [1], I8, b"\1")
    yield "accents", lambda: _one_tensor(b"x" * 200 + "\u0301".encode() * (MEGABYTE // 2), [1], I8, b"\1")
    yield "empty rows", lambda: _one_tensor(b"w", [0, 1 << 50], F32, b"")
    yield "empty blocks", lambda: _one_tensor(b"w", [1 << 50, 0], 2, b"")
    yield "layers", lambda: _one_tensor(b"blk.1." * (MEGABYTE // 6), [1], I8, b"\1")
    yield "NaNs", lambda: _one_tensor(b"w", [MEGABYTE // 2], F16, b"\xff" * MEGABYTE)
    yield (
        "0xFF padding",
        lambda: _infos(10, lambda b, name, i: b.tensor(name, [1], I8, (1 << 16) * i), 1 << 20, 1 << 16),
    )
    for type_, size in ((10, 84), (16, 66), (19, 50), (29, 56), (39, 17), (41, 18), (42, 18), (34, 54)):
        elements = {39: 32, 41: 128, 42: 64}.get(type_, 256)
        count = MEGABYTE // size
        yield f"blocks of type {type_}", partial(_one_tensor, b"w", [elements, count], type_, b"\xff" * (size * count))
    yield "trailing bytes", lambda: bytes(Build().start(0, 0).pad()) + b"\xff" * MEGABYTE
    yield (
        "split of 65535",
        lambda: bytes(
            Build()
            .start(0, 2)
            .number(b"split.count", UINT16, 65535)
            .number(b"split.no", UINT16, 0)
            .raw(bytes(MEGABYTE))
        ),
    )


#: For `comparisons`: the least pairs of a kind, with either of two values.
TWO_VALUES: dict[str, Callable[..., object]] = {
    "pairs of u8": lambda b, key, i: b.number(key, UINT8, i),
    "pairs of texts": lambda b, key, i: b.text(key, b"%d" % i),
    "pairs of floats": lambda b, key, i: b.number(key, FLOAT32, i),
    "arrays of one u8": lambda b, key, i: b.numbers(key, UINT8, [i]),
    "arrays of one bool": lambda b, key, i: b.numbers(key, BOOL, [i]),
    "arrays of one string": lambda b, key, i: b.texts(key, [b"%d" % i]),
}


def comparisons(size: int = MEGABYTE) -> Iterator[tuple[str, bytes, bytes]]:
    """Names and two files each, the larger of that size, which have the same keys and differ in every value."""
    for first, second in ((1, 1), (1, 3), (3, 3)):
        for name, make in TWO_VALUES.items():
            with_one, with_other = partial(make, i=1), partial(make, i=0)
            count = size // _pair_size(with_one, second)
            files = _pairs(with_one, first, count=count), _pairs(with_other, second, count=count)
            yield f"{name}, v{first} and v{second}", *files
