"""pip's ``gguf`` where it is installed, and its enums, or ours in their place."""

from __future__ import annotations

import importlib
import importlib.util
from enum import IntEnum
from typing import Any, Final

from ..constants import GGMLType, ValueType

__all__ = ["ENDIAN", "GGUF", "TENSOR_TYPES", "VALUE_TYPES"]


class Endian(IntEnum):
    """Byte order, where gguf's own ``GGUFEndian`` is not installed."""

    LITTLE = 0
    BIG = 1


# Programs compare with, and look up in dictionaries, gguf's own enum members.  `find_spec` first: an error inside an
# installed gguf is to be seen.
GGUF: Final[Any] = importlib.import_module("gguf") if importlib.util.find_spec("gguf") else None
ENDIAN: Final[Any] = GGUF.GGUFEndian if GGUF else Endian
VALUE_TYPES: Final[dict[int, Any]] = {int(t): GGUF.GGUFValueType(t) if GGUF else t for t in ValueType}
#: gguf's own members, and ours for what it does not know.
TENSOR_TYPES: Final[dict[int, Any]] = {int(t): t for t in (*GGMLType, *(GGUF.GGMLQuantizationType if GGUF else ()))}
