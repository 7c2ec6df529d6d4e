"""How the rows of a rank's part reach it: read by itself, read together, or sent by the first rank.

Each way is a generator of (row of the part, bytes of rows), a bounded piece at a time.  Only stored blocks travel, and
every rank turns them into numbers itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.placement_types import Placement

from ...storage.local import MappedFile
from ...tensor import Tensor
from .agreement import communication_device, wait
from .parts import Part, columns_of, part_of

__all__ = ["Piece", "Want", "ask", "can_exchange", "exchanged", "read", "sent", "window"]

Piece = tuple[int, npt.NDArray[np.uint8]]
#: Stored bytes of a piece.
_PIECE: Final = 8 << 20
#: Bytes that are asked for at a time: what Linux reads ahead unless it is told otherwise.
_ASKED: Final = 128 << 10


@dataclass(frozen=True, slots=True, eq=False)
class Want:
    """A tensor of the file, and how a mesh holds it.

    Attributes
    ----------
    tensor : Tensor
        Where it lies.
    order : ndarray of intp, optional
        The order in which its rows are to be taken.
    placements : tuple of Placement
        For each dimension of the mesh.
    """

    tensor: Tensor
    order: npt.NDArray[np.intp] | None
    placements: tuple[Placement, ...]

    def part(self, mesh: DeviceMesh, at: Sequence[int]) -> Part:
        return part_of(self.tensor.shape, self.placements, mesh.shape, at)

    def nbytes_of(self, columns: tuple[int, int]) -> int:
        """Bytes of a row of the part."""
        return self.tensor.layout.row_size(columns[1] - columns[0])

    @property
    def columns(self) -> int:
        return self.tensor.shape[-1] if self.tensor.ndim else 1


def window(tensor: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Items `start` to `stop` of the stored form: a mapping of these alone where the file is mapped, else read."""
    layout = tensor.layout
    storage = tensor.storage
    if not isinstance(storage, MappedFile) or start == stop:
        return tensor.flat(start, stop)
    offset = tensor.file_offset + start * layout.type_size
    return storage.window(offset, (stop - start) * layout.type_size).view(layout.stored(tensor.byte_order))


def ask(want: Want, start: int, stop: int) -> None:
    """Have the system start reading some of the tensor's rows."""
    tensor, row = want.tensor, want.nbytes_of((0, want.columns))
    first, last = tensor.file_offset + start * row, tensor.file_offset + stop * row
    if tensor.storage.is_remote:
        tensor.storage.prefetch(first, last - first, once=True)
        return
    # Linux reads no more of a range than it would read ahead of a fault.
    for offset in range(first, last, _ASKED):
        tensor.storage.prefetch(offset, min(_ASKED, last - offset))


def read(want: Want, part: Part, limit: int = _PIECE) -> Iterator[Piece]:
    """The part as this process reads it from the file."""
    ahead = _steps(want, part, limit)
    for _, row, count in itertools.islice(ahead, 1):
        ask(want, row, row + count)
    for position, row, count in _steps(want, part, limit):
        for _, after, rows in itertools.islice(ahead, 1):
            ask(want, after, after + rows)
        yield position, _rows(want, row, row + count, part.columns)


