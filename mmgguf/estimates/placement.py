"""Deal layers out to devices, as llama.cpp's ``load_tensors`` does (``src/llama-model.cpp``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["Device", "Part", "Placement", "place"]

#: What llama.cpp takes (``GGML_SCHED_MAX_BACKENDS`` in ``ggml-backend.cpp``).
_MAX_DEVICES: Final = 16


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, or the output: bytes that go to one device.

    Attributes
    ----------
    weights : int
        Tensors.
    kept : int
        Its cache and state.
    host : int
        Tensors that stay on the host all the same.
    copied : int
        What only a device needs, since the host has it already.
    """

    weights: int
    kept: int
    host: int
    copied: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes on a device."""
        return self.weights + self.kept + self.copied


@dataclass(frozen=True, slots=True)
class Device:
    """What one device, or the host, holds; sizes in bytes.

    Attributes
    ----------
    layers : range
        Which layers; the output is counted as one after the last.
    weights, kept, compute : int
        Tensors; cache and states; buffers for computing, on the host the logits too.
    capacity : int or None
        What it may hold, the reserve taken off; None for the host.
    """

    layers: range
    weights: int
    kept: int
    compute: int
    capacity: int | None

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.kept + self.compute

    @property
    def free(self) -> int | None:
        """What it can hold besides; negative if it is too much already."""
        return None if self.capacity is None else self.capacity - self.total


@dataclass(frozen=True, slots=True)
class Placement:
    """Which layers lie on which device.

    Attributes
    ----------
    devices : tuple of Device
        In the order they were given.
    host : Device
        The memory of the machine itself.
    split : tuple of float or None
        What to give as ``--tensor-split``; None where llama.cpp's own choice, by the devices' sizes, is this one.
    count : int
        Layers that a model has, the output counted as one.
    """

    devices: tuple[Device, ...]
    host: Device
    split: tuple[float, ...] | None
    count: int

    @property
    def offloaded(self) -> int:
        """Layers on devices, the output counted as one: what to give as ``--gpu-layers``."""
        return sum(len(device.layers) for device in self.devices)

    @property
    def complete(self) -> bool:
        """Whether every layer is on a device, and all fit."""
        return bool(self.devices) and self.offloaded == self.count and self.fits

    @property
    def fits(self) -> bool:
        """Whether every device holds what is on it."""
        return all(device.free is None or device.free >= 0 for device in self.devices)


def place(
    parts: Sequence[Part],
    fixed: tuple[int, int, int],
    devices: Sequence[int],
    *,
    reserve: int,
    split: Sequence[float] | None,
    layers: int | None,
) -> Placement:
    """Deal out `parts`, the output last; `fixed` is what stays on the host: weights, logits, and a compute buffer."""
    count = len(parts)
    if len(devices) > _MAX_DEVICES:
        raise ValueError(f"at most {_MAX_DEVICES} devices, got {len(devices)}")
    for size in (*devices, reserve):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"sizes are whole numbers of bytes, got {size!r:.60}")
    if layers is not None and not 0 <= layers <= count:
        raise ValueError(f"layers must be between 0 and {count}, got {layers!r:.60}")
    if split is not None and (
        len(split) != len(devices) or not all(math.isfinite(x) and x >= 0 for x in split) or not sum(split) > 0
    ):
        raise ValueError(f"split has a positive share for each of {len(devices)} devices, got {list(split)!r:.60}")
    room = [max(size - reserve, 0) for size in devices]
    compute = fixed[2]
    sums = list(itertools.accumulate((part.nbytes for part in parts), initial=0))
    shares = list(devices) if split is None else list(split)

    def proportional(number: int) -> list[int]:
        return _bounds(shares, number, count)

    def holds(bounds: Sequence[int]) -> bool:
        pieces = zip(itertools.pairwise(bounds), room, strict=True)
        return all(not end > start or sums[end] - sums[start] + compute <= size for (start, end), size in pieces)

    bounds, found = [count] * (len(devices) + 1), split
    if devices and sum(shares) > 0:
        for number in range(count, 0, -1) if layers is None else [layers]:
            bounds = proportional(number)
            if holds(bounds):
                break
            if split is None:
                filled = _filled(sums, room, compute, number, count)
                if filled is not None:
                    bounds = filled
                    found = tuple(float(end - start) for start, end in itertools.pairwise(bounds))
                    break
        else:
            if layers is None:
                bounds = [count] * (len(devices) + 1)
    held = []
    for (start, end), size in zip(itertools.pairwise(bounds), room, strict=True):
        mine = parts[start:end]
        weights, kept = sum(p.weights + p.copied for p in mine), sum(p.kept for p in mine)
        held.append(Device(range(start, end), weights, kept, compute if mine else 0, size))
    ours = parts[: bounds[0]]
    on_host = fixed[0] + sum(p.weights for p in ours) + sum(p.host for p in parts)
    host = Device(range(bounds[0]), on_host, sum(p.kept for p in ours), fixed[1] + compute, None)
    return Placement(tuple(held), host, tuple(found) if found is not None else None, count)


def _bounds(shares: Sequence[float], number: int, count: int) -> list[int]:
    """Where each device's layers begin, and after the last where they end; the last `number` of `count` are dealt.

    Layer i of them goes to the first device whose share, and those before it, exceed i / number: in float32, as there.
    """
    first = count - number
    total = np.float32(0)
    ends = []
    for share in shares:
        total += np.float32(share)
        ends.append(total)
    edges = np.array(ends, np.float32) / total
    places = np.arange(number, dtype=np.float32) / np.float32(max(number, 1))
    owners = np.minimum(np.searchsorted(edges, places, side="right"), len(shares) - 1)
    starts = np.searchsorted(owners, np.arange(len(shares) + 1), side="left")
    return [first + int(start) for start in starts]


def _filled(sums: Sequence[int], room: Sequence[int], compute: int, number: int, count: int) -> list[int] | None:
    """Bounds where each device takes as many of the layers as it holds before the next one does; None if that fails."""
    bounds = [count - number]
    for size in room:
        start = end = bounds[-1]
        while end < count and sums[end + 1] - sums[start] + compute <= size:
            end += 1
        bounds.append(end)
    return bounds if bounds[-1] == count else None
