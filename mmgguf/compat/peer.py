"""pip's ``gguf`` and its enums where it is installed, and mmgguf's enums where it is not."""

from __future__ import annotations

import importlib
import importlib.util
from enum import IntEnum
from typing import Any, Final

from ..types import GGMLType, ValueType

__all__ = ["ENDIAN", "GGUF", "TENSOR_TYPES", "VALUE_TYPES"]


class Endian(IntEnum):
    """Byte order, where gguf's own ``GGUFEndian`` is not installed."""

    LITTLE = 0
    BIG = 1


def _import_gguf() -> Any:
    spec = importlib.util.find_spec("gguf")
    # A folder of models that is called gguf has a spec too, but no origin.  An error inside an installed gguf is to be
    # seen, so ImportError is not caught.
    return importlib.import_module("gguf") if spec is not None and spec.origin else None


# Programs compare with gguf's own enum members, and look them up in dictionaries.
GGUF: Final[Any] = _import_gguf()
ENDIAN: Final[Any] = GGUF.GGUFEndian if GGUF else Endian
VALUE_TYPES: Final[dict[int, Any]] = {int(t): GGUF.GGUFValueType(t) if GGUF else t for t in ValueType}
#: gguf's own members, and ours for what it does not know.
TENSOR_TYPES: Final[dict[int, Any]] = {int(t): t for t in (*GGMLType, *(GGUF.GGMLQuantizationType if GGUF else ()))}
