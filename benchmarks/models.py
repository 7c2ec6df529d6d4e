"""Generated files that only the suite measures, beside those of `mmgguf.bench.models`.

`vocabulary`: a header as large as Llama 3's.  `many_tensors`: a thousand small ones.  `sparse`: a hole.
`long_strings`: what is rare in vocabularies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from mmgguf.bench.models import TOKENS, architecture, tokenizer
from mmgguf.format.writer import TypedTensor, write
from mmgguf.types import GGMLType, align

__all__ = ["MERGES", "long_strings", "many_tensors", "sparse", "vocabulary"]

#: Of the Llama 3 vocabulary.
MERGES: Final = 280_147


def vocabulary(path: str | os.PathLike[str], tokens: int = TOKENS, merges: int = MERGES) -> None:
    """Write a file of metadata alone, like llama.cpp's ``ggml-vocab-*.gguf``."""
    write(path, {**architecture("vocabulary"), **tokenizer(tokens, merges)}, {})


def many_tensors(path: str | os.PathLike[str], count: int = 1000) -> None:
    """Write so many tensors of 4 × 64 float32 values: a file whose header is what matters."""
    values = np.arange(256, dtype=np.float32).reshape(4, 64)

    def make(n: int) -> Callable[[], npt.NDArray[np.float32]]:
        return lambda: values + np.float32(n)

    tensors = {
        f"blk.{n // 9}.part_{n % 9}.weight": TypedTensor(make(n), GGMLType.F32, values.shape) for n in range(count)
    }
    write(path, architecture("many tensors"), tensors)


def sparse(path: str | os.PathLike[str], nbytes: int) -> None:
    """Write a file with one tensor of so many I8 elements that takes no room on the disk: its data is a hole."""
    name = b"hole.weight"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    header += struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, nbytes, GGMLType.I8, 0)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(align(len(header), 32) + nbytes)


def long_strings(path: str | os.PathLike[str], count: int) -> None:
    """Write a vocabulary of what is rare in real ones: strings of 256 bytes and more, empty ones, ones with NULs."""
    kinds = ("x" * 300, "", "a\0b", "y" * 256)
    metadata = architecture("long strings") | {"tokenizer.ggml.tokens": [kinds[n % 4] for n in range(count)]}
    write(path, metadata, {})
