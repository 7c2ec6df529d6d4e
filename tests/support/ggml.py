"""The C library ggml through ctypes: what the tests hold mmgguf against.

The wheel ``pywhispercpp`` carries ``libggml-base``, built for portable x86-64 (no fused multiply-add).  Where
it is not installed, `require` skips the test; under CI it fails instead: a lost oracle does not go unnoticed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmgguf.bench.ggml import InitParams, Unavailable, c_library, declare, dequantize_in_c
from mmgguf.types import LAYOUTS, GGMLType, ValueType

#: Types newer than the wheel's library.
NOT_IN_C = frozenset({GGMLType.Q2_0})
#: Block types that C stores but never dequantizes.
NO_DEQUANTIZE = NOT_IN_C | {GGMLType.Q8_1}
#: Types that are only intermediate results in C, which `ggml_quantize_chunk` does not make.
NO_QUANTIZE = NOT_IN_C | {GGMLType.Q8_1, GGMLType.Q8_K}

_PTR, _SIZE, _I64, _INT, _STR = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_char_p,
)


class _Tensor(ctypes.Structure):
    """The first fields of ``struct ggml_tensor``: as far as the dimensions."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


_SCALARS: dict[ValueType, tuple[str, Any]] = {
    ValueType.UINT8: ("u8", ctypes.c_uint8),
    ValueType.INT8: ("i8", ctypes.c_int8),
    ValueType.UINT16: ("u16", ctypes.c_uint16),
    ValueType.INT16: ("i16", ctypes.c_int16),
    ValueType.UINT32: ("u32", ctypes.c_uint32),
    ValueType.INT32: ("i32", ctypes.c_int32),
    ValueType.FLOAT32: ("f32", ctypes.c_float),
    ValueType.BOOL: ("bool", ctypes.c_bool),
    ValueType.STRING: ("str", ctypes.c_char_p),
    ValueType.UINT64: ("u64", ctypes.c_uint64),
    ValueType.INT64: ("i64", ctypes.c_int64),
    ValueType.FLOAT64: ("f64", ctypes.c_double),
}

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_blck_size": (_I64, (_INT,)),
    "ggml_type_size": (_SIZE, (_INT,)),
    "ggml_quantize_init": (None, (_INT,)),
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, (_INT,)),
    "ggml_quantize_chunk": (_SIZE, (_INT, _PTR, _PTR, _I64, _I64, _I64, _PTR)),
    "ggml_validate_row_data": (ctypes.c_bool, (_INT, _PTR, _SIZE)),
    "ggml_get_tensor": (ctypes.POINTER(_Tensor), (_PTR, _STR)),
    "ggml_log_set": (None, (_PTR, _PTR)),
    "gguf_get_version": (ctypes.c_uint32, (_PTR,)),
    "gguf_get_alignment": (_SIZE, (_PTR,)),
    "gguf_get_data_offset": (_SIZE, (_PTR,)),
    "gguf_get_n_kv": (_I64, (_PTR,)),
    "gguf_get_key": (_STR, (_PTR, _I64)),
    "gguf_get_kv_type": (_INT, (_PTR, _I64)),
    "gguf_get_arr_type": (_INT, (_PTR, _I64)),
    "gguf_get_arr_n": (_SIZE, (_PTR, _I64)),
    "gguf_get_arr_data": (_PTR, (_PTR, _I64)),
    "gguf_get_arr_str": (_STR, (_PTR, _I64, _SIZE)),
    "gguf_get_tensor_type": (_INT, (_PTR, _I64)),
    "gguf_get_tensor_offset": (_SIZE, (_PTR, _I64)),
    "gguf_get_tensor_size": (_SIZE, (_PTR, _I64)),
} | {f"gguf_get_val_{name}": (ctype, (_PTR, _I64)) for name, ctype in _SCALARS.values()}


@cache
def _load() -> ctypes.CDLL:
    library = c_library()
    declare(library, _SIGNATURES)
    library.ggml_log_set(_silent, None)  # refused files are part of the tests; their messages only fill the log
    return library


@ctypes.CFUNCTYPE(None, _INT, _STR, _PTR)
def _silent(level: int, text: bytes, user_data: int) -> None:
    pass


def available() -> bool:
    try:
        _load()
    except Unavailable:
        return False
    return True


def require() -> ctypes.CDLL:
    """The loaded library; skips the calling test where it is missing, and fails it under CI."""
    try:
        return _load()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def block_size(type_: int) -> int:
    return int(require().ggml_blck_size(type_))


def type_size(type_: int) -> int:
    return int(require().ggml_type_size(type_))


