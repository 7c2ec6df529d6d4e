"""A header as its stored pieces: what an edit does not touch keeps its bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from ..file import Shard
from ..format.constants import PADDING_KEY
from ..format.header import TensorInfo
from ..format.strings import encode
from ..format.values import TypedValue, encode_value
from ..types import ByteOrder, ValueType, byte_order_character

__all__ = ["RawHeader"]


@dataclass(slots=True)
class RawHeader:
    """The pieces of a header, in the file's version and byte order.

    Attributes
    ----------
    magic : bytes
        As stored: some big-endian files have it reversed.
    version : int
        1, 2 or 3.
    byte_order : {"little", "big"}
        Of all numbers.
    pairs : dict of str to bytes
        By key: key, value type and value, as stored.
    infos : list of bytes
        The tensor infos, as stored.
    """

    magic: bytes
    version: int
    byte_order: ByteOrder
    pairs: dict[str, bytes] = field(default_factory=dict)
    infos: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, shard: Shard) -> Self:
        """The header of an open file."""
        header = shard.header
        raw = shard.file.region(0, header.nbytes).tobytes()
        cuts = itertools.pairwise(header.pair_positions())
        pairs = {key: raw[start:end] for key, (start, end) in zip(header.metadata, cuts, strict=True)}
        infos = [raw[start:end] for start, end in itertools.pairwise(header.info_positions())]
        return cls(raw[:4], header.version, header.byte_order, pairs, infos)

    @property
    def width(self) -> int:
        """Bytes of a length and of a count."""
        return 4 if self.version == 1 else 8

    @property
    def _order(self) -> str:
        return byte_order_character(self.byte_order)

    @property
    def _size_t(self) -> str:
        return "I" if self.version == 1 else "Q"

    def pair(self, key: str, typed: TypedValue) -> bytes:
        """A pair as this header stores it."""
        raw = encode(key)
        head = struct.pack(f"{self._order}{self._size_t}", len(raw)) + raw
        value = encode_value(typed, self.byte_order, f"metadata {key!r}", self.width)
        return head + struct.pack(f"{self._order}I", typed.type) + value

    def info(self, info: TensorInfo, offset: int) -> bytes:
        """A tensor info as this header stores it, with another offset."""
        raw, ne = encode(info.name), info.ne
        head = struct.pack(f"{self._order}{self._size_t}", len(raw)) + raw
        layout = f"{self._order}I{len(ne)}{self._size_t}IQ"
        return head + struct.pack(layout, len(ne), *ne, info.type, offset)

    def encoded(self) -> bytes:
        """The header, without the padding behind it."""
        counts = struct.pack(f"{self._order}I2{self._size_t}", self.version, len(self.infos), len(self.pairs))
        return b"".join([self.magic, counts, *self.pairs.values(), *self.infos])

    @property
    def nbytes(self) -> int:
        """Bytes of `encoded`."""
        return 8 + 2 * self.width + sum(map(len, self.pairs.values())) + sum(map(len, self.infos))

    def without(self, keys: Iterable[str]) -> Self:
        """The same without some keys."""
        left_out = set(keys)
        pairs = {key: raw for key, raw in self.pairs.items() if key not in left_out}
        return type(self)(self.magic, self.version, self.byte_order, pairs, list(self.infos))

    def padding(self, count: int) -> bytes:
        """The pair of padding, with an array of so many bytes."""
        return self.pair(PADDING_KEY, TypedValue(np.zeros(count, np.uint8), ValueType.ARRAY, ValueType.UINT8))

    def fill(self, data_offset: int, alignment: int) -> bool:
        """Add padding, where needed, so that the data begins at `data_offset`; gives whether that is possible."""
        self.pairs.pop(PADDING_KEY, None)
        gap = data_offset - self.nbytes
        if gap < 0:
            return False
        if gap < alignment:
            return True
        least = len(self.padding(0))
        if gap >= least:
            padding = self.padding(gap - least)
        else:
            # Too little room for an array, but perhaps not for a single byte: the rest is the ordinary padding.
            padding = self.pair(PADDING_KEY, TypedValue(0, ValueType.UINT8))
            if not gap - alignment < len(padding) <= gap:
                return False
        self.pairs[PADDING_KEY] = padding
        return True
