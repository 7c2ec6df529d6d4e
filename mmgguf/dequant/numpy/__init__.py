"""The numpy kernels: one pure function for each block type, registered by type when this package is imported."""

from __future__ import annotations

from . import iquants, kquants, simple  # noqa: F401  # they register their kernels
from .registry import KERNELS, Kernel

__all__ = ["KERNELS", "Kernel"]
