"""How fields are stored in one file: by its byte order and the width of its lengths, counts and dimensions."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import ByteOrder, byte_order_character
from .constants import MAX_DIMS_READ
from .strings import Chain
from .values import NUMBERS

__all__ = ["Records", "records_of"]


class Records:
    """The layouts of all fields of a header; made by `records_of`.

    Attributes
    ----------
    byte_order : {"little", "big"}
        Of all numbers.
    width : int
        Bytes of a length, a count or a dimension: 4 in version 1, else 8.
    chain : Chain
        How strings are stored.
    u32, size_t : struct.Struct
        A number of four bytes, and one of `width` bytes.
    array_head : struct.Struct
        Element type and count of an array.
    numbers : dict of ValueType to struct.Struct
        Metadata values of fixed size.
    info_tails : list of struct.Struct
        By n_dims: what follows n_dims in a tensor info, which is ``ne``, ggml type and offset.
    low : dict of int to int
        By the size of a number: which of its bytes is the lowest.
    """

    __slots__ = (
        "_dtypes",
        "array_head",
        "byte_order",
        "chain",
        "info_tails",
        "low",
        "numbers",
        "size_t",
        "u32",
        "width",
    )

    def __init__(self, byte_order: ByteOrder, width: int) -> None:
        order, size = byte_order_character(byte_order), "I" if width == 4 else "Q"
        self.byte_order: ByteOrder = byte_order
        self.width = width
        self.chain = Chain(byte_order, width)
        self.u32 = struct.Struct(order + "I")
        self.size_t = self.chain.prefix
        self.array_head = struct.Struct(f"{order}I{size}")
        self.numbers = {type_: struct.Struct(order + row.code) for type_, row in NUMBERS.items()}
        self.info_tails = [struct.Struct(f"{order}{n}{size}IQ") for n in range(MAX_DIMS_READ + 1)]
        self.low = {n: n - 1 if byte_order == "big" else 0 for n in (4, 8)}
        self._dtypes = {n: np.dtype(f"{order}u{n}") for n in (4, 8)}

    def numbers_of(self, data: bytes, size: int) -> npt.NDArray[Any]:
        """The unsigned number of `size` bytes that begins at each byte, whatever its alignment; a view."""
        return np.ndarray((len(data) - size + 1,), self._dtypes[size], data, 0, (1,))


@cache
def records_of(byte_order: ByteOrder, width: int) -> Records:
    """The records of a file of that byte order, whose lengths take `width` bytes; always the same object."""
    return Records(byte_order, width)
