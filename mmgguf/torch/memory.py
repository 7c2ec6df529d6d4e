"""The same memory as a numpy array and as a torch tensor, and which dtypes they share."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["NUMPY_DTYPES", "TORCH_DTYPES", "as_bytes", "as_numpy", "native", "numpy_dtype", "share"]

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
#: What tensors can be dequantized to.
NUMPY_DTYPES: Final[dict[torch.dtype, np.dtype[Any]]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: _BFLOAT16,
    torch.float64: np.dtype(np.float64),
}
TORCH_DTYPES: Final[dict[np.dtype[Any], torch.dtype]] = {
    **{dtype: ours for ours, dtype in NUMPY_DTYPES.items()},
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype of results; raises TypeError for one that is not offered."""
    try:
        return NUMPY_DTYPES[dtype]
    except (KeyError, TypeError):
        offered = ", ".join(map(str, NUMPY_DTYPES))
        raise TypeError(f"dtype must be one of {offered}, got {dtype!r}") from None


def as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The memory of a CPU tensor as a numpy array."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        shared: npt.NDArray[Any] = tensor.view(torch.uint16).numpy().view(_BFLOAT16)
        return shared
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A contiguous array as bytes, in one dimension."""
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


def native(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array in that byte order, aligned and writable; a copy only where it must be one."""
    if array.dtype != dtype or not array.flags.aligned:
        return array.astype(dtype)
    if not array.flags.writeable:
        # Only files that are read get here: the memory is this array's own, and nobody else has it.
        array.flags.writeable = True
    return array


def share(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> torch.Tensor:
    """A tensor of the array's memory, or of a copy where torch cannot use that."""
    array = native(array, dtype)
    if dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
