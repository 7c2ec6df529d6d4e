"""Many tensor infos at a time, against what one-by-one parsing makes of them."""

from __future__ import annotations

import io

import pytest

import mmgguf

from ..support.build import F32, I8, Build

LONG, TWICE = b"n" * 256, b"twice"
#: Names and dimensions of tensors without data, mixed so that the quick way has to stop at each kind.
NAMES = {
    "plain": [f"blk.{n}.weight".encode() for n in range(1500)],
    "255 bytes": [b"a" * 255, b"b" * 255, b"c"],
    "256 bytes": [b"a", LONG, b"b"],
    "beyond a buffer": [b"a", b"x" * 70_000, b"b", b"c" * 20],
    "NUL": [b"a\0b", b"\0", b"c\0"],
    "empty": [b"a", b"", b"b"],
    "not ASCII": ["ä".encode(), "名前".encode(), b"a"],
    "not UTF-8": [b"\xff", b"a\xe2\x82", b"b\xc3", b"c"],
    "not UTF-8, NUL": [b"\xff\0", b"a\0\xe2\x82", b"b"],
}


def _header(names: list[bytes], version: int, order: str) -> bytes:
    build = Build(version, order).start(tensors=len(names), pairs=0)  # type: ignore[arg-type]
    for n, name in enumerate(names):
        build.tensor(name, [0] * (n % 5), F32 if n % 5 else I8, 0 if n % 5 else 32 * n)
    return bytes(build) + bytes(32 * len(names) + 64)


@pytest.mark.parametrize(("version", "order"), [(1, "little"), (2, "little"), (3, "little"), (3, "big")])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("buffer_size", [0, 64, 65_536])
def test_infos_are_those_that_were_written(kind: str, version: int, order: str, buffer_size: int) -> None:
    names = NAMES[kind]
    if buffer_size < 65_536:
        names = names[:40]
    header = mmgguf.read_header(io.BytesIO(_header(names, version, order)), buffer_size=buffer_size)
    assert list(header.tensors) == [name.decode("utf-8", "surrogateescape") for name in names]
    for n, info in enumerate(header.tensors.values()):
        assert info.ne == (0,) * (n % 5)
        assert (info.type, info.offset) == ((F32, 0) if n % 5 else (I8, 32 * n))


@pytest.mark.parametrize("apart", [0, 3, 2000])
def test_a_name_that_comes_twice_is_refused_where_it_is(apart: int) -> None:
    names = [b"first", TWICE, *(f"{n:040}".encode() for n in range(apart)), TWICE, b"last"]
    raw = _header(names, 3, "little")
    position = raw.rindex(TWICE) - 8
    with pytest.raises(mmgguf.errors.FormatError, match=rf"twice.*second tensor info at byte {position}\)"):
        mmgguf.read_header(io.BytesIO(raw))


@pytest.mark.parametrize(("field", "value"), [("length", 1 << 32), ("n_dims", 1 << 8), ("n_dims", 9)])
def test_high_bytes_of_lengths_and_n_dims_count(field: str, value: int) -> None:
    raw = bytearray(_header([b"one", b"two", b"three", b"four"], 3, "little"))
    place = raw.index(b"three")
    if field == "length":
        raw[place - 8 : place] = (5 + value).to_bytes(8, "little")
    else:
        raw[place + 5 : place + 9] = value.to_bytes(4, "little")
    with pytest.raises(mmgguf.GGUFError, match=r"tensor info 2 |three.* dimensions"):
        mmgguf.read_header(io.BytesIO(raw))
