"""Parse many tensor infos at a time: walk from one to the next by single bytes, and check all of them together."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from .constants import MAX_DIMS_READ
from .records import Records
from .strings import decode

__all__ = ["ordinary_infos"]

_NOWHERE: Final = np.empty(0, np.intp)


def ordinary_infos(
    data: bytes, start: int, count: int, records: Records
) -> tuple[dict[str, int], npt.NDArray[np.intp], int]:
    """Tensor infos from `start` on, as far as they are whole, if all these have names below 256 bytes.

    Where the next one begins is told by two bytes, the lowest of the name's length and of n_dims.  That these were the
    whole numbers is checked by numpy for all at once, so the result is exact for any bytes.

    Parameters
    ----------
    data : bytes
        A piece of the header.
    start : int
        Where in it an info begins.
    count : int
        How many there are at most.
    records : Records
        How the file stores its fields.

    Returns
    -------
    infos : dict
        By name: where in `data` its n_dims is.  Empty where one is not ordinary, or a name comes twice.
    places : ndarray of intp
        The same places as an array.
    stop : int
        Where the last one ends.
    """
    width, low = records.width, records.low[4]
    to_length, gap = records.low[width] - width, 16 + width
    text = str(data, "latin-1")  # which has a character for each byte
    names, ends = list[str](), list[int]()
    begin = start + width
    try:
        for _ in range(count):
            end = begin + data[begin + to_length]
            following = end + gap + width * data[end + low]
            names.append(text[begin:end])
            ends.append(end)
            begin = following
    except IndexError:  # at the end of the data
        pass
    if ends and begin - width > len(data):
        begin = ends.pop() - len(names.pop())
    if not ends:
        return {}, _NOWHERE, start
    joined = "\0".join(names)
    if not joined.isascii():
        names = decode(joined.encode("latin-1")).split("\0")
    infos = dict(zip(names, ends, strict=False))
    places = np.array(ends, np.intp)
    dims = records.numbers_of(data, 4)[places].astype(np.intp)
    if dims.max() > MAX_DIMS_READ:
        return {}, _NOWHERE, start
    starts = np.empty_like(places)
    starts[0], starts[1:] = start, (places + dims * width)[:-1] + 16
    lengths = records.numbers_of(data, width)[starts].astype(np.intp)
    is_exact = not np.count_nonzero(places - starts - lengths - width)
    if is_exact and len(infos) == len(names) == len(ends):
        return infos, places, begin - width
    return {}, _NOWHERE, start
