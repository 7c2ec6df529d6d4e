"""Which part of a tensor belongs to which rank: pure arithmetic on shapes, placements and coordinates.

DTensor cuts an axis as `torch.chunk` does: pieces of one size, the last ones smaller or empty.  Blocks are whole only
if these pieces are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch.distributed.tensor.placement_types import Placement

from ...errors import shown
from ...types import GGMLType

__all__ = ["Part", "Placements", "columns_of", "normalized", "part_of", "placements_of", "require_whole_blocks"]

#: One placement for each dimension of the mesh, or one alone for a mesh of one dimension.
Placements: TypeAlias = Any  # Placement | Sequence[Placement], which a type checker does not see
Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tensor as a part of a matrix, whose columns are the last axis and whose rows are all others.

    Attributes
    ----------
    shape : tuple of int
        Logical shape of the part.
    rows : tuple of (int, int)
        Ranges of rows, ascending.
    columns : (int, int)
        Range of elements of each row, at block boundaries.
    """

    shape: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, int]

    @property
    def n_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges of the tensor's rows that the part's rows `start` to `stop` are."""
        position = 0
        for first, last in self.rows:
            low, high = max(start, position), min(stop, position + last - first)
            if low < high:
                yield first + low - position, first + high - position
            position += last - first


def part_of(shape: tuple[int, ...], placements: Sequence[Placement], sizes: Sequence[int], at: Sequence[int]) -> Part:
    """The part of the rank at a coordinate of a mesh of these sizes."""
    bounds = _bounds(shape, placements, sizes, at)
    rows = [(0, 1)]
    for n, (start, stop) in zip(shape[:-1], bounds[:-1], strict=True):
        if (start, stop) == (0, n):
            rows = [(a * n, b * n) for a, b in rows]
        else:
            rows = [(i * n + start, i * n + stop) for a, b in rows for i in range(a, b) if start < stop]
    columns = bounds[-1] if bounds else (0, 1)
    return Part(tuple(stop - start for start, stop in bounds), tuple(rows), columns)


def columns_of(shape: tuple[int, ...], placements: Sequence[Placement], sizes: Sequence[int]) -> list[int]:
    """The dimensions of the mesh that cut columns."""
    return [dim for dim, axis in _cuts(placements, len(shape)) if axis == len(shape) - 1 and sizes[dim] > 1]


def require_whole_blocks(
    name: str, type_: GGMLType, block_size: int, shape: tuple[int, ...], placements: Sequence[Placement], sizes: Any
) -> None:
    """Raise ValueError if a plan cuts blocks, naming the counts that do not, or an axis that is not there."""
    for _, axis in _cuts(placements, len(shape)):
        if not 0 <= axis < len(shape):
            raise ValueError(f"{shown(name)}: no axis {axis} in a tensor of {len(shape)} dimensions")
    dims = columns_of(shape, placements, sizes)
    if not dims or block_size == 1:
        return
    coordinates = itertools.product(*(range(size) if dim in dims else (0,) for dim, size in enumerate(sizes)))
    if all(edge % block_size == 0 for at in coordinates for edge in _bounds(shape, placements, sizes, at)[-1]):
        return
    blocks, count = shape[-1] // block_size, math.prod(sizes[dim] for dim in dims)
    fitting = [str(n) for n in range(1, blocks + 1) if blocks % n == 0]
    several = f"{', '.join(fitting[:-1])} or {fitting[-1]}" if len(fitting) > 1 else fitting[0]
    raise ValueError(
        f"{shown(name)}: {shape[-1]} columns are {blocks} blocks of {block_size} ({type_.name}), which {count} parts "
        f"would cut: they can be cut in {several} parts (or rows instead, by Shard(0))"
    )


def normalized(placements: Placements, mesh: Any, what: str) -> tuple[Placement, ...]:
    """One placement for each dimension of the mesh."""
    given = (placements,) if isinstance(placements, Placement) else tuple(placements)
    if len(given) != mesh.ndim or not all(isinstance(one, Placement) for one in given):
        raise ValueError(f"{shown(what)}: a mesh of {mesh.ndim} dimensions needs as many placements, got {given}")
    if any(one.is_partial() for one in given):
        raise ValueError(f"{shown(what)}: what is loaded is Shard or Replicate, got {given}")
    return given


def placements_of(given: Any, key: str) -> Placements | None:
    """What a plan says of a key: the first pattern that fits decides; None where none does."""
    if not isinstance(given, Mapping):
        return given
    return next((found for pattern, found in given.items() if pattern == key or fnmatchcase(key, pattern)), None)


def _cuts(placements: Sequence[Placement], ndim: int) -> list[tuple[int, int]]:
    """(dimension of the mesh, axis that it cuts), in the order of cutting.

    A strided shard, which FSDP makes of what tensor parallelism has cut, comes after those to its right.
    """
    cuts = [(hasattr(one, "split_factor"), dim, one.dim) for dim, one in enumerate(placements) if hasattr(one, "dim")]
    return [(dim, axis + ndim if axis < 0 else axis) for _, dim, axis in sorted(cuts, key=lambda cut: cut[:2])]


def _bounds(shape: tuple[int, ...], placements: Sequence[Placement], sizes: Sequence[int], at: Sequence[int]) -> Bounds:
    bounds = [(0, n) for n in shape]
    for dim, axis in _cuts(placements, len(shape)):
        start, stop = bounds[axis]
        step = -(-(stop - start) // sizes[dim])
        low = min(start + at[dim] * step, stop)
        bounds[axis] = (low, min(low + step, stop))
    return tuple(bounds)
