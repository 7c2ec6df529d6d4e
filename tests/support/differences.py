"""Where mmgguf and ggml's own reader judge a file differently, and why: an unlisted difference is a bug of one of them.

Each row applies to files that one side accepts and the other does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmgguf import GGMLType, Header
from mmgguf.format.strings import encode

__all__ = ["ACCEPTED_BY_US", "REFUSED_BY_US", "explain_accepted", "explain_refused"]


@dataclass(frozen=True)
class Accepted:
    """mmgguf accepts what C refuses, or dies of."""

    id: str
    applies: Callable[[Header, bytes], bool]
    reason: str


@dataclass(frozen=True)
class Refused:
    """mmgguf refuses what C accepts: a pattern of the message."""

    id: str
    message: str
    reason: str


def _infos(header: Header) -> list[tuple[bytes, tuple[int, ...], int, int]]:
    return [(encode(t.name), t.ne, int(t.type), t.offset) for t in header.tensors.values()]


def _in_other_places(header: Header) -> bool:
    expected = 0
    for info in header.tensors.values():
        if not isinstance(info.type, GGMLType):
            return False
        if info.offset != expected:
            return True
        expected += -(-info.nbytes // header.alignment) * header.alignment
    return False


def _equal_up_to_nul(header: Header) -> bool:
    names = [name.partition(b"\0")[0] for name, *_ in _infos(header)]
    return len(set(names)) < len(names)


#: Types newer than the library that the tests have.
NEWER = frozenset({GGMLType.Q2_0})

ACCEPTED_BY_US: list[Accepted] = [
    Accepted("version-1", lambda h, data: h.version == 1, "ggml dropped version 1; files of it are still about."),
    Accepted(
        "big-endian",
        lambda h, data: h.byte_order == "big",
        "ggml reads files of the machine's own byte order only.",
    ),
    Accepted(
        "reversed-magic", lambda h, data: data[:4] == b"FUGG", "Some writers of big-endian files reverse the magic."
    ),
    Accepted(
        "unknown-type",
        lambda h, data: any(not isinstance(t.type, GGMLType) or t.type in NEWER for t in h.tensors.values()),
        "One tensor of a type that a reader does not know makes only that tensor unreadable.",
    ),
    Accepted(
        "dimensions",
        lambda h, data: any(len(ne) > 4 for _, ne, *_ in _infos(h)),
        "ggml has room for four dimensions; diffusion models with a tensor of five are about.",
    ),
    Accepted(
        "long-name",
        lambda h, data: any(len(name) > 63 for name, *_ in _infos(h)),
        "ggml has room for 63 bytes; the specification allows 64, and longer ones are about.",
    ),
    Accepted(
        "other-places",
        lambda h, data: _in_other_places(h),
        "ggml wants each tensor right behind the one before; the specification wants it aligned.",
    ),
    Accepted(
        "empty-tensor",
        lambda h, data: any(0 in ne for _, ne, *_ in _infos(h)),
        "ggml divides by the dimensions and dies of a zero; a tensor of no elements is harmless.",
    ),
    Accepted(
        "equal-up-to-nul",
        lambda h, data: _equal_up_to_nul(h),
        "ggml cuts names at a NUL and then finds two equal ones; here the bytes are the name.",
    ),
]

REFUSED_BY_US: list[Refused] = [
    Refused(
        "no-data",
        r"dimensions \(.*\) at offset \d+: needs \d+ bytes, file has \d+",
        "Asked for the header alone, ggml does not look whether the data is there; the view would end behind the file.",
    ),
    Refused(
        "no-elements-beyond-64-bits",
        r"dimensions \(.*\b0\b.*\) are beyond 64 bits",
        "ggml may multiply to zero before a dimension overflows; numpy has no such shape, although it holds nothing.",
    ),
    Refused(
        "alignment-in-an-array",
        r"general\.alignment: stored as ARRAY, must be UINT32",
        "ggml takes the first element of an array of u32 for the value.",
    ),
]


def explain_accepted(header: Header, data: bytes) -> str | None:
    """The row that explains why C refuses what mmgguf accepts."""
    return next((row.id for row in ACCEPTED_BY_US if row.applies(header, data)), None)


def explain_refused(message: str) -> str | None:
    """The row that explains why mmgguf refuses what C accepts."""
    return next((row.id for row in REFUSED_BY_US if re.search(row.message, message)), None)