def _steps(want: Want, part: Part, limit: int) -> Iterator[tuple[int, int, int]]:
    """(row of the part, row of the tensor, rows) of each piece."""
    step, position = max(1, limit // max(1, want.nbytes_of((0, want.columns)))), 0
    for start, stop in part.rows:
        for row in range(start, stop, step):
            count = min(step, stop - row)
            yield position, row, count
            position += count


def _rows(want: Want, start: int, stop: int, columns: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Little-endian bytes (rows, bytes of the columns), perhaps a view."""
    tensor, layout = want.tensor, want.tensor.layout
    blocks = want.columns // layout.block_size
    first = start
    if want.order is not None:
        order = want.order[start:stop]
        first, stop = (int(order.min()), int(order.max()) + 1) if len(order) else (0, 0)
    items = window(tensor, first * blocks, stop * blocks)
    if items.dtype != layout.dtype:
        items = items.astype(layout.dtype)
    data = items.view(np.uint8) if items.size else np.empty(0, np.uint8)
    rows = data.reshape(stop - first, blocks * layout.type_size)
    if want.order is not None:
        rows = rows[order - first]
    return rows[:, layout.row_size(columns[0]) : layout.row_size(columns[1])]


def _sendable(rows: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    rows = np.ascontiguousarray(rows)
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(device)


# Read together


def can_exchange(want: Want, mesh: DeviceMesh) -> bool:
    """Whether the ranks between which columns are cut can read whole rows each, and exchange pieces of them."""
    dims = columns_of(want.tensor.shape, want.placements, mesh.shape)
    return len(dims) == 1 and want.order is None and math.prod(want.tensor.shape[:-1]) >= mesh.size(dims[0])


def exchanged(want: Want, mesh: DeviceMesh, at: Sequence[int], timeout: float) -> Iterator[Piece]:
    """The part where columns are cut: every rank reads some of the rows, and sends the others their columns of them.

    So each reads as many bytes as its part has.  A row of one rank's columns is shorter than a page: read alone, the
    pages of all others would come with it.
    """
    (dim,) = columns_of(want.tensor.shape, want.placements, mesh.shape)
    group, count, mine = mesh.get_group(dim), mesh.size(dim), at[dim]
    device = communication_device(group, mesh)
    parts = [want.part(mesh, [*at[:dim], i, *at[dim + 1 :]]) for i in range(count)]
    part = parts[mine]
    total, whole = part.n_rows, Part(part.shape, part.rows, (0, want.columns))
    widths = [want.nbytes_of(one.columns) for one in parts]
    edges = [want.tensor.layout.row_size(one.columns[0]) for one in parts]
    starts = [total * i // count for i in range(count + 1)]
    # Small pieces, since gloo holds memory in proportion to them.
    step = max(1, _PIECE // 4 // max(1, sum(widths)))
    for a, b in whole.pieces(starts[mine], starts[mine + 1]):
        ask(want, a, b)
    # The same memory for every piece: malloc would keep what comes and goes.
    leaving = np.empty(min(step, max(1, total)) * sum(widths), np.uint8)
    arriving = torch.empty(min(step, max(1, total)) * count * widths[mine], dtype=torch.uint8, device=device)
    for done in range(0, max(b - a for a, b in itertools.pairwise(starts)), step):
        spans = [(min(a + done, b), min(a + done + step, b)) for a, b in itertools.pairwise(starts)]
        n, place = spans[mine][1] - spans[mine][0], 0
        rows = [_rows(want, a, b, whole.columns) for a, b in whole.pieces(*spans[mine])]
        for edge, width in zip(edges, widths, strict=True):
            target = leaving[place : place + n * width].reshape(n, width)
            if rows:
                np.concatenate([some[:, edge : edge + width] for some in rows], out=target)
            place += n * width
        counts = [(b - a) * widths[mine] for a, b in spans]
        incoming = arriving[: sum(counts)]
        outgoing = torch.from_numpy(leaving[:place]).to(device)
        given = [n * width for width in widths]
        work = dist.all_to_all_single(incoming, outgoing, counts, given, group=group, async_op=True)
        wait(work, timeout, f"{want.tensor.name}: exchange of columns")
        received = incoming.cpu().numpy()
        end = 0
        for (a, b), nbytes in zip(spans, counts, strict=True):
            if a < b:
                yield a, received[end : end + nbytes].reshape(b - a, widths[mine])
            end += nbytes


# Sent by the first rank


def sent(
    want: Want, mesh: DeviceMesh, at: Sequence[int], timeout: float, receivers: Sequence[int] | None = None
) -> Iterator[Piece]:
    """The part as the first rank of the mesh reads it and sends it.

    Each part is sent to one rank, which then broadcasts it along those dimensions of the mesh that replicate.  With
    `receivers`, ranks that want all of a tensor that others do not want, it is sent to each of them.
    """
    ranks = mesh.mesh.flatten().tolist()
    root, me = ranks[0], dist.get_rank()
    group = mesh.get_group(0) if mesh.ndim == 1 else dist.group.WORLD
    device = communication_device(group, mesh)
    coordinates = {rank: (mesh.mesh == rank).nonzero()[0].tolist() for rank in ranks}
    copies = [] if receivers is not None else _replicated(want.placements, mesh)
    if receivers is None:
        receivers = [rank for rank in ranks if not any(coordinates[rank][dim] for dim in copies)]
    others = [rank for rank in receivers if rank != root]
    limit = max(1 << 18, _PIECE // max(1, len(others)))
    if me == root:
        pieces = {rank: read(want, want.part(mesh, coordinates[rank]), limit) for rank in others}
        own = read(want, want.part(mesh, at), limit) if root in receivers else iter(())
        incoming = _sending(want, pieces, own, group, device, timeout)
    elif me in receivers:
        incoming = _receiving(want, want.part(mesh, at), limit, root, group, device, timeout)
    else:
        incoming = iter(())
    if not copies:
        yield from incoming
        return
    yield from _spread(want, want.part(mesh, at), limit, incoming, mesh, at, copies, timeout)


def _replicated(placements: Sequence[Placement], mesh: DeviceMesh) -> list[int]:
    return [dim for dim, one in enumerate(placements) if not hasattr(one, "dim") and mesh.size(dim) > 1]


def _sending(
    want: Want, pieces: dict[int, Iterator[Piece]], own: Iterator[Piece], group: Any, device: Any, timeout: float
) -> Iterator[Piece]:
    left = dict(pieces)
    while left:
        works, held = [], []
        for rank, some in list(left.items()):
            piece = next(some, None)
            if piece is None:
                del left[rank]
            elif piece[1].size:
                held.append(_sendable(piece[1], device))
                works.append((rank, dist.isend(held[-1], dst=rank, group=group)))
        if (mine := next(own, None)) is not None:
            yield mine
        for rank, work in works:
            wait(work, timeout, f"{want.tensor.name}: to rank {rank}")
    yield from own


def _receiving(
    want: Want, part: Part, limit: int, root: int, group: Any, device: Any, timeout: float
) -> Iterator[Piece]:
    width = want.nbytes_of(part.columns)
    for position, _, count in _steps(want, part, limit):
        data = torch.empty((count, width), dtype=torch.uint8, device=device)
        if data.numel():
            wait(dist.irecv(data, src=root, group=group), timeout, f"{want.tensor.name}: from rank {root}")
        yield position, data.cpu().numpy()


def _spread(
    want: Want,
    part: Part,
    limit: int,
    incoming: Iterator[Piece],
    mesh: DeviceMesh,
    at: Sequence[int],
    copies: list[int],
    timeout: float,
) -> Iterator[Piece]:
    """Broadcast each piece along the dimensions that replicate, one after another."""
    width = want.nbytes_of(part.columns)
    for position, _, count in _steps(want, part, limit):
        rows = next(incoming)[1] if not any(at[dim] for dim in copies) else None
        for number, dim in enumerate(copies):
            if any(at[later] for later in copies[number + 1 :]):
                continue  # another dimension brings it here
            group = mesh.get_group(dim)
            device = communication_device(group, mesh)
            data = (
                torch.empty((count, width), dtype=torch.uint8, device=device)
                if rows is None
                else _sendable(rows, device)
            )
            if data.numel():
                first = dist.get_process_group_ranks(group)[0]
                work = dist.broadcast(data, src=first, group=group, async_op=True)
                wait(work, timeout, f"{want.tensor.name}: broadcast from rank {first}")
            rows = data.cpu().numpy()
        assert rows is not None
        yield position, rows
    for _ in incoming:  # what is under way to others
        pass
