"""What Python's mmap does not offer: locking pages, telling which are in memory, mapping many ranges of one file."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import weakref
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["NO_RESERVE", "PAGE", "count_resident", "lock_pages", "map_range", "reserves_nothing"]

PAGE: Final = mmap.PAGESIZE
#: Older versions of Python lack the name; the number is that of these machines.
NO_RESERVE: Final[int] = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64") else 0
)


@functools.cache
def _libc() -> Any:
    if sys.platform == "win32":
        return None
    return ctypes.CDLL(None, use_errno=True)


def _address(array: npt.NDArray[np.uint8]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.__array_interface__["data"][0])


@functools.cache
def reserves_nothing() -> bool:
    """Whether ``MAP_NORESERVE`` has an effect: Linux ignores it where it never overcommits memory."""
    try:
        with open("/proc/sys/vm/overcommit_memory", "rb") as file:
            return file.read().strip() != b"2"
    except OSError:
        return False


def lock_pages(base: npt.NDArray[np.uint8]) -> int:
    """Keep the pages of a mapping in memory; an error number where the system refuses, else 0."""
    libc = _libc()
    if libc is not None and libc.mlock(_address(base), ctypes.c_size_t(len(base))):
        return ctypes.get_errno()
    return 0


def count_resident(base: npt.NDArray[np.uint8], offset: int, nbytes: int) -> int:
    """Bytes of a range of a mapping that are in the page cache, by ``mincore``."""
    libc = _libc()
    if not nbytes or libc is None or not hasattr(libc, "mincore"):
        return 0
    first, last = offset // PAGE, -(-(offset + nbytes) // PAGE)
    pages = np.empty(last - first, np.uint8)
    start = ctypes.c_void_p(base.__array_interface__["data"][0] + first * PAGE)
    length = min(last * PAGE, len(base)) - first * PAGE
    if libc.mincore(start, ctypes.c_size_t(length), _address(pages)):
        return 0
    pages &= 1
    total = int(np.count_nonzero(pages)) * PAGE
    # The first and the last page may stick out of the range.
    if pages[0]:
        total -= offset - first * PAGE
    if pages[-1]:
        total -= last * PAGE - (offset + nbytes)
    return total


def map_range(descriptor: int, offset: int, nbytes: int) -> npt.NDArray[np.uint8] | None:
    """Map a range of a file copy-on-write, as an array that unmaps it with the last view; None where that cannot be.

    Not by `mmap.mmap`: before Python 3.13 each of its mappings keeps a descriptor open, and a model has more tensors
    than a process may have of these.
    """
    libc = _libc()
    if libc is None or not nbytes or sys.maxsize < 1 << 32:
        return None
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset + nbytes - start
    libc.mmap.restype = ctypes.c_void_p
    protection, size, place = mmap.PROT_READ | mmap.PROT_WRITE, ctypes.c_size_t(length), ctypes.c_int64(start)
    address = libc.mmap(None, size, protection, mmap.MAP_PRIVATE | NO_RESERVE, int(descriptor), place)
    if address in (None, ctypes.c_void_p(-1).value):
        return None  # perhaps a limit on the number of mappings
    if hasattr(mmap, "MADV_RANDOM"):  # or a fault reads ahead, beyond the range
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), mmap.MADV_RANDOM)
    memory = (ctypes.c_ubyte * length).from_address(address)
    # The array holds `memory`, and so does each view of it.  At exit the system unmaps, after whatever still reads.
    weakref.finalize(memory, libc.munmap, ctypes.c_void_p(address), ctypes.c_size_t(length)).atexit = False
    array: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)  # type: ignore[call-overload]  # a buffer
    return array[offset - start :]