def dequantize(blocks: NDArray[Any], type_: GGMLType, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """All blocks, one after the other, as a flat float32 array."""
    raw = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
    n = raw.size // LAYOUTS[type_].type_size * LAYOUTS[type_].block_size
    if out is None:
        out = np.empty(n, np.float32)
    assert out.flags.c_contiguous
    assert out.size == n
    require()
    dequantize_in_c(type_)(raw, out)
    return out


def quantize(values: NDArray[np.float32], type_: GGMLType) -> NDArray[np.uint8]:
    """The bytes of (rows, columns) float32 values; types that need an importance matrix get a flat one."""
    lib = require()
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    layout = LAYOUTS[type_]
    raw = np.zeros(layout.packed_shape((rows, columns)), np.uint8)
    if type_ in (GGMLType.Q8_1, GGMLType.Q8_K):
        function = getattr(lib, "quantize_row_q8_1_ref" if type_ is GGMLType.Q8_1 else "quantize_row_q8_K_ref")
        function.restype, function.argtypes = None, (_PTR, _PTR, _I64)
        function(values.ctypes.data, raw.ctypes.data, values.size)
        return raw
    lib.ggml_quantize_init(type_)
    imatrix = np.ones(columns, np.float32) if lib.ggml_quantize_requires_imatrix(type_) else None
    written = lib.ggml_quantize_chunk(
        type_,
        values.ctypes.data,
        raw.ctypes.data,
        0,
        rows,
        columns,
        None if imatrix is None else imatrix.ctypes.data,
    )
    assert written == raw.nbytes
    return raw


def is_valid(blocks: NDArray[Any], type_: GGMLType) -> bool:
    """``ggml_validate_row_data``: whether every scale is finite (C prints what it finds to stderr)."""
    raw = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
    return bool(require().ggml_validate_row_data(type_, raw.ctypes.data, raw.nbytes))


class CFile:
    """What C's own reader says of a GGUF file."""

    def __init__(self, lib: ctypes.CDLL, gguf: int, ctx: int | None) -> None:
        self._lib, self._gguf, self._ctx = lib, gguf, ctx
        self.version = int(lib.gguf_get_version(gguf))
        self.alignment = int(lib.gguf_get_alignment(gguf))
        self.data_offset = int(lib.gguf_get_data_offset(gguf))

    @property
    def keys(self) -> list[bytes]:
        return [self._lib.gguf_get_key(self._gguf, i) for i in range(self._lib.gguf_get_n_kv(self._gguf))]

    def value_type(self, index: int) -> tuple[ValueType, ValueType | None]:
        """The value type of a key, and the element type of an array."""
        type_ = ValueType(self._lib.gguf_get_kv_type(self._gguf, index))
        if type_ is not ValueType.ARRAY:
            return type_, None
        return type_, ValueType(self._lib.gguf_get_arr_type(self._gguf, index))

    def value(self, index: int) -> Any:
        """A scalar, bytes for a string, a list of bytes for an array of them, else a numpy array."""
        lib, gguf = self._lib, self._gguf
        type_, element = self.value_type(index)
        if element is None:
            return getattr(lib, f"gguf_get_val_{_SCALARS[type_][0]}")(gguf, index)
        n = lib.gguf_get_arr_n(gguf, index)
        if element is ValueType.STRING:
            return [lib.gguf_get_arr_str(gguf, index, i) for i in range(n)]
        ctype = _SCALARS[element][1]
        if n == 0:
            return np.empty(0, ctype)
        data = lib.gguf_get_arr_data(gguf, index)
        return np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctype)), (n,)).copy()

    @property
    def metadata(self) -> dict[bytes, Any]:
        """Every key and value, in file order.  C cuts strings at their first NUL."""
        return {key: self.value(i) for i, key in enumerate(self.keys)}

    @property
    def tensors(self) -> Mapping[bytes, tuple[int, tuple[int, ...], int, int]]:
        """Name → (type, ne padded with ones to four, offset, bytes), in file order."""
        lib, gguf = self._lib, self._gguf
        result = {}
        for i in range(lib.gguf_get_n_tensors(gguf)):
            name = lib.gguf_get_tensor_name(gguf, i)
            tensor = lib.ggml_get_tensor(self._ctx, name)
            result[name] = (
                int(lib.gguf_get_tensor_type(gguf, i)),
                tuple(tensor.contents.ne),
                int(lib.gguf_get_tensor_offset(gguf, i)),
                int(lib.gguf_get_tensor_size(gguf, i)),
            )
        return result


@contextmanager
def open_gguf(path: str | os.PathLike[str]) -> Iterator[CFile | None]:
    """C's reader on a file (headers only), or None where C refuses it."""
    lib = require()
    ctx = ctypes.c_void_p()
    gguf = lib.gguf_init_from_file(os.fsencode(path), InitParams(True, ctypes.pointer(ctx)))
    if not gguf:
        yield None
        return
    try:
        yield CFile(lib, gguf, ctx.value)
    finally:
        lib.gguf_free(gguf)
        if ctx.value:
            lib.ggml_free(ctx.value)
