"""Tensors of GGUF files as Dask arrays, files as a Dask bag, statistics and comparisons as graphs (extra ``dask``).

A task carries a reference to a tensor, some hundred bytes, and reads its own rows: from the mapping of a local file, or
as ranges of a remote one.  No task reads more than its part, and none sends weights to another.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import indexing
from .conversion import result_dtype, store
from .errors import MissingExtraError, shown
from .file import GGUFFile, Source, opened
from .format.header import TensorInfo
from .inspect.statistics import PART, TensorStats, TensorSums
from .inspect.values import PairSums, ValueComparison, assemble, comparable, compare_structure
from .selection import Names, select
from .storage.base import Reference, Storage
from .tensor import Tensor
from .types import ByteOrder, GGMLType

try:
    import dask
    import dask.array as da
    import dask.bag as db
    from dask._task_spec import Task, TaskRef
    from dask.array.core import normalize_chunks
    from dask.delayed import Delayed
    from dask.highlevelgraph import HighLevelGraph
    from dask.tokenize import tokenize
    from dask.utils import parse_bytes
except ModuleNotFoundError as error:
    if error.name != "dask":
        raise
    raise MissingExtraError("dask", "dask") from None

__all__ = ["compare_values", "from_gguf", "map_files", "stats"]

#: How a task finds its tensor.  Not the tensor itself: schedulers unpickle tasks, too, and need not have the file.
_Reference = tuple[TensorInfo, Reference, int, ByteOrder]
#: The files that the last tasks read from, most recent last: the next task of the same file need not open it again.
_files: Final[dict[Reference, Storage]] = {}
_MOST_FILES: Final = 8
_lock: Final = threading.Lock()
#: What every kernel reads of a file when it is told that a range will be needed: of more, some read the beginning only.
_READ_AHEAD: Final = 128 << 10


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
    >>> arrays = mmgguf.dask.from_gguf("model.gguf")
    >>> float(arrays["output_norm.weight"].sum().compute(scheduler="sync"))
    256.0
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
    >>> mmgguf.dask.map_files(lambda f: f.parameter_count, ["model.gguf"]).compute(scheduler="sync")
    [{'source': 'model.gguf', 'result': 67840, 'error': None}]
    """
    every = list(sources)
    return db.from_sequence(every, partition_size=1).map(partial(_record, function))


def stats(source: Source, *, names: Names = None, chunks: int | str = "32 MiB") -> dict[str, Delayed | None]:
    """Statistics of tensors' numbers, as a graph: what `mmgguf.inspect.stats` computes, to the bit.

    Parameters
    ----------
    source : path-like, URL or GGUFFile
        The model, under a name that the workers know it by, too.
    names : str or iterable of str, optional
        Which tensors, by name or pattern; all by default.
    chunks : int or str, default "32 MiB"
        Stored bytes that a task reads, in whole pieces of 2**20 numbers.

    Returns
    -------
    dict of str to dask.delayed.Delayed
        Of `mmgguf.inspect.TensorStats`, in the file's order; None for a tensor of an unknown ggml type.

    Raises
    ------
    GGUFError
        The file is not valid, or a name is missing.

    Examples
    --------
    >>> import dask, mmgguf.dask
    >>> (found,) = dask.compute(mmgguf.dask.stats("model.gguf"), scheduler="sync")
    >>> found == mmgguf.inspect.stats("model.gguf")
    True
    """
    limit = parse_bytes(chunks)
    with opened(source) as f:
        return {name: _stats_of(f[name], limit) for name in select(f, names)}


def compare_values(a: Source, b: Source, *, names: Names = None, chunks: int | str = "32 MiB") -> Delayed:
    """Compare the numbers of two models, as a graph: what `mmgguf.inspect.compare_values` computes, to the bit.

    Headers and metadata are compared here, at once; tensors are read by the tasks.

    Parameters
    ----------
    a, b : path-like, URL or GGUFFile
        The models, under names that the workers know them by, too; errors are relative to `a`.
    names : str or iterable of str, optional
        Which tensors of `a`, by name or pattern.
    chunks : int or str, default "32 MiB"
        Stored bytes that a task reads of the larger of both, in whole pieces of 2**20 numbers.

    Returns
    -------
    dask.delayed.Delayed
        Of `mmgguf.inspect.ValueComparison`.

    Raises
    ------
    GGUFError
        A file is not valid, or a name is missing.

    Examples
    --------
    >>> import mmgguf.dask
    >>> mmgguf.dask.compare_values("model.gguf", "model.gguf").compute(scheduler="sync").types[0].rmse
    0.0
    """
    limit = parse_bytes(chunks)
    with opened(a) as first, opened(b) as second:
        structure = compare_structure(first, second, names)
        pairs = [
            _distance_of(first[name], second[name], limit)
            for name in select(first, names)
            if comparable(first, second, name)
        ]
        key = f"compare-{tokenize([pair.key for pair in pairs], structure)}"
        task = Task(key, _assembled, first.path, second.path, structure, *(TaskRef(pair.key) for pair in pairs))
        return Delayed(key, HighLevelGraph.from_collections(key, {key: task}, dependencies=pairs))


def _stats_of(tensor: Tensor, limit: int) -> Delayed | None:
    if not isinstance(tensor.type, GGMLType):
        return None
    what = tensor.name, tensor.type, tensor.shape
    return _summed("stats", _take_stats, _stats_result, what, limit, tensor)


