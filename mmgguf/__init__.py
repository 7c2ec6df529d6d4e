"""Open GGUF model files; every tensor is a zero-copy numpy view of the mapped file.

>>> import mmgguf
>>> with mmgguf.open("model.gguf") as f:  # doctest: +SKIP
...     f.architecture, f["blk.0.attn_q.weight"].data
"""

from __future__ import annotations

# First, as numpy's import is long: it lets Ctrl-C end the command line without a traceback meanwhile.
from . import _startup  # noqa: F401
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
from .format.header import Header, TensorInfo
from .format.metadata import Metadata
from .format.parser import read_header
from .format.seeker import BufferedSeeker
from .format.strings import StringArray
from .format.values import TypedValue
from .format.writer import TypedTensor, write
from .inspect.contents import Difference, Digests, compare, digest
from .inspect.verify import Finding, verify
from .loading import load_file
from .tensor import Tensor
from .types import FileType, GGMLType, ValueType

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
