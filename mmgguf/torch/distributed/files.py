"""The file as the ranks see it: opened by each of them, or known to all by the header that the first rank has sent."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...errors import FileChangedError
from ...file import GGUFFile
from ...loading import read_header
from ...shard import Shard
from ...storage.base import Shape, Storage
from ...storage.local import LocalFile
from ...types import GGMLType
from ..names import NOT_PARAMETERS
from .agreement import communication_device, wait

__all__ = ["identities", "received"]

#: The most bytes of a tensor that is sent to all ranks with the header.
_SMALL: Final = 1 << 20
#: The longest header that is taken from the first rank.
_MOST_BYTES: Final = 1 << 32


class Elsewhere(Storage):
    """A file of another rank: its header is known here, and of its data only what describes the model."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__(path, "r", size)
        self.known: dict[int, npt.NDArray[np.uint8]] = {}

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        known = self.known.get(offset)
        if known is not None and known.size == math.prod(shape) * dtype.itemsize:
            return known.view(dtype).reshape(shape)
        raise FileChangedError(f"{self.path}: only the first rank has this file, and it sends what was asked for")

    def reader(self) -> Any:
        raise FileChangedError(f"{self.path}: only the first rank has this file")

    def close(self) -> None:
        """Nothing is open here."""


def identities(f: GGUFFile, ignore_times: bool) -> list[dict[str, Any]]:
    """What tells one file from another, for each shard: size, time of the last change (or ETag), and header."""
    found = []
    for shard in f.shards:
        storage = shard.file
        if isinstance(storage, LocalFile):
            identity = storage.identity
            changed, header = str(identity.mtime_ns), identity.header
        else:
            changed = str(getattr(storage, "validator", ""))
            header = hashlib.blake2b(_header_of(shard).tobytes(), digest_size=16).digest()
        found.append(
            {
                "path": shard.path,
                "size": storage.size,
                "changed": "" if ignore_times else changed,
                "header": header.hex(),
            }
        )
    return found


def _small(shard: Shard) -> list[str]:
    """Tensors that are no weights, but say how the model computes: every rank needs their numbers."""
    infos = shard.header.tensors
    known = [name for name in NOT_PARAMETERS if name in infos and isinstance(infos[name].type, GGMLType)]
    return [name for name in known if infos[name].nbytes <= _SMALL]


def _header_of(shard: Shard) -> npt.NDArray[np.uint8]:
    return shard.file.region(0, shard.header.nbytes)


@contextmanager
def received(f: GGUFFile | None, mesh: DeviceMesh, timeout: float) -> Iterator[GGUFFile]:
    """The file on all ranks of a mesh, of which the first has it open.

    The headers are sent as the bytes that they are, and each rank parses them as it would parse a file that it does
    not trust.
    """
    if f is not None:
        shards = [{"path": shard.path, "size": shard.file.size} for shard in f.shards]
        headers = [_header_of(shard) for shard in f.shards]
        small = [f[name] for shard in f.shards for name in _small(shard)]
        for one, header in zip(shards, headers, strict=True):
            one["header"] = len(header)
        _broadcast(np.frombuffer(json.dumps(shards).encode(), np.uint8), mesh, timeout)
        for header in headers:
            _broadcast(header, mesh, timeout)
        for tensor in small:
            _broadcast(tensor.storage.region(tensor.file_offset, tensor.nbytes), mesh, timeout)
        yield f
        return
    found = []
    for one in json.loads(_broadcast(None, mesh, timeout).tobytes()):
        header = _broadcast(None, mesh, timeout)
        storage = Elsewhere(str(one["path"]), int(one["size"]))
        found.append(Shard(storage.path, read_header(header.tobytes(), size=storage.size), storage))
    for shard in found:
        for name in _small(shard):
            offset = shard.header.data_offset + shard.header.tensors[name].offset
            assert isinstance(shard.file, Elsewhere)
            shard.file.known[offset] = _broadcast(None, mesh, timeout)
    with GGUFFile(found, "normal", False) as file:
        yield file


def _broadcast(data: npt.NDArray[np.uint8] | None, mesh: DeviceMesh, timeout: float) -> npt.NDArray[np.uint8]:
    """Bytes of the first rank of the mesh, on all of its ranks."""
    at = mesh.get_coordinate()
    assert at is not None
    for dim in range(mesh.ndim):
        if mesh.size(dim) == 1 or any(at[dim + 1 :]):
            continue
        group = mesh.get_group(dim)
        device, root = communication_device(group, mesh), dist.get_process_group_ranks(group)[0]
        size = torch.tensor([0 if data is None else len(data)], device=device)
        wait(dist.broadcast(size, src=root, group=group, async_op=True), timeout, "size of the header")
        if not 0 <= int(size) <= _MOST_BYTES:
            raise FileChangedError(
                f"rank {root} announces a header of {int(size)} bytes, at most {_MOST_BYTES} are taken"
            )
        if data is None:
            tensor = torch.empty(int(size), dtype=torch.uint8, device=device)
        else:
            tensor = torch.from_numpy(data.copy()).to(device)
        if tensor.numel():
            wait(dist.broadcast(tensor, src=root, group=group, async_op=True), timeout, "header")
        data = tensor.cpu().numpy()
    assert data is not None
    return data
