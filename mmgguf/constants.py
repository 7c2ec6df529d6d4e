"""Magic numbers, limits and the three enumerations of the GGUF format.

Sources: the GGUF specification (``ggml/docs/gguf.md``) and ggml's ``ggml.h`` and ``gguf.h``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "DEFAULT_ALIGNMENT",
    "LEGACY_MAGICS",
    "MAGIC",
    "MAGIC_REVERSED",
    "MAX_DIMS",
    "MAX_KEY_SIZE",
    "MAX_NAME_SIZE",
    "MAX_STRING_SIZE",
    "QUANTIZATION_VERSION",
    "FileType",
    "GGMLType",
    "ValueType",
]

MAGIC: Final = b"GGUF"
#: Some writers of big-endian files reverse the magic as well.
MAGIC_REVERSED: Final = b"FUGG"
#: The formats before GGUF, by the first four bytes of their little-endian files.
LEGACY_MAGICS: Final = {
    (0x67676D6C).to_bytes(4, "little"): "ggml",
    (0x67676D66).to_bytes(4, "little"): "ggmf",
    (0x67676A74).to_bytes(4, "little"): "ggjt",
    (0x67676C61).to_bytes(4, "little"): "ggla",
}
DEFAULT_ALIGNMENT: Final = 32
#: ggml's ``GGML_MAX_DIMS``.
MAX_DIMS: Final = 4
#: The specification's limit for keys, in bytes.
MAX_KEY_SIZE: Final = 65535
#: The specification's limit for tensor names, in bytes.  ggml itself stops one short of it, at 63.
MAX_NAME_SIZE: Final = 64
#: Longer keys, names and values are refused: they are read into memory with the header, and a file may be sparse.
MAX_STRING_SIZE: Final = 1 << 30
#: ggml's ``GGML_QNT_VERSION``, the value of ``general.quantization_version`` in current files.
QUANTIZATION_VERSION: Final = 2


class ValueType(IntEnum):
    """The type of a metadata value (``gguf_type``)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class GGMLType(IntEnum):
    """The type of a tensor (``ggml_type``).  The ids 4, 5, 31 to 33 and 36 to 38 were removed from ggml."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class FileType(IntEnum):
    """What most of a file's tensors are stored as: ``general.file_type`` (``llama_ftype``)."""

    ALL_F32 = 0
    MOSTLY_F16 = 1
    MOSTLY_Q4_0 = 2
    MOSTLY_Q4_1 = 3
    MOSTLY_Q8_0 = 7
    MOSTLY_Q5_0 = 8
    MOSTLY_Q5_1 = 9
    MOSTLY_Q2_K = 10
    MOSTLY_Q3_K_S = 11
    MOSTLY_Q3_K_M = 12
    MOSTLY_Q3_K_L = 13
    MOSTLY_Q4_K_S = 14
    MOSTLY_Q4_K_M = 15
    MOSTLY_Q5_K_S = 16
    MOSTLY_Q5_K_M = 17
    MOSTLY_Q6_K = 18
    MOSTLY_IQ2_XXS = 19
    MOSTLY_IQ2_XS = 20
    MOSTLY_Q2_K_S = 21
    MOSTLY_IQ3_XS = 22
    MOSTLY_IQ3_XXS = 23
    MOSTLY_IQ1_S = 24
    MOSTLY_IQ4_NL = 25
    MOSTLY_IQ3_S = 26
    MOSTLY_IQ3_M = 27
    MOSTLY_IQ2_S = 28
    MOSTLY_IQ2_M = 29
    MOSTLY_IQ4_XS = 30
    MOSTLY_IQ1_M = 31
    MOSTLY_BF16 = 32
    MOSTLY_TQ1_0 = 36
    MOSTLY_TQ2_0 = 37
    MOSTLY_MXFP4_MOE = 38
    MOSTLY_NVFP4 = 39
    MOSTLY_Q1_0 = 40
