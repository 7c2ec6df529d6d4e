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

IntpArray = npt.NDArray[np.intp]


def ordinary_infos(
    data: bytes, start: int, count: int, records: Records
) -> tuple[dict[str, int], tuple[IntpArray, IntpArray], int]:
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
    places, tails : ndarray of intp
        The same places as an array, and where the ggml types are, which follow the dimensions.
    stop : int
        Where the last one ends.
    """
    width, low = records.width, records.low[4]
    to_length, gap = records.low[width] - width, 16 + width
    text = str(data, "latin-1")  # which has a character for each byte
    infos: dict[str, int] = {}
    begin, seen = start + width, 0
    try:
        for seen in range(1, count + 1):  # noqa: B007  # read behind the loop
            end = begin + data[begin + to_length]
            following = end + gap + width * data[end + low]
            infos[text[begin:end]] = end
            begin = following
    except IndexError:  # at the end of the data
        seen -= 1
    if infos and begin - width > len(data):  # the last one is not whole
        name, end = infos.popitem()
        begin, seen = end - len(name), seen - 1
    if not infos or len(infos) != seen:
        return {}, (_NOWHERE, _NOWHERE), start
    places = np.fromiter(infos.values(), np.intp, seen)
    joined = "\0".join(infos)
    if not joined.isascii():
        names = decode(joined.encode("latin-1")).split("\0")
        infos = dict(zip(names, infos.values(), strict=False))
        if not len(names) == len(infos) == seen:
            return {}, (_NOWHERE, _NOWHERE), start
    tails = records.numbers_of(data, 4)[places].astype(np.intp)
    if np.maximum.reduce(tails) > MAX_DIMS_READ:
        return {}, (_NOWHERE, _NOWHERE), start
    tails *= width
    tails += places
    tails += 4
    starts = np.empty_like(places)
    starts[0], starts[1:] = start, tails[:-1] + 12
    starts += records.numbers_of(data, width)[starts].astype(np.intp)
    starts += width
    if np.count_nonzero(starts != places):
        return {}, (_NOWHERE, _NOWHERE), start
    return infos, (places, tails), begin - width
