"""Magic numbers and limits of the GGUF format.

Sources: the GGUF specification (``ggml/docs/gguf.md``) and ggml's ``ggml.h`` and ``gguf.h``.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "DEFAULT_ALIGNMENT",
    "LEGACY_MAGICS",
    "MAGIC",
    "MAGIC_REVERSED",
    "MAX_DIMS",
    "MAX_DIMS_READ",
    "MAX_KEY_SIZE",
    "MAX_NAME_SIZE",
    "MAX_STRING_SIZE",
    "PADDING_KEY",
    "QUANTIZATION_VERSION",
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
#: ggml's ``GGML_MAX_DIMS``: what is written, and what `mmgguf.verify` accepts.
MAX_DIMS: Final = 4
#: What is read.  pip's gguf knows no limit, and some diffusion models have a tensor of five.
MAX_DIMS_READ: Final = 8
#: The specification's limit for keys, in bytes.
MAX_KEY_SIZE: Final = 65535
#: The specification's limit for tensor names, in bytes.  ggml itself stops one short of it, at 63.
MAX_NAME_SIZE: Final = 64
#: Longer keys, names and values are refused: they are read into memory with the header, and a file may be sparse.
MAX_STRING_SIZE: Final = 1 << 30
#: ggml's ``GGML_QNT_VERSION``, the value of ``general.quantization_version`` in current files.
QUANTIZATION_VERSION: Final = 2
#: A metadata pair that only takes room, so that data can stay where it is when the header before it has shrunk.
#: Readers pass over keys that they do not know.
PADDING_KEY: Final = "mmgguf.padding"
