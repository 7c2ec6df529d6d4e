"""Two buffers in pinned memory between a file and a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..conversion import ranges, store
from ..tensor import Tensor
from .memory import as_numpy

__all__ = ["Staging"]


class Staging:
    """Two buffers in host memory: while the device copies the one, the next numbers are computed into the other.

    Only from pinned memory does CUDA copy on its own, so `pinned` is set for a device and not in tests without one.
    """

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._copied: list[Any] = [None, None]
        self._pinned = pinned
        self._next = 0

    def fill(self, target: torch.Tensor, tensor: Tensor) -> None:
        """Write a tensor's numbers to contiguous memory of the same shape on a device; `finish` waits for the end."""
        stored, block_size = tensor.data.reshape(-1), tensor.layout.block_size

        def write(start: int, stop: int, part: torch.Tensor) -> None:
            store(stored[start // block_size : stop // block_size], tensor, as_numpy(part))

        self._copy(target.view(-1), write)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a contiguous tensor in the CPU's memory to one of the same dtype on a device; see `fill`."""
        flat = source.view(-1)
        self._copy(target.view(-1), lambda start, stop, part: part.copy_(flat[start:stop]))

    def _copy(self, flat: torch.Tensor, write: Callable[[int, int, torch.Tensor], object]) -> None:
        for start, stop in ranges(len(flat), flat.element_size(), self._buffers[0].numel()):
            turn, self._next = self._next, 1 - self._next
            self._wait(turn)
            part = self._buffers[turn][: (stop - start) * flat.element_size()].view(flat.dtype)
            write(start, stop, part)
            flat[start:stop].copy_(part, non_blocking=self._pinned)
            if self._pinned:
                self._copied[turn] = torch.cuda.current_stream(flat.device).record_event()

    def finish(self) -> None:
        """Wait until everything has been copied."""
        for turn in range(2):
            self._wait(turn)

    def _wait(self, turn: int) -> None:
        event, self._copied[turn] = self._copied[turn], None
        if event is not None:
            event.synchronize()
