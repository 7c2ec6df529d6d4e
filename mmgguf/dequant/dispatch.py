"""Dequantize blocks: checks, and the choice of backend, chunks, dtypes and threads.

A tensor is cut into chunks that fit in the cache.  Each chunk is gathered if its blocks are not contiguous or
are big-endian, computed by the kernel of its type straight into the output where that is contiguous and of a
dtype that the kernel writes, and otherwise into a scratch buffer that is converted and stored.  So no
temporary grows with the tensor.
"""

from __future__ import annotations

import importlib
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import MissingExtraError, UnknownTypeError
from ..types import LAYOUTS, GGMLType, Layout, layout_of
from .halves import from_half, to_half
from .memory import LARGE, empty
from .threads import MOST_THREADS, cores, spread

__all__ = ["BACKENDS", "DTYPES", "Backend", "dequantize", "get_backend", "target_dtype"]

Backend = Literal["numpy", "numba"]
BACKENDS: Final[tuple[Backend, ...]] = ("numba", "numpy")
#: What results may be.
DTYPES: Final = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))

_FLOAT16: Final = np.dtype(np.float16)
_FLOAT32: Final = np.dtype(np.float32)
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
#: Elements that a thread should have to do before it is worth starting (about a millisecond).
_PER_THREAD: Final = 1 << 20
#: Elements per chunk for compiled kernels when results go through the scratch buffer.
_SCRATCH: Final = 1 << 16
#: Conversions of plain types that numpy is slow at.
_PLAIN_KERNELS: Final = {(_FLOAT16, _FLOAT32): from_half, (_FLOAT32, _FLOAT16): to_half}
#: Bytes of output that no cache holds until somebody looks at them.
_STREAM_FROM: Final = 4 << 20
#: Elements per chunk of plain types, which need no scratch.
_PLAIN: Final = 1 << 18

