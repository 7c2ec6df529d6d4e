"""Where a module's parameter is in a file, and how its numbers were changed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..conversion import result_dtype, values
from ..tensor import Tensor

__all__ = ["Origin", "Plan", "numbers_of", "packed_bytes", "shape_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """One tensor of a file, and what turns it into what a module expects.

    Attributes
    ----------
    name : str
        Of the tensor in the file.
    rows : ndarray of intp, optional
        The order in which its rows are to be taken.
    plus : float
        What is to be added to its numbers.
    shape : tuple of int, optional
        What its shape is to become, if not what it is.
    """

    name: str
    rows: npt.NDArray[np.intp] | None = None
    plus: float = 0.0
    shape: tuple[int, ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is what the module expects."""
        return self.rows is None and not self.plus and self.shape is None


#: For each key of a module its origin; several are joined along the rows.
Plan = dict[str, tuple[Origin, ...]]


def shape_of(tensors: Mapping[str, Tensor], origins: tuple[Origin, ...]) -> tuple[int, ...]:
    """The shape of the parameter that some origins make together."""
    shapes = [origin.shape or tensors[origin.name].shape for origin in origins]
    if len(shapes) == 1:
        return shapes[0]
    rows = sum(shape[-2] for shape in shapes)
    return (*shapes[0][:-2], rows, shapes[0][-1])


def numbers_of(
    tensors: Mapping[str, Tensor], origins: tuple[Origin, ...], dtype: np.dtype[Any] | None
) -> npt.NDArray[Any]:
    """The parameter that some origins make together, as numbers of that dtype in new memory."""
    parts = [_numbers(tensors[origin.name], origin, dtype) for origin in origins]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


def _numbers(tensor: Tensor, origin: Origin, dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
    target = result_dtype(tensor, dtype)
    # What is added is added in float32, before anything is rounded.
    array = values(tensor, np.dtype(np.float32) if origin.plus else target)
    if origin.rows is not None:
        array = array[origin.rows]
    if origin.plus:
        array = array + np.float32(origin.plus)
    # Not a view: the file's memory is not to be written to.
    array = array.astype(target) if origin.is_plain or array.dtype != target else np.ascontiguousarray(array)
    return array if origin.shape is None else array.reshape(origin.shape)


def packed_bytes(tensor: Tensor, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Stored rows in that order, as little-endian bytes (..., bytes per row) of their own."""
    layout = tensor.layout
    data = tensor.data
    if data.dtype != layout.dtype:
        data = data.astype(layout.dtype)
    # As opaque items: numpy copies structured arrays field by field.
    item = np.dtype((np.void, data.shape[-1] * layout.type_size))
    taken: npt.NDArray[np.uint8] = np.ascontiguousarray(data).view(item)[rows].view(np.uint8)
    return taken.reshape(len(rows), -1)
