"""What packed weights have in common in every framework: shapes, and which indices take whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .dequant import BACKENDS
from .types import LAYOUTS, GGMLType

__all__ = ["check_backend", "logical_shape", "takes_rows"]


def logical_shape(shape: Sequence[int], ggml_type: GGMLType) -> tuple[int, ...]:
    """The shape of the numbers that bytes of that shape stand for.

    Raises
    ------
    ValueError
        A last axis that is not a whole number of blocks, or no axis at all.
    """
    layout = LAYOUTS[ggml_type]
    if not len(shape):
        raise ValueError(f"{ggml_type.name} blocks need at least one axis")
    # Not divmod: it would stop torch's compiler where shapes are symbols.
    if shape[-1] % layout.type_size:
        raise ValueError(
            f"a last axis of {shape[-1]} bytes is not a whole number of {ggml_type.name} blocks of "
            f"{layout.type_size} bytes"
        )
    return (*shape[:-1], shape[-1] // layout.type_size * layout.block_size)


def takes_rows(ndim: int, key: Any) -> bool:
    """Whether an index into so many axes leaves the last one as it is."""
    keys = key if isinstance(key, tuple) else (key,)
    used = 0
    for position, part in enumerate(keys):
        if part is Ellipsis:
            # What comes after it counts from the last axis.
            return position == len(keys) - 1 and used < ndim
        if part is None:
            continue
        # A mask takes as many axes as it has; anything else takes one.
        is_mask = str(getattr(part, "dtype", "")) in ("bool", "torch.bool")
        used += getattr(part, "ndim", 1) if is_mask else 1
    return used < ndim


def check_backend(backend: str | None, on_the_cpu: bool, where: object) -> None:
    """Raise ValueError for a backend that does not exist, or that cannot reach the blocks."""
    if backend not in (None, "portable", *BACKENDS):
        raise ValueError(f"backend must be one of portable, {', '.join(BACKENDS)}, got {backend!r}")
    if backend in BACKENDS and not on_the_cpu:
        raise ValueError(f"the backend {backend!r} runs on the CPU, and the blocks are {where}")