#: ``(blocks, out, stream)`` with blocks 1-D, little-endian and contiguous; out (n, block_size), C-contiguous.
#: ``stream`` says that the output is too large to be found in the cache afterwards.
_Compute = Callable[[NDArray[Any], NDArray[Any], bool], None]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one ggml type is converted to one dtype."""

    layout: Layout
    #: None for plain types that numpy converts.
    compute: _Compute | None
    #: What ``compute`` writes: float32, or the dtype of the result.
    computed: np.dtype[Any]
    #: Elements per chunk.
    chunk: int
    #: Whether ``compute`` needs no chunks where blocks and output can be used as they are.
    compiled: bool = False


def dequantize(
    blocks: NDArray[Any],
    type: int,
    dtype: DTypeLike = np.float32,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
    backend: Backend | None = None,
) -> NDArray[Any]:
    """Dequantize stored blocks, bit for bit as ggml's C library does.

    Parameters
    ----------
    blocks : numpy.ndarray
        Block types: blocks in the structured dtype of `mmgguf.types.LAYOUTS`, of either byte order, shape
        (..., n_blocks).  Plain types: numbers in their stored dtype, shape (..., n).  Both: uint8, whose last
        axis is a whole number of blocks' little-endian bytes.  Leading axes may have any strides.
    type : GGMLType or int
        What the blocks are.
    dtype : {float32, float16, bfloat16, float64}
        Of the result; None means float32 for block types, and for plain types their own.  Block types are computed
        in float32, as ggml does, then rounded to the nearest even or widened; plain types are converted directly, as
        by `numpy.ndarray.astype`.
    out : numpy.ndarray, optional
        Memory to write to: of that dtype, shape (..., n_blocks * block_size), any strides.
    threads : int, optional
        Threads to spread the work over.  By default every available core for a large tensor, one for a small.
    backend : {"numba", "numpy"}, optional
        By default the environment variable ``MMGGUF_BACKEND``, or else numba where it is installed.

    Returns
    -------
    numpy.ndarray
        ``out``, or a new array.

    Raises
    ------
    UnknownTypeError
        There is no such ggml type.
    TypeError
        Blocks of another dtype than the type's, a dtype that is not offered, an ``out`` of another dtype, or
        ``threads`` that is no integer.
    ValueError
        A last axis that is not a whole number of blocks, an ``out`` that is read-only, of the wrong shape or
        overlaps the blocks, ``threads`` below one, or an unknown backend.
    ImportError
        numba was asked for and cannot be used; where it is not installed, a `MissingExtraError`.

    Notes
    -----
    Everything is checked before anything is written.  Scratch memory is below 8 MiB per thread.

    What is not a number (NaN) stays that.  Its sign and payload are kept where the result has the stored dtype, in
    either byte order.  Otherwise they may differ from ggml's and between backends: float32 to float16 loses both with
    numpy, to bfloat16 the payload with numpy and both with numba, which also makes the NaNs of float16 quiet ones.

    Examples
    --------
    >>> with mmgguf.open("model.gguf") as f:
    ...     t = f["token_embd.weight"]
    ...     mmgguf.dequantize(t.data[:2], t.type, dtype=np.float16).shape
    (2, 256)
    """
    if not isinstance(type, int | np.integer):
        raise TypeError(f"type must be a GGMLType or its number, got {type!r:.60}")
    layout = layout_of(type)
    if layout is None:
        raise UnknownTypeError(f"ggml type {type} is not one that this version knows: cannot dequantize it")
    ggml_type = GGMLType(type)
    target = layout.dtype if dtype is None and layout.is_plain else target_dtype(dtype)
    stored = _stored(np.asarray(blocks), ggml_type, layout)
    shape = (*stored.shape[:-1], stored.shape[-1] * layout.block_size)
    threads = _thread_count(threads)
    plan = _plan(ggml_type, target, get_backend(backend))
    if out is None:
        is_large = math.prod(shape) * target.itemsize >= LARGE
        out = empty(shape, target) if is_large else np.empty(shape, target)
    else:
        _check_out(out, shape, target, stored)
    _run(plan, stored, out, threads)
    return out


def _thread_count(threads: int | None) -> int | None:
    if threads is None:
        return None
    try:
        count = operator.index(threads)
    except TypeError:
        raise TypeError(f"threads must be an integer or None, got {threads!r:.60}") from None
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    return min(count, MOST_THREADS)


def get_backend(name: str | None = None) -> Backend:
    """The backend chosen by ``name``, else by the environment, else by what is installed."""
    asked, who = name, "backend"
    if asked is None:
        asked, who = os.environ.get("MMGGUF_BACKEND") or None, "the environment variable MMGGUF_BACKEND"
    if asked is None:
        return "numpy" if isinstance(_compiled(), Exception) else "numba"
    if asked not in BACKENDS:
        raise ValueError(f"{who} must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked == "numpy":
        return "numpy"
    compiled = _compiled()
    if isinstance(compiled, ModuleNotFoundError):
        raise MissingExtraError("numba", "fast")
    if isinstance(compiled, Exception):
        raise ImportError(f"numba is installed, but cannot be used: {compiled}") from compiled
    return "numba"


@cache
def _compiled() -> ModuleType | Exception:
    """The module of numba kernels, or why it cannot be used: numba is missing, broken or switched off.

    It has ``KERNELS``, type → ``(raw, out, stream=)`` with raw uint8 (n, type_size) and out (n, block_size)
    of any dtype in `DTYPES`, both C-contiguous, for any n.  They release the GIL.
    """
    try:
        return importlib.import_module(".numba", __package__)
    except Exception as error:  # whatever a package of compiled code may raise where it does not fit the system
        return error


def target_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype that an argument stands for; raises TypeError for one that is not offered."""
    target = np.dtype(np.float32 if dtype is None else dtype)
    if target not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(d.name for d in DTYPES)}, got {target}")
    return target


