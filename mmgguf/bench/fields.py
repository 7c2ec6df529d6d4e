"""A plain parser of headers: one read per field, every string an object.

Most readers are written like this.  Here it is the baseline: over an unbuffered file each field costs a system call,
over a buffered one or a mapping each still costs a few Python calls.  Little-endian files of version 2 and 3 only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ..format.values import NUMBERS
from ..types import ValueType

__all__ = ["read_fields"]

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_NUMBERS = {int(type_): struct.Struct("<" + row.code) for type_, row in NUMBERS.items()}


def read_fields(read: Callable[[int], bytes]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Parse a header through a function that gives the next n bytes.

    Returns
    -------
    metadata : dict
        Arrays as lists.
    tensors : dict
        By name: (ne, type, offset).
    """

    def u32() -> int:
        return int(_U32.unpack(read(4))[0])

    def u64() -> int:
        return int(_U64.unpack(read(8))[0])

    def string() -> str:
        return read(u64()).decode("utf-8", "surrogateescape")

    def value(type_: int) -> Any:
        if type_ == ValueType.STRING:
            return string()
        if type_ == ValueType.ARRAY:
            element, count = u32(), u64()
            if element == ValueType.STRING:
                return [string() for _ in range(count)]
            number = _NUMBERS[element]
            return [item[0] for item in number.iter_unpack(read(count * number.size))]
        number = _NUMBERS[type_]
        return number.unpack(read(number.size))[0]

    if read(4) != b"GGUF" or u32() not in (2, 3):
        raise ValueError("not a little-endian GGUF file of version 2 or 3")
    n_tensors, n_values = u64(), u64()
    metadata = {}
    for _ in range(n_values):
        key = string()
        metadata[key] = value(u32())
    tensors = {}
    for _ in range(n_tensors):
        name = string()
        ne = tuple(u64() for _ in range(u32()))
        tensors[name] = (ne, u32(), u64())
    return metadata, tensors
