"""pip's ``gguf`` and its enums where it is installed, and mmgguf's enums where it is not."""

from __future__ import annotations

import importlib
import importlib.util
from enum import IntEnum
from typing import Any, Final

from ..types import GGMLType, ValueType

__all__ = ["ENDIAN", "GGUF", "TENSOR_TYPES", "VALUE_TYPES", "added_type"]


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


def added_type(type_id: int) -> tuple[Any, int, int] | None:
    """A tensor type that is only in gguf's tables as they are now: its member, block size and type size.

    Programs add types of their own to them, or replace them in the reader's module; None if they did not.
    """
    if GGUF is None:
        return None
    try:
        member = GGUF.gguf_reader.GGMLQuantizationType(type_id)
        block_size, type_size = GGUF.gguf_reader.GGML_QUANT_SIZES[member]
    except (ValueError, KeyError):
        return None
    return (member, int(block_size), int(type_size)) if block_size > 0 and type_size > 0 else None
