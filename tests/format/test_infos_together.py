"""Tensor infos looked at together give what each looked at alone gives: the same records, or the same error."""

import io
import random
import struct

import pytest

from mmgguf.errors import GGUFError
from mmgguf.format import parser

_ODD_NAMES = [b"blk.0.w", b"", b"a\0b", b"y" * 300, b"\xff", "é".encode()]


def _header(rnd: random.Random) -> bytes:
    """Mostly valid: some have odd dimensions, types, offsets or names, another order, a changed byte, no end."""
    version = rnd.choice([1, 2, 3])
    order = rnd.choice("<>") if version == 3 else "<"
    width = "I" if version == 1 else "Q"
    offset, infos = 0, []
    for number in range(rnd.choice([1, 2, 5, 40])):
        odd = rnd.random() < 0.04
        few = [0, 33, 256, 1 << 20, (1 << 31)] if odd else [1, 32, 64]
        ne = [rnd.choice(few) for _ in range(rnd.choice([0, 1, 2, 2, 3, 4, 5]))]
        type_ = rnd.choice([0, 1, 2, 8, 12, 99]) if odd else rnd.choice([0, 1])
        name = rnd.choice(_ODD_NAMES) if rnd.random() < 0.01 else b"blk.%d.%b" % (number, b"w" * rnd.choice([1, 60]))
        infos.append(
            struct.pack(order + width, len(name))
            + name
            + struct.pack(f"{order}I{len(ne)}{width}IQ", len(ne), *ne, type_, offset)
        )
        elements = 1
        for n in ne:
            elements *= n
        offset += -(-elements * 4 // 32) * 32 + (rnd.choice([1, -32, 32, 1 << 62, 1 << 63]) if odd else 0)
        offset %= 1 << 64
    if rnd.random() < 0.2:
        rnd.shuffle(infos)
    data = bytearray(b"GGUF" + struct.pack(f"{order}I2{width}", version, len(infos), 0) + b"".join(infos))
    if rnd.random() < 0.2:
        data[rnd.randrange(8, len(data))] = rnd.choice([0, 1, 4, 255])
    data += bytes(-len(data) % 32 + min(offset, 1 << 18))
    return bytes(data[: rnd.randrange(len(data))] if rnd.random() < 0.1 else data)


def _result(data: bytes, buffer_size: int) -> object:
    try:
        header = parser.parse_header(io.BytesIO(data), buffer_size=buffer_size)
    except GGUFError as error:
        return type(error), str(error)
    extents = header.tensors.extents()  # type: ignore[attr-defined]
    return list(header.tensors.values()), extents, header.nbytes


@pytest.mark.parametrize("buffer_size", [64, 1000, 65536])
def test_together_as_one_by_one(buffer_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rnd = random.Random(buffer_size)
    headers = [_header(rnd) for _ in range(400)]
    together = [_result(data, buffer_size) for data in headers]
    monkeypatch.setattr(parser, "ordinary_infos", lambda data, start, count, records: ({}, (None, None), start))
    monkeypatch.setattr(parser, "is_sound", lambda *_: False)
    alone = [_result(data, buffer_size) for data in headers]
    assert together == alone
    assert 100 < sum(isinstance(result, tuple) and len(result) == 3 for result in together) < 390
