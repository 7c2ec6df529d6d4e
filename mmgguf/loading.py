"""Whole files, or their headers alone, in one call: `load_file`, `read_header`, and what the adapters share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from .batches import Batches, Pieces
from .conversion import result_dtype
from .errors import GGUFError
from .file import GGUFFile, Source, opened
from .format.header import Header
from .format.metadata import RetainedArrays
from .format.parser import parse_header
from .format.seeker import DEFAULT_BUFFER_SIZE
from .selection import Names, Progress, select, walk
from .storage.base import TIMEOUT, Transfer
from .storage.sources import Opener

__all__ = ["TensorMapping", "load_file", "read_header"]

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
        read-only views of the mapped file, which stays mapped as long as one of them lives.  Computed arrays below
        32 MiB share memory in pieces of at most 64 MiB, and a piece lives as long as one of its arrays.

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
        chosen = {name: result_dtype(f[name], dtype, dequantize) for name in select(f, names)}
        converted = {
            name
            for name, target in chosen.items()
            if (dequantize or f[name].layout.is_plain) and f[name].layout.stored(f.byte_order) != target
        }
        pieces = Pieces([f[name].size * chosen[name].itemsize for name in converted])
        batches, arrays = Batches(), dict[str, npt.NDArray[Any]]()
        for tensor in walk(f, chosen, progress):
            arrays[tensor.name] = stored = tensor.data
            if tensor.name in converted:
                arrays[tensor.name] = pieces.empty(tensor.shape, chosen[tensor.name])
                batches.add(stored, tensor, arrays[tensor.name])
            if len(arrays) == len(chosen):
                batches.finish()  # before the walk says that all is done
        return arrays


def read_header(
    source: Source,
    *,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
    size: float | None = None,
) -> Header:
    """Read the header of one file, and nothing else of it.

    Parameters
    ----------
    source : path-like, URL, bytes, binary file object or GGUFFile
        As `open` takes it; a file object stays open, and nothing behind the header is read but what one buffer holds.
        Of a split model, the shard that is given.
    storage_options : dict, optional
        As of `open`.
    timeout : float, default 30
        Likewise.
    buffer_size : int, default 65536
        Bytes to fetch at a time from files and file objects.
    size : int or math.inf, optional
        Bytes of the whole file, where `source` is only its beginning, downloaded for the header: tensors have to lie
        in that.  `math.inf` if nobody knows it; then they may lie anywhere.

    Returns
    -------
    Header
        Its metadata arrays are kept in memory, and do not need the file any more.

    Raises
    ------
    GGUFError
        The bytes are not a GGUF header; `mmgguf.errors` has the kinds.  If the header goes on behind them, it is a
        `TruncatedError`: more is needed.

    Examples
    --------
    >>> mmgguf.read_header("model.gguf").metadata["general.architecture"]
    'llama'
    >>> beginning = np.fromfile("model.gguf", np.uint8, count=4096).tobytes()
    >>> mmgguf.read_header(beginning, size=os.path.getsize("model.gguf")).tensors["output_norm.weight"].shape
    (256,)
    """
    if isinstance(source, GGUFFile):
        source._require_open()
        return _read_header(source.shards[0].file.reader(), buffer_size, size)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _read_header(source, buffer_size, size)
    file = Opener("read", "r", storage_options, Transfer(timeout)).open(source)
    try:
        return _read_header(file.reader(), buffer_size, size)
    except GGUFError as error:
        text = str(error)
        error.args = (text if text.startswith(file.path) else f"{file.path}: {text}",)
        raise
    finally:
        file.close()


def _read_header(file: Any, buffer_size: int, size: float | None) -> Header:
    return parse_header(file, RetainedArrays(), size=size, buffer_size=buffer_size)
