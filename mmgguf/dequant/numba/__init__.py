"""Compiled kernels (extra ``fast``): one per type, in numba, writing any of four dtypes.

``KERNELS`` has every block type, and of the plain ones F32, F16 and BF16 (as blocks of one element).

``KERNELS[type](raw, out)`` dequantizes a whole range of blocks in one go.  Every dtype is converted in
registers, so no kernel needs scratch memory, and the bits are those that float32's ``astype`` gives.  The
kernels release the GIL and hold no state: threads take ranges of blocks.

Each kernel is compiled at its first use for each dtype, and cached on disk: in ``__pycache__`` or, where that
is read-only, in the user's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any, Final

import ml_dtypes
import numpy as np
from numba import config, njit, types
from numba.core.caching import FunctionCache

from ...types import LAYOUTS, GGMLType
from .kernels import SOURCES, address_of
from .vectors import STREAM_ALIGNMENT, Output, OutputName

__all__ = ["KERNELS", "OUTPUT_DTYPES", "Kernel"]

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and these kernels only run compiled")

#: The dtypes that a kernel writes.
OUTPUT_DTYPES: Final[dict[np.dtype[Any], OutputName]] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.float64): "float64",
}

_BYTE: Final = np.dtype(np.uint8)


def _stamp() -> str:
    """A hash of what the kernels are made of beside their own source file, which numba watches itself."""
    digest = hashlib.sha256((files(__package__) / "vectors.py").read_bytes())
    for name in ("codebooks.npz", "codebooks.py"):
        digest.update((files("mmgguf.dequant") / name).read_bytes())
    return digest.hexdigest()


_STAMP: Final = _stamp()


class _Cache(FunctionCache):
    """numba's disk cache, keyed also by the code that a kernel includes; its errors are ignored."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return super()._index_key(sig, codegen), _STAMP

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:  # a full disk
            self.disable()


def _compile(function: Any) -> Any:
    """A dispatcher that compiles lazily, releases the GIL and caches on disk."""
    # Python's error model would add checks.
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    # No directory may be writable: then every process compiles anew.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher


@cache
def _address() -> Any:
    """A function that tells where an array of bytes begins, ten times as fast as ``ndarray.ctypes.data``."""
    return _compile(address_of).compile((types.Array(types.uint8, 2, "C", readonly=True),))


class Kernel:
    """The compiled kernel of one type."""

    __slots__ = ("_block_size", "_compiled", "_entries", "_type_size", "type")

    def __init__(self, type_: GGMLType) -> None:
        layout = LAYOUTS[type_]
        self.type = type_
        self._block_size = layout.block_size
        self._type_size = layout.type_size
        self._compiled = _compile(SOURCES[type_])
        self._entries: dict[tuple[np.dtype[Any], bool], Any] = {}

    def __repr__(self) -> str:
        return f"<Kernel {self.type.name}>"

    def __call__(self, raw: np.ndarray[Any, Any], out: np.ndarray[Any, Any], *, stream: bool = False) -> None:
        """Dequantize ``raw`` into ``out``.

        Parameters
        ----------
        raw : numpy.ndarray
            Stored little-endian blocks, uint8, shape ``(n_blocks, type_size)``, C-contiguous.
        out : numpy.ndarray
            float32, float16, bfloat16 or float64, shape ``(n_blocks, block_size)``, C-contiguous, writable.
        stream : bool, optional
            Whether to write past the caches: for parts of an output that they would not hold anyway.  An ``out``
            that is not aligned to 16 bytes is always written as usual.

        Raises
        ------
        ValueError
            ``raw`` or ``out`` has another dtype, shape or memory layout: compiled code checks no bounds.
        """
        count = raw.shape[0] if raw.ndim == 2 else -1
        if raw.dtype != _BYTE or raw.shape != (count, self._type_size) or not raw.flags.c_contiguous:
            raise ValueError(
                f"{self.type.name}: blocks must be C-contiguous uint8 of shape (n, {self._type_size}), "
                f"got {raw.dtype} {raw.shape}"
            )
        if (
            out.dtype not in OUTPUT_DTYPES
            or out.shape != (count, self._block_size)
            or not (out.flags.c_contiguous and out.flags.writeable)
        ):
            raise ValueError(
                f"{self.type.name}: out must be writable C-contiguous float32, float16, bfloat16 or float64 "
                f"of shape ({count}, {self._block_size}), got {out.dtype} {out.shape}"
            )
        address = _address()
        source, target = address(raw), address(out.view(_BYTE))
        # Taking the GIL again orders streamed stores before whatever this thread does next.
        self._entry(out.dtype, stream and target % STREAM_ALIGNMENT == 0)(source, target, count)

    def _entry(self, dtype: np.dtype[Any], streamed: bool) -> Any:
        """The compiled code for one kind of output."""
        entry = self._entries.get((dtype, streamed))
        if entry is None:
            signature = (types.intp, Output(OUTPUT_DTYPES[dtype], streamed), types.intp)
            entry = self._entries[dtype, streamed] = self._compiled.compile(signature)
        return entry


KERNELS: Final[dict[GGMLType, Kernel]] = {type_: Kernel(type_) for type_ in SOURCES}
