"""What must hold of the tensor infos of a file: whole blocks, alignment, inside the file, no overlaps.

The rules are stated twice on purpose: `is_sound` tries all tensors at once and knows only yes or perhaps not;
`check_data` goes through them one by one and words the error.  The writer asks `shape_problem` too, so that it refuses
what the reader would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from ..errors import FormatError, TruncatedError, shown
from ..types import LAYOUTS, GGMLType
from .header import Header, TensorInfo, TensorInfos
from .records import Records

__all__ = ["MAX_INT", "check_data", "is_sound", "shape_problem"]

#: ggml keeps ``ne`` and sizes in int64, numpy in ssize_t.
MAX_INT: Final = (1 << 63) - 1
#: Block size and type size by id.
_SIZES: Final[dict[int, tuple[int, int]]] = {int(t): (row.block_size, row.type_size) for t, row in LAYOUTS.items()}
#: The same as tables for numpy, by id; 0 where there is no such type, and at the end for all that follow.
_BLOCK_SIZES: Final = np.zeros(max(_SIZES) + 2, np.int64)
_TYPE_SIZES: Final = np.zeros(max(_SIZES) + 2, np.int64)
for _id, _row in _SIZES.items():
    _BLOCK_SIZES[_id], _TYPE_SIZES[_id] = _row


def is_sound(infos: TensorInfos, header: Header, records: Records, size: float) -> bool:
    """Whether all tensors are certainly valid in a file of `size` bytes: `check_data` for all at once, in numpy.

    False also where only numbers of any size could tell.
    """
    if not infos:
        return True
    stored, places, tails = infos.places()
    width = records.width
    sizes = records.numbers_of(stored, width)
    types = records.numbers_of(stored, 4)[tails]
    block_size = _BLOCK_SIZES.take(types, mode="clip")
    if np.count_nonzero(block_size) < len(types):
        return False
    dims_size = tails - places - 4
    # As floats these cannot overflow, and up to 2**48 they are exact.
    elements, row = np.ones(len(types)), np.ones(1)
    for before in range(0, np.maximum.reduce(dims_size), width):
        ne = sizes[places + (4 + before)]  # where there is no such axis, something else
        has_axis = dims_size > before
        if np.count_nonzero(has_axis) < len(types):
            ne = np.where(has_axis, ne, 1)
        elements *= ne
        row = ne if before == 0 else row
    if np.maximum.reduce(elements) > 1 << 48 or np.minimum.reduce(elements) < 1:
        return False
    if np.count_nonzero(row.astype(np.int64) % block_size):
        return False
    offsets = records.numbers_of(stored, 8)[tails + 4]
    if np.maximum.reduce(offsets) > min(size, 1 << 62) or int(np.bitwise_or.reduce(offsets)) & header.alignment - 1:
        return False
    start = offsets.astype(np.int64)
    nbytes = elements.astype(np.int64) // block_size * _TYPE_SIZES.take(types, mode="clip")
    end = start + nbytes
    if np.count_nonzero(start[1:] < end[:-1]):  # in another order, or overlapping
        by_place = start.argsort()
        start, end = start[by_place], end[by_place]
        if np.count_nonzero(start[1:] < end[:-1]):
            return False
    return bool(end[-1] <= size - header.data_offset)


def shape_problem(ne: Sequence[int], type_id: int) -> str | None:
    """What is wrong with a tensor's dimensions, whatever file it is in; None if nothing is, or the type is unknown."""
    sizes = _SIZES.get(type_id)
    if sizes is None:
        return None
    block_size, type_size = sizes
    row = ne[0] if ne else 1
    if row % block_size:
        return f"row of {row} elements is not a multiple of {GGMLType(type_id).name}'s block size {block_size}"
    # Where there are elements, the file's size is the limit.  Where there are none, numpy has one: it refuses shapes
    # whose other dimensions alone are too large, as float64 too.
    if not all(ne) and math.prod(n for n in ne if n) * max(type_size, 8) > MAX_INT:
        return f"dimensions {tuple(ne)} are beyond 64 bits"
    return None


def check_data(header: Header, size: float) -> None:
    """Check that every tensor has whole blocks, is aligned, lies inside the file and overlaps no other."""
    available = max(size - header.data_offset, 0)
    furthest, in_order = 0, True
    for info in header.tensors.values():
        ne, offset = info.ne, info.offset
        if offset % header.alignment:
            text = f"offset {offset} is not a multiple of the alignment {header.alignment}"
            raise FormatError(problem(header, info, text))
        if (wrong := shape_problem(ne, info.type)) is not None:
            raise FormatError(problem(header, info, wrong))
        nbytes = info.nbytes if info.type in _SIZES else 0
        if offset + nbytes > available:
            needed = header.data_offset + offset + nbytes
            text = f"dimensions {ne} at offset {offset}: needs {needed} bytes, file has {size}: download incomplete?"
            raise TruncatedError(problem(header, info, text))
        if nbytes:
            in_order = in_order and offset >= furthest
            furthest = max(furthest, offset + nbytes)
    if not in_order:
        check_overlaps(header)


def check_overlaps(header: Header) -> None:
    """Check that no two tensors share bytes."""
    sized = (info for info in header.tensors.values() if info.type in _SIZES and info.nbytes)
    for info, other in itertools.pairwise(sorted(sized, key=lambda info: (info.offset, info.nbytes, info.name))):
        end = info.offset + info.nbytes
        if other.offset < end:
            text = f"begins at offset {other.offset}, inside {shown(info.name)}, which ends at {end}"
            raise FormatError(problem(header, other, text))


def problem(header: Header, info: TensorInfo, text: str) -> str:
    """A message about a tensor, with the place of its info."""
    positions = zip(header.tensors, header.info_positions(), strict=False)
    position = next(position for name, position in positions if name == info.name)
    return f"{shown(info.name)}: {text} (tensor info at byte {position})"
