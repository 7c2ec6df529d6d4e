"""Parse many tensor infos at a time: walk from one to the next by single bytes, and check all of them together."""

from __future__ import annotations

import numpy as np

from .constants import MAX_DIMS_READ
from .records import Records
from .strings import decode

__all__ = ["ordinary_infos"]


def ordinary_infos(data: bytes, start: int, count: int, records: Records) -> tuple[dict[str, int], int]:
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
    stop : int
        Where the last one ends.
    """
    width, low_of_length, low_of_n_dims = records.width, records.low[records.width], records.low[4]
    text = str(data, "latin-1")  # which has a character for each byte
    names, ends = list[str](), list[int]()
    stop = start
    try:
        for _ in range(count):
            end = stop + width + data[stop + low_of_length]
            n_dims = data[end + low_of_n_dims]
            names.append(text[stop + width : end])
            ends.append(end)
            stop = end + 16 + width * n_dims
    except IndexError:  # at the end of the data
        pass
    if ends and stop > len(data):
        stop = ends.pop() - len(names.pop()) - width
    if not ends:
        return {}, start
    joined = "\0".join(names)
    if not joined.isascii():
        names = decode(joined.encode("latin-1")).split("\0")
    infos = dict(zip(names, ends, strict=False))
    places = np.array(ends)
    dims = records.numbers_of(data, 4)[places].astype(np.intp)
    if dims.max() > MAX_DIMS_READ:
        return {}, start
    starts = np.empty_like(places)
    starts[0], starts[1:] = start, (places + dims * width)[:-1] + 16
    lengths = records.numbers_of(data, width)[starts].astype(np.intp)
    is_exact = not np.count_nonzero(places - starts - lengths - width)
    return (infos, stop) if is_exact and len(infos) == len(names) == len(ends) else ({}, start)
