"""numpy's rules of indexing as pure functions: from a key and a shape to what has to be read, and to what of that.

A tensor of a block type is indexed by its numbers, and stored by blocks of its last axis.  `select` parts a key into
the index of the blocks and the cut of their numbers; `part` tells which piece of a stored array an index needs.
Neither touches data, and both leave to numpy what only numpy can word: a key that is wrong, or that mixes the axes.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Part", "Selection", "part", "select"]

Shape = tuple[int, ...]

#: Types of indices that choose along one axis each, whatever stands beside them.
_BASIC: Final = frozenset({int, slice})


class Selection(NamedTuple):
    """An index of numbers, parted: ``numbers(stored[blocks])[cut]``.

    Attributes
    ----------
    blocks : tuple
        Index of the stored array, whose last axis counts blocks.
    cut : tuple
        Index of the numbers of these blocks.
    """

    blocks: tuple[Any, ...]
    cut: tuple[Any, ...]


class Part(NamedTuple):
    """What an index needs of a stored array: ``stored.reshape(-1)[start:][:prod(shape)].reshape(shape)[key]``.

    Attributes
    ----------
    start : int
        Item at which the part begins.
    shape : tuple of int
        Its shape; of one row, where there are `rows`.
    rows : ndarray of intp, optional
        Ascending and each once: the part is these entries of the first axis, one after another.
    key : Any
        The index into the part.
    """

    start: int
    shape: Shape
    rows: npt.NDArray[np.intp] | None
    key: Any


def select(key: Any, shape: Shape, block_size: int) -> Selection | None:
    """Part an index of numbers; None where it mixes the last axis with others, and needs all of them.

    Raises
    ------
    IndexError
        The key has too many indices, one out of bounds for the last axis, or one that is no index.

    Examples
    --------
    >>> select((1, slice(30, 40)), (4, 64), 32)
    Selection(blocks=(1, slice(0, 2, None)), cut=(Ellipsis, slice(30, 40, 1)))
    >>> select((1, 40), (4, 64), 32)
    Selection(blocks=(1, slice(1, 2, None)), cut=(Ellipsis, 8))
    """
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) < len(shape) and _BASIC.issuperset(map(type, parts)):
        return Selection(parts, ())  # whole rows
    expanded = _expand(list(parts), shape)
    if expanded is None:
        return None
    *leading, last = expanded
    if isinstance(last, slice):
        wanted = range(*last.indices(shape[-1]))
        low, high = _extent(wanted)
        first = low // block_size
        begin, end = wanted.start - first * block_size, wanted.stop - first * block_size
        # Downwards to the first number of all, a slice has no end.
        cut: Any = slice(begin, None if end < 0 else end, wanted.step) if wanted else slice(0, 0)
        # Appended to the selection of rows, a slice keeps its axis at the end, where the blocks are.
        blocks = slice(first, -(-high // block_size))
    else:
        arrays = [axis for axis, item in enumerate(leading) if not isinstance(item, slice) and np.ndim(item)]
        # To numpy an integer beside arrays is one too.  If the first axis has an array, this changes no axis's place.
        if np.ndim(last) or (arrays and arrays[0]):
            return None
        position = operator.index(last)
        if not -shape[-1] <= position < shape[-1]:
            raise IndexError(f"index {position} is out of bounds for the last axis of size {shape[-1]}")
        first, cut = divmod(position % shape[-1], block_size)
        blocks = slice(first, first + 1)
    return Selection((*leading, blocks), (..., cut))


def _expand(parts: list[Any], shape: Shape) -> list[Any] | None:
    """One index for each axis, masks as numbers; None for what only numpy can apply to all numbers."""
    ndim = len(shape)
    for item in parts:
        if isinstance(item, str | bytes | float | complex):
            raise IndexError(f"an index is an integer, a slice or an array, got {item!r:.60}")
        if item is None or (not isinstance(item, slice) and np.asarray(item).dtype == np.bool_ and np.ndim(item) != 1):
            return None
    ellipses = [i for i, item in enumerate(parts) if item is Ellipsis]
    if len(parts) - len(ellipses) > ndim or len(ellipses) > 1:
        raise IndexError(f"{len(parts)} indices for a tensor of {ndim} dimensions")
    if ellipses:
        if len(parts) > ndim:
            return None  # it stands for no axis, but to numpy it still parts the indices beside it
        parts[ellipses[0] : ellipses[0] + 1] = [slice(None)] * (ndim - len(parts) + 1)
    parts += [slice(None)] * (ndim - len(parts))
    for axis, item in enumerate(parts):
        if not isinstance(item, slice) and np.asarray(item).dtype == np.bool_:
            if len(item) != shape[axis]:
                return None  # numpy says what is wrong with it
            parts[axis] = np.flatnonzero(item)
    return parts


def part(key: Any, shape: Shape) -> Part:
    """What an index needs of a stored array of that shape.

    Less than all of it are what integers in front and the slice after them choose, or the rows of a list or a mask.

    Examples
    --------
    >>> part((2, slice(1, 3)), (4, 8))
    Part(start=17, shape=(2,), rows=None, key=(slice(None, None, 1),))
    >>> part([3, 0, 3], (4, 8)).rows
    array([0, 3])
    """
    parts = key if isinstance(key, tuple) else (key,)
    start, depth = 0, 0
    if all(item is None or item is Ellipsis or isinstance(item, slice) or _is_integer(item) for item in parts):
        for item, length in zip(parts, shape, strict=False):
            if not _is_integer(item) or not -length <= item < length:
                break
            depth += 1
            start += int(item) % length * math.prod(shape[depth:])
    inner, rest = shape[depth:], parts[depth:]
    first = rest[0] if rest and inner else None
    if isinstance(first, slice):
        wanted = range(*first.indices(inner[0]))
        low, high = _extent(wanted)
        # Downwards it begins at the last of the rows that were read.
        key = (slice(None, None, wanted.step), *rest[1:])
        return Part(start + low * math.prod(inner[1:]), (high - low, *inner[1:]), None, key)
    rows = _row_numbers(first, inner[0]) if first is not None else None
    if rows is None:
        return Part(start, inner, None, rest)
    rows, where = np.unique(rows, return_inverse=True)
    return Part(0, inner[1:], rows, (where, *rest[1:]))


def _extent(wanted: range) -> tuple[int, int]:
    """The least number of a range, and one more than the greatest."""
    if not wanted:
        return 0, 0
    low, high = sorted((wanted[0], wanted[-1]))
    return low, high + 1


def _is_integer(item: Any) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _row_numbers(item: Any, length: int) -> npt.NDArray[np.intp] | None:
    """The rows that a list or a mask chooses, counted from 0; None for any other index, and for a wrong one."""
    if not isinstance(item, list | np.ndarray) or np.ndim(item) != 1:
        return None
    array = np.asarray(item)
    if array.dtype == np.bool_ and len(array) == length:
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu" or not len(array) or array.min() < -length or array.max() >= length:
        return None
    return array.astype(np.intp) % length
