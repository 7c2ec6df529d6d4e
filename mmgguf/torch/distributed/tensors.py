"""Make this rank's part of each tensor: packed or numbers, a view of the file where nothing has to be computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Replicate

from ...conversion import result_dtype, store
from ...dequant.memory import empty
from ...errors import shown
from ...file import GGUFFile
from ...types import GGMLType
from ..memory import NUMPY_DTYPES, TORCH_DTYPES, as_numpy, share
from ..origins import Origin, shape_of
from .parts import Part, require_whole_blocks
from .transfer import Piece, Want, ask, can_exchange, exchanged, read, sent, window

__all__ = ["Item", "Loader"]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """What one key becomes.

    Attributes
    ----------
    key : str
        In the module, or of the result.
    origins : tuple of Origin
        What it is made of.
    placements : tuple of Placement, optional
        As a DTensor on the mesh; None: a plain tensor of this rank.
    dtype : torch.dtype, optional
        Of the numbers; None: what the file has.
    packed : bool
        Stored blocks, not numbers.
    place : tuple of DeviceMesh and placements, optional
        The DTensor's own mesh, if that is a part of the one that loads: `placements` replicate over what it lacks.
    """

    key: str
    origins: tuple[Origin, ...]
    placements: tuple[Placement, ...] | None
    dtype: torch.dtype | None
    packed: bool
    place: tuple[DeviceMesh, tuple[Placement, ...]] | None = None

    @property
    def line(self) -> str:
        """What all ranks of the mesh have to say alike."""
        names = "+".join(origin.name for origin in self.origins)
        return f"{self.key} = {names} {self.placements} {'packed' if self.packed else ''}"


class Loader:
    """Makes local tensors on one rank of a mesh.

    Parameters
    ----------
    from_first : bool
        Only the first rank of the mesh has the file.

    Attributes
    ----------
    exchange : bool
        Parts of columns are read together.
    is_staged : bool
        With `from_first`: the ranks want different plain tensors, and each gets its own, one by one.
    """

    def __init__(
        self,
        f: GGUFFile,
        mesh: DeviceMesh,
        *,
        device: torch.device,
        timeout: float,
        from_first: bool,
    ) -> None:
        self._file, self._mesh, self._device, self._timeout = f, mesh, device, timeout
        self._from_first, self.exchange, self.is_staged = from_first, False, False
        self._is_first = int(mesh.mesh.flatten()[0]) == dist.get_rank()
        at = mesh.get_coordinate()
        assert at is not None
        self._at: Sequence[int] = at

    def check(self, item: Item) -> None:
        """Raise for what cannot be cut, before anything is read."""
        if item.placements is None:
            return
        whole = all(isinstance(one, Replicate) for one in item.placements)
        for origin in item.origins:
            tensor = self._file[origin.name]
            if origin.shape is not None and not whole:
                raise NotImplementedError(f"{shown(item.key)}: {origin.name} is reshaped, and cannot be cut")
            type_ = GGMLType(tensor.type)
            block_size = tensor.layout.block_size
            require_whole_blocks(origin.name, type_, block_size, tensor.shape, item.placements, self._mesh.shape)
            if len(item.origins) > 1 and any(getattr(p, "dim", 0) % tensor.ndim for p in item.placements):
                raise NotImplementedError(
                    f"{shown(item.key)}: {len(item.origins)} tensors are joined in it: cut it along its first axis"
                )

    def load(self, item: Item, out: torch.Tensor | None = None) -> torch.Tensor:
        """This rank's part, perhaps in given memory; of a packed item bytes, (..., bytes per row)."""
        if len(item.origins) > 1:
            parts = [self._load(item, origin, None) for origin in item.origins]
            joined = torch.cat(parts, dim=-2)
            return joined if out is None else out.copy_(joined)
        return self._load(item, item.origins[0], out)

    def distributed(self, item: Item, local: torch.Tensor) -> torch.Tensor:
        """The DTensor that the ranks' parts make together."""
        if item.placements is None:
            return local
        shape = shape_of(self._file, item.origins)
        if item.packed:
            shape = self._file[item.origins[0].name].layout.packed_shape(shape)
        stride = torch.empty(shape, device="meta").stride()
        mesh, placements = item.place or (self._mesh, item.placements)
        result: torch.Tensor = DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
        return result

    def nbytes(self, item: Item) -> int:
        """Stored bytes of this rank's part."""
        wants = [self._want(item, origin) for origin in item.origins]
        return sum(part.n_rows * want.nbytes_of(part.columns) for want, part in wants)

    def ahead(self, items: Iterable[Item]) -> None:
        """Ask the system for what will be read for these."""
        if self._from_first:
            return
        for item in items:
            for origin in item.origins:
                want, part = self._want(item, origin)
                if not self._together(want):
                    for start, stop in part.rows:
                        ask(want, start, stop)

    def _want(self, item: Item, origin: Origin) -> tuple[Want, Part]:
        placements = item.placements or (Replicate(),) * self._mesh.ndim
        want = Want(self._file[origin.name], origin.rows, placements)
        return want, want.part(self._mesh, self._at)

    def _together(self, want: Want) -> bool:
        return self.exchange and not self._from_first and can_exchange(want, self._mesh)

    def _load(self, item: Item, origin: Origin, out: torch.Tensor | None) -> torch.Tensor:
        want, part = self._want(item, origin)
        tensor, layout = want.tensor, want.tensor.layout
        if item.packed:
            target, shape = np.dtype(np.uint8), layout.packed_shape(part.shape)
        else:
            target = result_dtype(tensor, None if item.dtype is None else NUMPY_DTYPES.get(item.dtype))
            shape = part.shape
        as_stored = item.packed or (target == layout.dtype and not origin.plus)
        is_view = (
            out is None
            and as_stored
            and origin.rows is None
            and len(part.rows) == 1
            and part.columns == (0, want.columns)
            and tensor.storage.kind == "mmap"
            and tensor.byte_order == "little"
            and not self._from_first
            and self._device.type == "cpu"
        )
        if is_view:
            blocks = want.columns // layout.block_size
            items = window(tensor, *(edge * blocks for edge in part.rows[0]))
            if items.size and (item.packed or items.flags.aligned):
                local = torch.from_numpy(items.view(np.uint8)) if item.packed else share(items, target)
                return local.reshape(origin.shape or shape)
        if out is None or not out.is_contiguous() or out.dtype != TORCH_DTYPES.get(target, torch.uint8):
            local = self._new(shape, target)
        else:
            local = out
        self._fill(local, item, origin, want, part, as_stored)
        if out is not None and local is not out:
            return out.copy_(local.reshape(out.shape))
        return local.reshape(origin.shape or shape)

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
        if self._device.type == "cpu":
            array = empty(shape, dtype)
            return torch.from_numpy(array) if dtype == np.uint8 else share(array, dtype)
        return torch.empty(shape, dtype=TORCH_DTYPES.get(dtype, torch.uint8), device=self._device)

    def _fill(self, local: torch.Tensor, item: Item, origin: Origin, want: Want, part: Part, as_stored: bool) -> None:
        if not local.numel():
            return
        rows, layout = local.view(part.n_rows, -1), want.tensor.layout
        for position, piece in self._pieces(item, want, part):
            target = rows[position : position + len(piece)]
            piece = np.ascontiguousarray(piece)
            if as_stored:
                target.view(torch.uint8).copy_(torch.from_numpy(piece))
            elif target.device.type == "cpu" and not origin.plus:
                store(piece.view(layout.dtype), want.tensor, as_numpy(target))
            else:
                # What is added is added in float32, before anything is rounded.
                dtype = np.dtype(np.float32) if origin.plus else _DTYPES[target.dtype]
                numbers = empty(tuple(target.shape), dtype)
                store(piece.view(layout.dtype), want.tensor, numbers)
                target.copy_(share(numbers + np.float32(origin.plus) if origin.plus else numbers, dtype))

    def _pieces(self, item: Item, want: Want, part: Part) -> Iterator[Piece]:
        if self._from_first:
            if item.placements is None and self.is_staged:
                return read(want, part) if self._is_first else self.send(want, dist.get_rank())
            return sent(want, self._mesh, self._at, self._timeout)
        if self._together(want):
            return exchanged(want, self._mesh, self._at, self._timeout)
        return read(want, part)

    def send(self, want: Want, rank: int) -> Iterator[Piece]:
        """Send all of a tensor from the first rank to another, on both of them."""
        return sent(want, self._mesh, self._at, self._timeout, [rank])

    def send_stages(self, wanted: dict[int, list[str]]) -> None:
        """On the first rank: send to each other rank the plain tensors that it wants, to each one in turn."""
        whole = (Replicate(),) * self._mesh.ndim
        for names in itertools.zip_longest(*wanted.values()):
            for rank, name in zip(wanted, names, strict=True):
                if name is not None:
                    for _ in self.send(Want(self._file[name], None, whole), rank):
                        pass


#: numpy's dtype of each dtype of torch.
_DTYPES: Final = {ours: dtype for dtype, ours in TORCH_DTYPES.items()}
