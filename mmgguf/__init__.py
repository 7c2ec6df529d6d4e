"""Open GGUF model files; every tensor is a zero-copy numpy view of the mapped file.

>>> import mmgguf
>>> with mmgguf.open("model.gguf") as f:  # doctest: +SKIP
...     f.architecture, f["blk.0.attn_q.weight"].data
"""

from __future__ import annotations

from .check import Finding, verify
from .constants import FileType, GGMLType, ValueType
from .contents import Difference, Digests, compare, digest
from .dequant import dequantize
from .errors import (
    ClosedError,
    DuplicateKeyError,
    FileChangedError,
    FormatError,
    GGUFError,
    MetadataTypeError,
    MissingExtraError,
    NameNotFoundError,
    NotGGUFError,
    SplitError,
    TruncatedError,
    UnknownTypeError,
    VersionError,
)
from .file import GGUFFile, open
from .header import Header, TensorInfo, read_header
from .loading import load_file
from .metadata import Metadata
from .seeker import BufferedSeeker
from .strings import StringArray
from .tensor import Tensor
from .values import TypedValue
from .writer import TypedTensor, write

__version__ = "0.1.0"

__all__ = [
    "BufferedSeeker",
    "ClosedError",
    "Difference",
    "Digests",
    "DuplicateKeyError",
    "FileChangedError",
    "FileType",
    "Finding",
    "FormatError",
    "GGMLType",
    "GGUFError",
    "GGUFFile",
    "Header",
    "Metadata",
    "MetadataTypeError",
    "MissingExtraError",
    "NameNotFoundError",
    "NotGGUFError",
    "SplitError",
    "StringArray",
    "Tensor",
    "TensorInfo",
    "TruncatedError",
    "TypedTensor",
    "TypedValue",
    "UnknownTypeError",
    "ValueType",
    "VersionError",
    "compare",
    "dequantize",
    "digest",
    "load_file",
    "open",
    "read_header",
    "verify",
    "write",
]
