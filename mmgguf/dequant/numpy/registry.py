"""The numpy kernels by type: one pure function each, and the number of elements that suits it best per call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...types import GGMLType

__all__ = ["KERNELS", "Kernel", "KernelFunction", "kernel"]

#: ``(blocks, out)``: a contiguous 1-D array of n little-endian blocks → float32 (n, block_size), contiguous.
KernelFunction = Callable[[NDArray[Any], NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and the elements per call that keep its temporaries in the cache (measured)."""

    function: KernelFunction
    chunk: int


KERNELS: Final[dict[GGMLType, Kernel]] = {}


def kernel(*types: GGMLType, chunk: int = 1 << 18) -> Callable[[KernelFunction], KernelFunction]:
    """Register a kernel for these types."""

    def register(function: KernelFunction) -> KernelFunction:
        for type_ in types:
            KERNELS[type_] = Kernel(function, chunk)
        return function

    return register
