"""Write a GGUF file's numbers as an ``.npz`` archive for `numpy.load`; memory does not grow with the model.

`numpy.savez` needs all arrays in memory at once.  Here the members, which are ordinary ``.npy`` files, are written
piece by piece; they are not compressed, as weights hardly can be.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Final
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import ml_dtypes
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from .conversion import chunks, result_dtype
from .errors import FormatError, shown
from .file import Source, opened
from .format.strings import encoded_size, is_utf8
from .format.target import replacing
from .selection import Names, Progress, select, walk
from .tensor import Tensor

__all__ = ["save_file"]

#: A zip archive has 16 bits for the length of a name, which ends in ``.npy``.
_MAX_NAME_SIZE: Final = 65535 - 4
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)


def save_file(
    source: Source,
    path: str | os.PathLike[str],
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    dequantize: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file's tensors as an ``.npz`` archive, atomically: the path holds the old file or the new one.

    Parameters
    ----------
    source : path-like or GGUFFile
        The GGUF file.
    path : path-like
        The file to make or to replace; no suffix is added.
    names, progress
        As of `mmgguf.load_file`.
    dtype : {float32, float16, float64}, optional
        As of `mmgguf.load_file`; but BF16 becomes float32, too, since the format cannot name bfloat16.
    dequantize : bool, default True
        False leaves blocks as they are: structured arrays, as `Tensor.data` gives them, in little-endian order.

    Raises
    ------
    GGUFError
        The source is not valid, a name is missing or not UTF-8, a ggml type is unknown; one tensor has the name of
        another with ``.npy`` behind it, which `numpy.load` cannot tell apart.
    TypeError
        A dtype that is not offered.
    OSError
        What the operating system refuses; the path is that of the source, under whatever name.

    Examples
    --------
    >>> save_file("model.gguf", "model.npz", names="*norm*")
    >>> np.load("model.npz")["output_norm.weight"].shape
    (256,)
    """
    with opened(source) as f:
        chosen = select(f, names)
        for name in chosen:
            _check(f[name], dtype, dequantize, f.path)
        _check_distinct(chosen, f.path)
        with replacing(path, [shard.path for shard in f.shards]) as file, ZipFile(file, "w", ZIP_STORED) as archive:
            for tensor in walk(f, chosen, progress):
                target = _target(tensor, dtype, dequantize)
                shape = tensor.layout.stored_shape(tensor.shape) if target.names else tensor.shape
                with archive.open(ZipInfo(f"{tensor.name}.npy"), "w", force_zip64=True) as member:
                    header = {"descr": npy.dtype_to_descr(target), "fortran_order": False, "shape": shape}
                    npy.write_array_header_1_0(member, header)
                    for chunk in chunks(tensor, target, dequantize=dequantize):
                        member.write(chunk.view(np.uint8).data)


def _target(tensor: Tensor, dtype: npt.DTypeLike | None, dequantize: bool) -> np.dtype[Any]:
    target = result_dtype(tensor, dtype, dequantize)
    return np.dtype(np.float32) if target == _BFLOAT16 and dtype is None else target


def _check_distinct(names: Collection[str], where: str) -> None:
    """Refuse names that `numpy.load` mixes up: ``a.npy`` is to it the member of that name, which holds ``a``."""
    known = set(names)
    for name in names:
        if f"{name}.npy" in known:
            other = shown(f"{name}.npy", quoted=True)
            raise FormatError(
                f"{where}: tensors {shown(name, quoted=True)} and {other} cannot be told apart in an .npz archive"
            )


def _check(tensor: Tensor, dtype: npt.DTypeLike | None, dequantize: bool, where: str) -> None:
    """Check whatever could fail later, before anything is written."""
    target = _target(tensor, dtype, dequantize)
    if (target.kind not in "fi" and not target.names) or (dtype is not None and np.dtype(dtype).kind != "f"):
        raise TypeError(f"dtype must be one of float32, float16, float64 in an .npz archive, got {np.dtype(dtype)}")
    if "\0" in tensor.name or not is_utf8(tensor.name) or encoded_size(tensor.name) > _MAX_NAME_SIZE:
        raise FormatError(f"{where}: {tensor.name!r:.100}: not a name that a zip archive can hold")
