"""PyTorch: the tensors of a GGUF file, packed weights that stay packed, and models of transformers from one file.

>>> import torch
>>> from mmgguf.torch import from_gguf, load_file
>>> state = load_file("model.gguf", dtype=torch.bfloat16)
>>> model = from_gguf("model.gguf")  # weights stay packed, in the mapped file  # doctest: +SKIP

torch has no read-only tensors: it would write to a read-only mapping all the same, and the process would die of it.
So whatever is handed out here without a copy is mapped copy-on-write, also where the `GGUFFile` itself was opened
read-only.  Tensors can be written to like any other; the file never changes, and neither does another mapping of it.
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError("torch", "torch") from None

from .files import Tensors, load_file
from .huggingface import from_gguf
from .layers import QuantizedEmbedding, QuantizedExperts, QuantizedLinear
from .models import load_model
from .packed import PackedTensor, dequantize

__all__ = [
    "PackedTensor",
    "QuantizedEmbedding",
    "QuantizedExperts",
    "QuantizedLinear",
    "Tensors",
    "dequantize",
    "from_gguf",
    "load_file",
    "load_model",
]
