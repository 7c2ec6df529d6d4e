"""Open GGUF model files; every tensor is a zero-copy numpy view of the mapped file.

>>> import mmgguf
>>> with mmgguf.open("model.gguf") as f:
...     f.architecture, f["blk.0.attn_q.weight"].data.shape
('llama', (256, 256))

What is used most is here.  The kinds of errors are in `mmgguf.errors`, the layouts of ggml types in `mmgguf.types`,
the records that verify, digest and compare return in `mmgguf.inspect`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# First, as numpy's import is long: it lets Ctrl-C end the command line without a traceback meanwhile.
from . import (
    _startup,  # noqa: F401
    errors,
    types,
)
from .dequant import dequantize
from .errors import GGUFError
from .file import GGUFFile
from .file import open as open
from .format.header import Header
from .format.metadata import Metadata
from .format.values import TypedValue
from .format.writer import TypedTensor
from .loading import load_file, read_header
from .tensor import Tensor
from .types import FileType, GGMLType, ValueType
from .writing import write

if TYPE_CHECKING:
    from . import inspect
    from .estimates import estimate
    from .inspect import compare, digest, verify
    from .storage.names import resolve

__version__ = "0.1.0"

# Not `open`, so that `from mmgguf import *` leaves the builtin alone.
__all__ = [
    "FileType",
    "GGMLType",
    "GGUFError",
    "GGUFFile",
    "Header",
    "Metadata",
    "Tensor",
    "TypedTensor",
    "TypedValue",
    "ValueType",
    "compare",
    "dequantize",
    "digest",
    "errors",
    "estimate",
    "inspect",
    "load_file",
    "read_header",
    "resolve",
    "types",
    "verify",
    "write",
]


#: What is imported when it is first asked for, and where it is: to load weights needs none of it.
_LATER = {
    "compare": "inspect",
    "digest": "inspect",
    "estimate": "estimates",
    "inspect": "inspect",
    "resolve": "storage.names",
    "verify": "inspect",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LATER[name]}", __name__)
    found = globals()[name] = module if name == "inspect" else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
