"""The codebooks of ggml's I-quants and four-bit floats, read from ``codebooks.npz`` when first needed.

Names and contents are those of the tables in ``ggml-common.h``; grids are expanded to one row of points per
entry.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["codebook"]


@cache
def _codebooks() -> dict[str, NDArray[Any]]:
    with np.load(Path(__file__).with_name("codebooks.npz"), allow_pickle=False) as file:
        tables = {name: file[name] for name in file.files}
    for table in tables.values():
        table.flags.writeable = False
    return tables


def codebook(name: str) -> NDArray[Any]:
    """A read-only table: ``iq2xxs_grid`` (256, 8) uint8, ``ksigns_iq2xs`` (128,) uint8, ….

    ========================  ==========  =====
    name                      shape       dtype
    ========================  ==========  =====
    ksigns_iq2xs              (128,)      uint8
    iq2xxs_grid               (256, 8)    uint8
    iq2xs_grid                (512, 8)    uint8
    iq2s_grid                 (1024, 8)   uint8
    iq3xxs_grid               (256, 4)    uint8
    iq3s_grid                 (512, 4)    uint8
    iq1s_grid                 (2048, 8)   int8
    kvalues_iq4nl             (16,)       int8
    kvalues_fp4               (16,)       int8
    ========================  ==========  =====
    """
    return _codebooks()[name]
