"""A drop-in for the reader of pip's ``gguf`` package.

::

    from mmgguf.compat import GGUFReader          # instead of: from gguf import GGUFReader

or, for programs that are not yours, before they import ``gguf``'s names::

    import mmgguf.compat
    mmgguf.compat.install()

Attributes, values and the types of enum members are those of pip's reader: `GGUFReader.fields` of `ReaderField` with
``parts`` and ``data``, `GGUFReader.tensors` of `ReaderTensor`, ``contents()``, the modes ``r``, ``r+`` and ``c``.  What
makes the difference is that pip's reader creates one array for every length and every string, some hundred thousand
for a vocabulary, and that ``parts`` and ``data`` of arrays are lazy sequences here.

Where it is not as pip's reader, on purpose:

* Files are checked as `mmgguf.open` checks them, so some that pip's reader takes are refused with a `FormatError` (a
  `ValueError`): arrays of arrays, empty keys, more than eight dimensions, tensors that overlap or begin off the
  alignment.
* Files that pip's reader refuses are read: version 1, the reversed magic ``FUGG``, keys and names that are not UTF-8
  (as surrogates).  A tensor type unknown to gguf, but known here, is a member of `GGMLType`; one that is unknown
  here as well raises `UnknownTypeError` when `GGUFReader.tensors` is touched, not at opening.
* A key that is there twice is a `DuplicateKeyError`, which is the `KeyError` of pip's reader and a `FormatError`.
* A block of Q8_1 has 36 bytes, as in ggml; gguf takes it for 40.
* ``parts`` and ``data`` of arrays are sequences but not lists, and each access makes a new view of the same memory.
  `json.dumps` takes ``list(field.data)``.
* Arrays are plain ndarrays instead of `np.memmap` (`GGUFReader.data` is one): in place of ``tensor.data.filename`` and
  ``tensor.data.offset``, there are ``reader.data.filename`` and ``tensor.data_offset``.  `GGUFReader.alignment` is an
  int.
* Of the methods that pip's reader has inside, a subclass may override ``_build_tensors``, as programs do that have no
  more than the beginning of a file.  One that overrides another of them (``_get``, say) gets pip's own reader as its
  base in place of this one.
* `dequantize` knows more types, and runs mmgguf's kernels.  The readers are context managers.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from ..dequant import dequantize as dequantize_blocks
from ..errors import MissingExtraError
from ..types import GGMLType, layout_of
from .lazy import Array
from .peer import GGUF, TENSOR_TYPES
from .reader import GGUFReader, ReaderField, ReaderTensor

__all__ = ["GGUFReader", "ReaderField", "ReaderTensor", "dequantize", "install", "uninstall"]


def dequantize(data: Array, qtype: int) -> Array:
    """The numbers of a `ReaderTensor`'s data, as ``gguf.dequantize`` gives them.

    Parameters
    ----------
    data : ndarray
        Block types and BF16: uint8, whose last axis is a whole number of blocks' bytes, shape (..., bytes).
    qtype : GGMLQuantizationType or int
        The tensor's type.

    Returns
    -------
    ndarray of float32, shape (..., elements)
        F32: a view of `data`.

    Raises
    ------
    ValueError
        The last axis is not a whole number of blocks.
    NotImplementedError
        A type that holds no blocks (integers, F64), or an unknown one.

    Examples
    --------
    >>> tensor = GGUFReader("model.gguf").get_tensor(0)
    >>> dequantize(tensor.data, tensor.tensor_type).shape
    (8, 256)
    """
    if qtype == GGMLType.F32:
        return data.view(np.float32)
    if qtype == GGMLType.F16:
        return data.view(np.float16).astype(np.float32)
    layout = layout_of(int(qtype))
    if layout is None or (layout.is_plain and qtype != GGMLType.BF16):
        name = getattr(TENSOR_TYPES.get(int(qtype)), "name", int(qtype))
        raise NotImplementedError(f"Dequantization for {name} is not yet implemented")
    if GGUF and isinstance(data, GGUF.LazyNumpyTensor):
        # gguf's converters compute such tensors later, by its own machinery.
        result: Array = _original(GGUF.quants, "dequantize")(data, TENSOR_TYPES[int(qtype)])
        return result
    data = np.asarray(data)
    if data.dtype != np.uint8:
        data = data.view(np.uint8)
    if data.ndim and data.strides[-1] != 1:
        data = np.ascontiguousarray(data)
    return dequantize_blocks(data, GGMLType(int(qtype)))


# Standing in for gguf.

#: What `install` replaced: (module, name) → the original.
_replaced: dict[tuple[str, str], Any] = {}
_SUBSTITUTES: Final[dict[str, dict[str, Any]]] = {
    "gguf_reader": {"GGUFReader": GGUFReader, "ReaderField": ReaderField, "ReaderTensor": ReaderTensor},
    "quants": {"dequantize": dequantize},
}


def _original(module: Any, name: str) -> Any:
    return _replaced.get((module.__name__, name), getattr(module, name))


def install() -> None:
    """Make pip's ``gguf`` hand out this module's reader, for the rest of the process.

    From now on ``gguf.GGUFReader``, ``gguf.ReaderField``, ``gguf.ReaderTensor`` and ``gguf.dequantize``, and the same
    in ``gguf.gguf_reader`` and ``gguf.quants``, are those of this module.  Doing it again changes nothing;
    `uninstall` undoes it.

    Modules that did ``from gguf import GGUFReader`` before keep the reader that they imported: install first.
    Libraries that import it inside the function that uses it (transformers and diffusers do) can be imported at any
    time.

    Raises
    ------
    MissingExtraError
        gguf is not installed.

    Examples
    --------
    >>> import gguf
    >>> install()
    >>> gguf.GGUFReader is GGUFReader
    True
    >>> uninstall()
    """
    if GGUF is None:
        raise MissingExtraError("gguf", "compat")
    for home, substitutes in _SUBSTITUTES.items():
        for module in (GGUF, getattr(GGUF, home)):
            for name, substitute in substitutes.items():
                if getattr(module, name) is not substitute:
                    _replaced[module.__name__, name] = getattr(module, name)
                    setattr(module, name, substitute)


def uninstall() -> None:
    """Give ``gguf`` its own reader back; nothing happens if `install` was not called.

    Examples
    --------
    >>> uninstall()  # and again, or without `install`
    """
    for (module, name), original in _replaced.items():
        setattr(sys.modules[module], name, original)
    _replaced.clear()
