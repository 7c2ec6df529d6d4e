"""The codebooks of ggml's I-quants and four-bit floats, read from ``codebooks.npz`` when first needed.

Names and contents are those of the tables in ``ggml-common.h``; grids are expanded to one row of points per
entry.  The scales of the four-bit floats are single bytes, and their tables are computed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["codebook", "e8m0_half", "ue4m3_half"]


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


@cache
def e8m0_half() -> NDArray[np.float32]:
    """Half of 2^(e - 127) for every byte e, shape (256,): ggml doubles the values of its codebook instead."""
    return _read_only(np.ldexp(np.float32(1), np.arange(256, dtype=np.int32) - 128).astype(np.float32))


@cache
def ue4m3_half() -> NDArray[np.float32]:
    """Half of the unsigned E4M3 number for every byte, shape (256,).

    The top bit is ignored.  NaN's code, 0x7F alone, counts as zero.
    """
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value[[0, 0x7F]] = 0
    return _read_only((value / 2).astype(np.float32))


def _read_only(table: NDArray[np.float32]) -> NDArray[np.float32]:
    table.flags.writeable = False
    return table
