"""Walking chains of strings: exact for any bytes, windows and widths."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmgguf.errors import FileChangedError, TruncatedError
from mmgguf.format import strings
from mmgguf.format.seeker import BufferedSeeker
from mmgguf.format.strings import Chain, StringArray, decode, scan

from ..support.cases import STRINGS

CHAINS = [Chain("little"), Chain("big"), Chain("little", 4), Chain("big", 4)]
chains = pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{c.byte_order}-{c.width}")

VOCABULARIES: dict[str, list[bytes]] = {
    "short": [f"token{i % 50}".encode() for i in range(5000)],
    "empty": [b""] * 3000,
    "one-byte": [bytes([i % 255 + 1]) for i in range(3000)],
    "zeros": [b"\0" * (i % 17) for i in range(3000)],
    "lengths-around-256": [b"x" * (254 + i % 4) for i in range(500)],
    "long-and-short": [b"y" * (700 if i % 9 == 0 else i % 9) for i in range(3000)],
    "fake-prefixes": [struct.pack("<QQ", i % 5, 3 << 56) + b"abc" for i in range(800)],
    "nul-beside-long": [b"x" * 300, b"a\0b"] * 500,
    "ff": [b"\xff" * (i % 3) + b"a" for i in range(900)],
    "odd": [text.encode("utf-8", "surrogateescape") for text in STRINGS.values()] * 3,
    "one": [b"alone"],
    "none": [],
    "beyond-a-window": [b"z" * 300_000, b"after", b"w" * 600_001, b""],
    "mostly-regular": [b"" if i % 1000 == 999 else b"regular" for i in range(60_000)],
}


ODD_STRINGS = [b"", b"\0", b"\0" * 8, b"a" * 255, b"b" * 256, b"c" * 299 + b"\0", b"\xff", b"\3" + bytes(7) + b"abc"]


def encode(items: list[bytes], chain: Chain) -> bytes:
    return b"".join(chain.prefix.pack(len(item)) + item for item in items)


def array(items: list[bytes], chain: Chain) -> StringArray:
    return StringArray(np.frombuffer(encode(items, chain), np.uint8), len(items), chain)


@chains
@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_a_scan_finds_the_end_and_nothing_else(name: str, chain: Chain, lead: int) -> None:
    items = VOCABULARIES[name]
    data = encode(items, chain)
    seeker = BufferedSeeker(io.BytesIO(b"\0" * lead + data + b"trailing bytes"))
    seeker.seek(lead)
    assert scan(seeker, len(items), chain, "x", keep=True)[0] == len(data)
    assert seeker.tell() == lead + len(data)
    seeker.seek(lead)
    assert b"".join(scan(seeker, len(items), chain, "x", keep=True)[1]) == data


@chains
@pytest.mark.parametrize("name", VOCABULARIES)
def test_an_array_gives_every_string(name: str, chain: Chain) -> None:
    items = VOCABULARIES[name]
    expected = [decode(item) for item in items]
    found = array(items, chain)
    assert len(found) == len(items)
    assert list(found) == expected
    assert found[:] == expected
    assert found[1:50] == expected[1:50]
    assert found[::-7] == expected[::-7]
    assert found[5:2] == []
    assert found == expected
    assert expected == found
    assert found != [*expected, "more"]
    for i in {0, len(items) // 2, len(items) - 1, -1, -len(items)} if items else ():
        assert found[i] == expected[i]
        assert found.bytes(i) == items[i]
        assert found[i].encode("utf-8", "surrogateescape") == items[i]
    for i in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            found[i]


@given(
    st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(ODD_STRINGS))),
    st.sampled_from(CHAINS),
    st.integers(8, 200),
)
@example([b"\0" * 7], CHAINS[0], 64)
@example([b"b" * 256, b"\0"] * 4, CHAINS[0], 64)
def test_any_strings_in_any_window(items: list[bytes], chain: Chain, window: int) -> None:
    before = strings.WINDOW
    strings.WINDOW = window  # type: ignore[misc]
    try:
        data = encode(items, chain)
        seeker = BufferedSeeker(io.BytesIO(data + b"\0" * 9), 64)
        assert scan(seeker, len(items), chain, "x")[0] == len(data)
        assert [item.encode("utf-8", "surrogateescape") for item in array(items, chain)] == items
    finally:
        strings.WINDOW = before  # type: ignore[misc]


@chains
def test_every_byte_of_a_length_counts(chain: Chain) -> None:
    items = [b"regular"] * 200
    for byte in range(chain.width):
        data = bytearray(encode(items, chain))
        data[100 * (chain.width + 7) + byte] ^= 0x40
        with pytest.raises(TruncatedError):
            scan(BufferedSeeker(io.BytesIO(bytes(data))), 200, chain, "x")


@chains
def test_a_cut_anywhere_is_noticed(chain: Chain) -> None:
    data = encode([b"ab", b"", b"cde"] * 10, chain)
    for end in range(len(data)):
        with pytest.raises(TruncatedError):
            scan(BufferedSeeker(io.BytesIO(data[:end])), 30, chain, "x")


def test_reads_nothing_beyond_the_array_but_one_buffer() -> None:
    class Watched(io.BytesIO):
        furthest = 0

        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer)
            self.furthest = max(self.furthest, self.tell())
            return count

    data = encode(VOCABULARIES["mostly-regular"], CHAINS[0])
    file = Watched(data + bytes(1 << 20))
    scan(BufferedSeeker(file, 4096), 60_000, CHAINS[0], "x")
    assert file.furthest <= len(data) + 4096


def test_a_string_array_behaves_as_a_sequence() -> None:
    found = array([b"a", b"b", b"a"], CHAINS[0])
    assert "b" in found
    assert "c" not in found
    assert found.index("b") == 1
    assert found.count("a") == 2
    assert list(reversed(found)) == ["a", "b", "a"]
    assert found == array([b"a", b"b", b"a"], CHAINS[1])
    assert (found == "aba") is False
    assert repr(found) == "<StringArray of 3: ['a', 'b', 'a']>"
    assert pickle.loads(pickle.dumps(found)) == ["a", "b", "a"]
    with pytest.raises(TypeError):
        hash(found)
    with pytest.raises(TypeError):
        found["a"]  # type: ignore[call-overload]


@chains
def test_iterating_and_indexing_do_not_disturb_each_other(chain: Chain) -> None:
    items = [*ODD_STRINGS, *(b"%d" % i for i in range(9000))] * 2
    expected = [decode(item) for item in items]
    found = array(items, chain)
    iterator = iter(found)
    assert [next(iterator) for _ in range(5000)] == expected[:5000]
    assert found[:3000] == expected[:3000]  # still without an index
    assert found._offsets is None
    assert found[12_345] == expected[12_345]
    assert list(iterator) == expected[5000:]
    assert list(found) == expected  # by the index that is there now
    assert found[7:] == expected[7:]


@chains
@pytest.mark.parametrize("count", [3, 5000])
@pytest.mark.parametrize("change", ["too short", "too long"])
def test_bytes_that_have_changed_since(change: str, count: int, chain: Chain) -> None:
    """The walk leads to another place than the array's end, before it or behind."""
    data = encode([b"word"] * count, chain)
    data = data + b"rest" if change == "too short" else data[:-1]

    def fresh() -> StringArray:
        return StringArray(np.frombuffer(data, np.uint8), count, chain)

    for use in (list, lambda a: a[:], lambda a: a[1], lambda a: a.offsets, lambda a: a == ["word"] * count):
        with pytest.raises(FileChangedError, match=f"array of {count} strings: its bytes changed"):
            use(fresh())


def test_only_what_is_touched_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counting(data: bytes) -> str:
        decoded.append(len(data))
        return decode(data)

    monkeypatch.setattr(strings, "decode", counting)
    found = array([b"token"] * 100_000, CHAINS[0])
    assert found[70_000] == "token"
    assert decoded == [5]
    next(iter(found))
    assert sum(decoded) < 1000
