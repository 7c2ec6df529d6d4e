"""Tensors of GGUF files as Dask arrays, and files as a Dask bag (extra ``dask``).

A task carries a reference to a tensor, some hundred bytes, and reads its own rows: from the mapping of a local file, or
as one range of a remote one.  No task reads more than its part, and none sends weights to another.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .conversion import result_dtype, store
from .errors import MissingExtraError, shown
from .file import GGUFFile, Source, opened
from .selection import Names, select
from .tensor import Tensor

try:
    import dask
    import dask.array as da
    import dask.bag as db
    from dask._task_spec import Task
    from dask.array.core import normalize_chunks
    from dask.highlevelgraph import HighLevelGraph
    from dask.tokenize import tokenize
    from dask.utils import parse_bytes
except ModuleNotFoundError as error:
    if error.name != "dask":
        raise
    raise MissingExtraError("dask", "dask") from None

__all__ = ["from_gguf", "map_files"]

#: The files that the last tasks read from: the next task of the same file need not open it again.
_recent: Final[deque[object]] = deque(maxlen=8)


def from_gguf(
    source: Source,
    *,
    names: Names = None,
    dtype: npt.DTypeLike | None = None,
    dequantize: bool = True,
    chunks: int | str | tuple[Any, ...] = "auto",
) -> dict[str, da.Array]:
    """The tensors of a file as lazy Dask arrays, chunked along whole rows.

    Only the header is read here.  Each task opens the file by the reference that it carries, reads its rows and makes
    numbers of them; a worker raises `FileChangedError` if the file is not the one that was opened here.

    Parameters
    ----------
    source : path-like, URL or GGUFFile
        The file, under a name that the workers know it by, too.
    names : str or iterable of str, optional
        Only these tensors: names, or patterns with ``*``, ``?`` or ``[``.
    dtype : {float32, float16, bfloat16, float64}, optional
        What blocks and floats become; integers stay what they are.  None: what the file has, and float32 for blocks.
    dequantize : bool, default True
        False: arrays of stored blocks, of shape ``(*shape[:-1], shape[-1] // block_size)`` and a structured dtype.
    chunks : int, str or tuple, default "auto"
        ``"auto"`` or a size such as ``"64 MiB"``: as many whole rows as make that many bytes of the result (Dask's
        ``array.chunk-size``, 128 MiB, by default).  A number: so many entries of the first axis.  A tuple: as
        `dask.array.from_array` takes it; the last axis is cut between blocks only.

    Returns
    -------
    dict of str to dask.array.Array
        In the file's order.

    Raises
    ------
    GGUFError
        The file is not valid, a name is missing, a ggml type is unknown.
    ValueError
        Chunks that would cut a block.

    Examples
    --------
    >>> import mmgguf.dask
    >>> arrays = mmgguf.dask.from_gguf("model.gguf")  # doctest: +SKIP
    >>> {name: array.std() for name, array in arrays.items() if array.ndim == 2}  # doctest: +SKIP
    """
    with opened(source) as f:
        return {name: _array(f[name], dtype, dequantize, chunks) for name in select(f, names)}


def map_files(function: Callable[[GGUFFile], Any], sources: Iterable[str | os.PathLike[str]]) -> db.Bag:
    """Call a function with each of many files, as a Dask bag of records; a file that fails is a record too.

    Parameters
    ----------
    function : callable
        Called with an open `GGUFFile`; what it returns must not need the file, which is closed afterwards.
    sources : iterable of path-like or URL
        The files, one task each.

    Returns
    -------
    dask.bag.Bag
        Of dicts: ``source``, ``result`` (None where it failed) and ``error`` (None, or what went wrong as text).
        Every exception but those that end a process becomes a record: a bad file never ends the job.

    Examples
    --------
    >>> import mmgguf.dask
    >>> mmgguf.dask.map_files(lambda f: f.parameter_count, ["model.gguf"]).compute(scheduler="sync")  # doctest: +SKIP
    """
    every = list(sources)
    return db.from_sequence(every, partition_size=1).map(partial(_record, function))


def _record(function: Callable[[GGUFFile], Any], source: str | os.PathLike[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"source": source, "result": None, "error": None}
    try:
        with opened(source) as f:
            record["result"] = function(f)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    return record


def _array(tensor: Tensor, dtype: npt.DTypeLike | None, dequantize: bool, chunks: Any) -> da.Array:
    layout = tensor.layout
    if dequantize or layout.is_plain:
        shape, target, unit = tensor.shape, result_dtype(tensor, dtype if dequantize else None), layout.block_size
    else:
        shape, target, unit = layout.stored_shape(tensor.shape), layout.stored(tensor.byte_order), 1
    cut = _cut(shape, target, chunks)
    if shape and any(n % unit for n in cut[-1]):
        raise ValueError(
            f"{shown(tensor.name)}: chunks of {cut[-1]} elements along the last axis cut blocks; "
            f"use multiples of {unit}"
        )
    wanted = target if unit > 1 or layout.is_plain else None
    # Not the tensor itself: schedulers unpickle tasks, too, and need not have the file.
    restore, reference = tensor.__reduce__()
    key = f"gguf-{tokenize(reference, str(wanted), cut)}"
    places = itertools.product([key], *(range(len(axis)) for axis in cut))
    tasks = {
        at: Task(at, _read, restore, reference, part, wanted) for at, part in zip(places, _parts(cut), strict=True)
    }
    meta = np.empty((0,) * len(shape), target)
    return da.Array(HighLevelGraph.from_collections(key, tasks), key, cut, meta=meta)


def _cut(shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Any) -> tuple[tuple[int, ...], ...]:
    """The sizes of chunks along each axis."""
    if isinstance(chunks, int):
        chunks = (chunks, *shape[1:])
    if not isinstance(chunks, str):
        given: tuple[tuple[int, ...], ...] = normalize_chunks(chunks, shape, dtype=dtype)
        return given
    limit = parse_bytes(dask.config.get("array.chunk-size") if chunks == "auto" else chunks)
    # One range of the file each: the slower axes are taken one by one until what is left of the shape fits.
    sizes, inside = [1] * len(shape), dtype.itemsize
    for axis in reversed(range(len(shape))):
        whole = axis == len(shape) - 1 or inside * shape[axis] <= limit
        sizes[axis] = shape[axis] if whole else max(1, limit // inside)
        inside *= shape[axis]
        if not whole:
            break
    found: tuple[tuple[int, ...], ...] = normalize_chunks(tuple(sizes), shape)
    return found


def _parts(cut: tuple[tuple[int, ...], ...]) -> Iterator[tuple[slice, ...]]:
    """Where each chunk lies, in the order of its indices."""
    edges = (itertools.pairwise(itertools.accumulate(axis, initial=0)) for axis in cut)
    return itertools.product(*([slice(*pair) for pair in pairs] for pairs in edges))


def _read(
    restore: Callable[..., Tensor], reference: tuple[Any, ...], part: tuple[slice, ...], dtype: np.dtype[Any] | None
) -> npt.NDArray[Any]:
    """A chunk: numbers of that dtype, or stored blocks where there is none."""
    tensor = restore(*reference)
    if tensor.storage not in _recent:
        _recent.append(tensor.storage)
    unit = 1 if dtype is None else tensor.layout.block_size
    rows = part
    if part and unit > 1:
        rows = (*part[:-1], slice(part[-1].start // unit, part[-1].stop // unit))
    stored = np.ascontiguousarray(tensor.data_at(rows))
    if dtype is None or stored.dtype == dtype:
        # A task's result outlives the file, which others may change.
        return stored.copy() if stored.base is not None else stored
    out = np.empty(tuple(edge.stop - edge.start for edge in part), dtype)
    store(stored, tensor, out)
    return out