def _stored(blocks: NDArray[Any], type_: GGMLType, layout: Layout) -> NDArray[Any]:
    """The blocks as an array of the type's stored dtype, of either byte order, without copying."""
    if blocks.dtype.kind == "S":
        raise TypeError(f"{type_.name} blocks must be an array; np.frombuffer(data, np.uint8) makes one of bytes")
    if blocks.ndim == 0:
        raise ValueError(f"{type_.name} blocks need at least one axis")
    if blocks.dtype in (layout.dtype, layout.stored("big")):
        return blocks
    if blocks.dtype != np.uint8:
        raise TypeError(
            f"{type_.name} blocks must have dtype {layout.dtype} (of either byte order) or uint8, got {blocks.dtype}"
        )
    size = blocks.shape[-1]
    if size % layout.type_size:
        raise ValueError(
            f"a last axis of {size} bytes is not a whole number of {type_.name} blocks of {layout.type_size} bytes"
        )
    if blocks.size == 0:
        return np.empty((*blocks.shape[:-1], size // layout.type_size), layout.dtype)
    if layout.type_size > 1 and blocks.strides[-1] != 1:
        raise ValueError("the last axis of raw bytes must be contiguous")
    return blocks.view(layout.dtype)


def _check_out(out: NDArray[Any], shape: tuple[int, ...], target: np.dtype[Any], stored: NDArray[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, got {out.__class__.__name__}")
    if out.dtype != target:
        raise TypeError(f"out must have dtype {target}, as dtype= says, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if np.may_share_memory(stored, out) and _overlap(stored, out):
        raise ValueError("out overlaps the blocks")


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # the stubs know but two numbers
    except np.exceptions.TooHardError:
        return True


# What to do for a type


@cache
def _plan(type_: GGMLType, target: np.dtype[Any], backend: Backend) -> _Plan:
    layout = LAYOUTS[type_]
    if layout.dtype == target == _BFLOAT16:
        # A copy keeps what is not a number; the compiled kernel goes by way of float32.
        return _Plan(layout, None, target, _PLAIN)
    if backend == "numba":
        compiled = _compiled()
        assert isinstance(compiled, ModuleType)
        # Every block type, and the plain ones that the kernels convert faster than numpy.
        if type_ in compiled.KERNELS:
            return _Plan(layout, _from_bytes(compiled.KERNELS[type_], layout), target, _SCRATCH, compiled=True)
    if layout.is_plain:
        function = _PLAIN_KERNELS.get((layout.dtype, target))
        return _Plan(layout, function and _without_stream(function), target, _PLAIN)
    from .numpy import KERNELS

    entry = KERNELS[type_]
    return _Plan(layout, _without_stream(entry.function), _FLOAT32, entry.chunk)


def _from_bytes(function: Callable[..., None], layout: Layout) -> _Compute:
    type_size = layout.type_size

    def compute(blocks: NDArray[Any], out: NDArray[Any], stream: bool) -> None:
        function(blocks.view(np.uint8).reshape(-1, type_size), out, stream=stream)

    return compute


def _without_stream(function: Callable[[NDArray[Any], NDArray[Any]], None]) -> _Compute:
    def compute(blocks: NDArray[Any], out: NDArray[Any], stream: bool) -> None:
        function(blocks, out)

    return compute


# Doing it


#: Blocks and where their numbers go: views of the same leading axes.
_Job = tuple[NDArray[Any], NDArray[Any]]


def _run(plan: _Plan, stored: NDArray[Any], out: NDArray[Any], threads: int | None) -> None:
    if out.size == 0:
        return
    if threads is None:
        parts = out.size // _PER_THREAD
        threads = min(cores(), parts) if parts > 1 else 1
    stream = out.nbytes >= _STREAM_FROM
    if stored.flags.c_contiguous and out.flags.c_contiguous:
        stored, out = stored.reshape(-1), out.reshape(-1)
        if plan.compiled and plan.compute is not None and _is_direct(plan, stored, out):
            _run_whole(plan.compute, stored, out.reshape(-1, plan.layout.block_size), threads, stream)
            return
    jobs = _jobs(plan, stored, out)
    if threads == 1:
        _work(plan, jobs, stream)
    else:
        spread(lambda job: _work(plan, [job], stream), jobs, threads)


def _jobs(plan: _Plan, stored: NDArray[Any], out: NDArray[Any]) -> Iterator[_Job]:
    """Views that cover both arrays, of at most `chunk` elements each or of one block, whatever the strides."""
    if out.size <= plan.chunk:
        yield stored, out
    elif stored.ndim == 1:
        block_size = plan.layout.block_size
        step = max(1, plan.chunk // block_size)
        for start in range(0, len(stored), step):
            stop = start + step
            yield stored[start:stop], out[start * block_size : stop * block_size]
    elif (step := plan.chunk // out[0].size) > 1:
        for start in range(0, len(stored), step):
            yield stored[start : start + step], out[start : start + step]
    else:
        for inner, inner_out in zip(stored, out, strict=True):
            yield from _jobs(plan, inner, inner_out)


def _run_whole(compute: _Compute, blocks: NDArray[Any], out: NDArray[Any], threads: int, stream: bool) -> None:
    """Run a compiled kernel on contiguous memory, with as little overhead as possible."""
    if threads == 1:
        compute(blocks, out, stream)
        return
    step = -(-blocks.size // (4 * threads))

    def work(start: int) -> None:
        compute(blocks[start : start + step], out[start : start + step], stream)

    spread(work, range(0, blocks.size, step), threads)


def _is_direct(plan: _Plan, stored: NDArray[Any], out: NDArray[Any]) -> bool:
    """Whether a kernel can read these blocks and write this output as they are."""
    return (
        plan.compute is not None
        and out.dtype == plan.computed
        and out.flags.c_contiguous
        and out.flags.aligned
        and stored.flags.c_contiguous
        and stored.dtype == plan.layout.dtype
    )


def _work(plan: _Plan, jobs: Iterable[_Job], stream: bool) -> None:
    # Scales may be infinite or NaN, and float16 overflows: that is in the numbers, not worth a warning.
    with np.errstate(all="ignore"):
        if plan.compute is None:
            for stored, out in jobs:
                np.copyto(out, stored, casting="unsafe")
            return
        scratch: NDArray[Any] | None = None
        for stored, out in jobs:
            blocks = _gather(stored, plan.layout)
            if _is_direct(plan, blocks, out):
                plan.compute(blocks, out.reshape(-1, plan.layout.block_size), stream)
                continue
            if scratch is None or scratch.shape[0] < blocks.size:
                scratch = np.empty((blocks.size, plan.layout.block_size), plan.computed)
            values = scratch[: blocks.size]
            plan.compute(blocks, values, False)
            _store(values.reshape(out.shape), out)


def _store(values: NDArray[Any], out: NDArray[Any]) -> None:
    """Convert and store; for float16 by the faster way."""
    if out.dtype == _FLOAT16 and values.dtype == _FLOAT32:
        contiguous = out if out.flags.c_contiguous else np.empty(out.shape, _FLOAT16)
        to_half(values, contiguous)
        if contiguous is out:
            return
        values = contiguous
    np.copyto(out, values, casting="unsafe")


def _gather(stored: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """A contiguous 1-D little-endian array of these blocks; a view where possible."""
    if stored.dtype != layout.dtype:
        return stored.astype(layout.dtype).reshape(-1)
    if not stored.flags.c_contiguous:
        # As opaque items: numpy copies structured arrays field by field.
        opaque = stored.view(np.dtype((np.void, layout.type_size)))
        return np.ascontiguousarray(opaque).reshape(-1).view(layout.dtype)
    return stored.reshape(-1)
