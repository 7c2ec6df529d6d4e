"""Whole files at once: `load_file`, and what the adapters share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from .conversion import values
from .file import GGUFFile, Source, opened
from .selection import Names, Progress, walk

__all__ = ["TensorMapping", "load_file"]

_T = TypeVar("_T")


class TensorMapping(Mapping[str, _T]):
    """The tensors of an open file as another library's, each made on access."""

    def __init__(self, f: GGUFFile) -> None:
        self._file = f

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __eq__(self, other: object) -> bool:
        # A Mapping would compare tensors, whose comparison has no truth value.
        return self is other

    def __hash__(self) -> int:
        return id(self)


def load_file(
    source: Source,
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    dequantize: bool = True,
    progress: Progress | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Load all tensors of a file, or some, as numpy arrays.

    Parameters
    ----------
    source : path-like or GGUFFile
        The file.  To read instead of mapping, open it with ``storage="read"`` and pass that.
    names : str or iterable of str, optional
        Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : {float32, float16, bfloat16, float64}, optional
        What blocks and floats become; integers stay what they are.  By default plain types keep their dtype and
        blocks become float32.
    dequantize : bool, default True
        False leaves blocks as they are stored: structured arrays as `Tensor.data` gives them.
    progress : callable, optional
        Called with (bytes done, bytes in all).

    Returns
    -------
    dict of str to ndarray
        In the file's order, each of its tensor's logical shape.  Where nothing has to be computed, arrays are
        read-only views of the mapped file, which stays mapped as long as one of them lives.

    Raises
    ------
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.
    TypeError
        A dtype that is not offered.

    Examples
    --------
    >>> weights = mmgguf.load_file("model.gguf", names="blk.*", dtype=np.float16)
    >>> weights["blk.0.attn_q.weight"].dtype
    dtype('float16')
    """
    with opened(source) as f:
        return {
            tensor.name: values(tensor, dtype) if dequantize or tensor.layout.is_plain else tensor.data
            for tensor in walk(f, names, progress)
        }
