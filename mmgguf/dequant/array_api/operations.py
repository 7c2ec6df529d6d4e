"""What the portable kernels need from an array library beyond the array API standard.

The standard has no way to read the same bits as another dtype, and leaves open how constant tables reach a device
and survive a tracer.  An `Operations` supplies both; one is made for each library, by the adapter that knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..codebooks import codebook, e8m0_half, ue4m3_half

__all__ = ["NUMPY", "TABLES", "Array", "Operations", "table"]

#: An array of the library at hand.
Array = Any


@dataclass(frozen=True, slots=True)
class Operations:
    """An array library, as the kernels see it.

    Attributes
    ----------
    xp : module
        Its array API namespace.
    reinterpret : callable
        ``(array, dtype)`` → the same bits as another dtype of the same size.
    constant : callable
        ``(name, array)`` → the table of that name (see `table`) where `array` is.
    """

    xp: Any
    reinterpret: Callable[[Array, Any], Array]
    constant: Callable[[str, Array], Array]


@cache
def table(name: str) -> NDArray[Any]:
    """A constant of the kernels, by name: a codebook, the table of a scale's byte, or the shifts of packed bits.

    ``shifts1``, ``shifts2``, ``shifts4`` are 0, 1, …, 7; 0, 2, 4, 6 and 0, 4 as uint8: how far to the right the
    fields of a byte are, lowest first.
    """
    return TABLES[name]()


def _shifts(bits: int) -> Callable[[], NDArray[Any]]:
    return lambda: np.arange(0, 8, bits, dtype=np.uint8)


def _codebook(name: str) -> Callable[[], NDArray[Any]]:
    return lambda: codebook(name).view(np.int8)  # no point of a grid is above 127


def _mxfp4() -> NDArray[np.float32]:
    """What every scale makes of every nibble, (4096,): the nibble in the lower four bits of the index."""
    with np.errstate(over="ignore"):
        return (e8m0_half()[:, None] * codebook("kvalues_fp4").astype(np.float32)).reshape(-1)


TABLES: Final[dict[str, Callable[[], NDArray[Any]]]] = {
    "shifts1": _shifts(1),
    "shifts2": _shifts(2),
    "shifts4": _shifts(4),
    "sevens": lambda: np.arange(0, 28, 7, dtype=np.int32),
    "threes": lambda: np.arange(0, 12, 3, dtype=np.int32),
    "powers": lambda: 3 ** np.arange(5, dtype=np.int32),
    "mxfp4": _mxfp4,
    "ue4m3_half": ue4m3_half,
    **{
        name: _codebook(name)
        for name in (
            "iq2xxs_grid",
            "iq2xs_grid",
            "iq2s_grid",
            "iq3xxs_grid",
            "iq3s_grid",
            "iq1s_grid",
            "kvalues_iq4nl",
            "kvalues_fp4",
        )
    },
}

#: numpy itself: what the kernels are tested with where no other library is installed.
NUMPY: Final = Operations(np, lambda array, dtype: array.view(dtype), lambda name, _: table(name))
