"""DLPack for bfloat16, which numpy cannot export: it knows the dtype only as opaque bytes.

The same memory goes out as uint16, and the dtype code in the capsule is set to that of bfloat16 before anybody
sees it.  Layout of the structures: ``dlpack.h``, version 1.0.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["export_bfloat16"]

_KDL_BFLOAT: Final = 4


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("dl_tensor", _DLTensor),)


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _DLTensor),
    )


_STRUCTURES: Final[dict[bytes, type[Any]]] = {
    b"dltensor": _DLManagedTensor,
    b"dltensor_versioned": _DLManagedTensorVersioned,
}

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def export_bfloat16(array: npt.NDArray[Any], **options: Any) -> Any:
    """A DLPack capsule of a bfloat16 array in native byte order; `options` are those of ``__dlpack__``."""
    capsule = array.view(np.uint16).__dlpack__(**options)
    for name, structure in _STRUCTURES.items():
        if _is_valid(capsule, name):
            structure.from_address(_get_pointer(capsule, name)).dl_tensor.dtype_code = _KDL_BFLOAT
            return capsule
    raise BufferError("numpy made a DLPack capsule of an unknown kind")