def _distance_of(a: Tensor, b: Tensor, limit: int) -> Delayed:
    what = a.name, GGMLType(a.type), GGMLType(b.type)
    return _summed("distance", _take_pair, _pair_result, what, limit, a, b)


def _summed(
    prefix: str, take: Callable[..., Any], result: Callable[..., Any], what: Any, limit: int, *tensors: Tensor
) -> Delayed:
    """A task for each range of elements, and one that puts them together; one for both where there is one range."""
    references = [_reference(tensor) for tensor in tensors]
    size, stored = tensors[0].size, max(tensor.nbytes for tensor in tensors)
    step = max(1, limit * size // max(1, stored) // PART) * PART
    key = f"{prefix}-{tokenize(references, step)}"
    if size <= step:
        return Delayed(key, {key: Task(key, _at_once, take, result, what, 0, size, *references)})
    tasks = {
        (part := f"{key}-{number}"): Task(part, take, start, min(start + step, size), *references)
        for number, start in enumerate(range(0, size, step))
    }
    last = Task(key, result, what, *(TaskRef(part) for part in tasks))
    return Delayed(key, {**tasks, key: last})


def _reference(tensor: Tensor) -> _Reference:
    return tensor.info, tensor.storage.reference(), tensor.data_offset, tensor.byte_order


def _restored(reference: _Reference) -> Tensor:
    info, file, data_offset, byte_order = reference
    # Two tasks of one process do not open a file twice, which is two requests for its beginning if it is remote.
    with _lock:
        storage = _files.pop(file, None)
        if storage is None or not file.is_current(storage):
            storage = file.open(header=False)
            # Tasks say what they need: the kernel's guess at what comes next would be another worker's part.
            storage.advise("random")
        _files[file] = storage
        while len(_files) > _MOST_FILES:
            del _files[next(iter(_files))]
    return Tensor(info, storage, data_offset, byte_order)


def _stored(tensor: Tensor, part: tuple[slice, ...], unit: int) -> npt.NDArray[Any]:
    """A part of the stored form; the last axis of `part` counts so many elements to a block."""
    if part and unit > 1:
        part = (*part[:-1], slice(part[-1].start // unit, part[-1].stop // unit))
    # Integers in place of the first slices of one entry: then one range of the file is all that is read.
    single = [edge.start for edge in itertools.takewhile(lambda edge: edge.stop - edge.start == 1, part[:-1])]
    key = (*single, *part[len(single) :])
    layout = tensor.layout
    span = indexing.part(key, layout.stored_shape(tensor.shape))
    begin = tensor.file_offset + span.start * layout.type_size
    _prefetch(tensor, begin, math.prod(span.shape) * layout.type_size)
    return tensor.data_at(key).reshape(tuple(edge.stop - edge.start for edge in part))


def _prefetch(tensor: Tensor, offset: int, nbytes: int) -> None:
    storage = tensor.storage
    step = nbytes if storage.is_remote else _READ_AHEAD
    for start in range(offset, offset + nbytes, step or 1):
        storage.prefetch(start, min(step, offset + nbytes - start), once=True)


def _at_once(
    take: Callable[..., Any], result: Callable[..., Any], what: Any, start: int, stop: int, *references: _Reference
) -> Any:
    return result(what, take(start, stop, *references))


def _taken(reference: _Reference, start: int, stop: int) -> Tensor:
    """A tensor of which elements start to stop will be read."""
    tensor = _restored(reference)
    layout = tensor.layout
    begin, end = (edge // layout.block_size * layout.type_size for edge in (start, stop))
    _prefetch(tensor, tensor.file_offset + begin, end - begin)
    return tensor


def _take_stats(start: int, stop: int, reference: _Reference) -> TensorSums:
    tensor, sums = _taken(reference, start, stop), TensorSums()
    for begin in range(start, stop, PART):
        sums.take(tensor, begin, min(begin + PART, stop))
    return sums


def _stats_result(what: tuple[str, GGMLType, tuple[int, ...]], *parts: TensorSums) -> TensorStats:
    total = TensorSums()
    for part in parts:
        total.merge(part)
    return total.result(*what)


def _take_pair(start: int, stop: int, a: _Reference, b: _Reference) -> PairSums:
    ours, theirs, sums = _taken(a, start, stop), _taken(b, start, stop), PairSums()
    for begin in range(start, stop, PART):
        sums.take(ours, theirs, begin, min(begin + PART, stop))
    return sums


def _pair_result(what: tuple[str, GGMLType, GGMLType], *parts: PairSums) -> Any:
    total = PairSums()
    for part in parts:
        total.merge(part)
    return total.result(*what)


def _assembled(a: str, b: str, structure: Any, *pairs: Any) -> ValueComparison:
    return assemble(a, b, structure, pairs)


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
    reference = _reference(tensor)
    key = f"gguf-{tokenize(reference, str(wanted), cut)}"
    places = itertools.product([key], *(range(len(axis)) for axis in cut))
    tasks = {at: Task(at, _read, reference, part, wanted) for at, part in zip(places, _parts(cut), strict=True)}
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


def _read(reference: _Reference, part: tuple[slice, ...], dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
    """A chunk: numbers of that dtype, or stored blocks where there is none."""
    tensor = _restored(reference)
    stored = np.asarray(_stored(tensor, part, 1 if dtype is None else tensor.layout.block_size), order="C")
    if dtype is None or stored.dtype == dtype:
        # A task's result outlives the file, which others may change.
        return stored.copy() if stored.base is not None else stored
    out = np.empty(tuple(edge.stop - edge.start for edge in part), dtype)
    store(stored, tensor, out)
    return out
