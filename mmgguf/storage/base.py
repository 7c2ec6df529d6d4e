"""The interface of a storage: where the bytes of one file are, and how arrays are taken from there.

`Storage` asks for three things: an array from a range of bytes, a reader for the header, and to be closed.  All else
has a default that suits memory.  Advice (`Storage.advise`, `prefetch`, `wait`, `release`) changes speed, never results;
where a storage has no use for it, it does nothing.

Whoever adds a source writes one class, and a `Reference` if other processes can find the same bytes.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "AHEAD",
    "MAX_CONCURRENCY",
    "TIMEOUT",
    "Access",
    "Mode",
    "OwnMemory",
    "Reference",
    "Shape",
    "Storage",
    "StorageKind",
    "Transfer",
    "open_same",
]

#: How bytes get into arrays: views of a mapping, or read on request.
StorageKind = Literal["mmap", "read"]
Mode = Literal["r", "c"]
Access = Literal["normal", "sequential", "random"]
Shape = tuple[int, ...]

#: How far, in stored bytes, pages of local files are asked for ahead of the tensor at hand.
AHEAD: Final = 32 << 20


#: Seconds without a byte after which a request has failed.
TIMEOUT: Final = 30.0
#: Ranges in flight at a time.
MAX_CONCURRENCY: Final = 16


@dataclass(frozen=True, slots=True)
class Transfer:
    """The limits of transfers from one remote file.

    Attributes
    ----------
    timeout : float
        Seconds without a byte, or for a connection, after which a try has failed.
    max_concurrency : int
        Ranges in flight at a time.
    first_step : int or None
        Bytes of the first request; None: what most headers need.
    """

    timeout: float = TIMEOUT
    max_concurrency: int = MAX_CONCURRENCY
    first_step: int | None = None

    def check(self) -> None:
        """Raise ValueError for limits that are not positive."""
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout}")
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {self.max_concurrency}")


class Reference(ABC):
    """How another process finds the bytes of a storage again; hashable, small and pickled."""

    __slots__ = ()

    @abstractmethod
    def open(self, *, header: bool = True) -> Storage:
        """Open these bytes.

        Parameters
        ----------
        header : bool, default True
            Whether the header will be parsed: only then is more of it fetched from afar than tells the file apart.

        Raises
        ------
        FileChangedError
            They are not the ones that were described.
        """

    def is_current(self, storage: Storage) -> bool:
        """Whether a storage that this reference opened still has the same bytes, as far as a cheap check can tell."""
        return True


class Storage(ABC):
    """An open file from which arrays are taken.

    Parameters
    ----------
    path : str
        Where it was opened: for messages, free of credentials.
    mode : {"r", "c"}
        ``"r"``: arrays are read-only.  ``"c"``: they are writable, and the file never changes.
    size : int
        Size of the file in bytes at opening.

    Attributes
    ----------
    location : str or None
        The path or URL by which the files beside it can be opened; None where there is nothing beside it.
    header_nbytes : int
        Length of the header, set by whoever has parsed it; references may have a digest of it.
    """

    kind: ClassVar[StorageKind] = "read"
    #: Whether an array costs nothing until it is touched, so that a part of one is taken from the whole.
    is_memory: ClassVar[bool] = False
    #: Whether bytes come from afar, so that each range is asked for as it will be taken.
    is_remote: ClassVar[bool] = False
    #: How far, in stored bytes, a walk through the tensors asks for those that come next.
    ahead: ClassVar[int] = AHEAD
    __slots__ = ("__weakref__", "header_nbytes", "location", "mode", "path", "size")

    def __init__(self, path: str, mode: Mode, size: int, location: str | None = None) -> None:
        self.path = path
        self.mode: Mode = mode
        self.size = size
        self.location = location
        self.header_nbytes = 0

    @abstractmethod
    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The array stored at byte `offset`; its end must lie inside the file (the header's checks saw to it).

        Raises
        ------
        ClosedError
            The file was closed.
        FileChangedError
            The file is not the one that was opened.
        """

    @abstractmethod
    def reader(self) -> Any:
        """A binary file object over the file, at its beginning, for `parse_header`; it needs no closing."""

    @abstractmethod
    def close(self) -> None:
        """Give up the file; arrays handed out before stay valid."""

    def region(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes at `offset` as a uint8 array, shape (nbytes,)."""
        return self.array(offset, (nbytes,), np.dtype(np.uint8))

    def writable_array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """As `array`, in memory that may be written to; the file does not change, nor do arrays in mode ``"r"``."""
        array = self.array(offset, shape, dtype)
        return array if array.flags.writeable else array.copy()

    def require_unchanged(self) -> None:
        """Raise `FileChangedError` if the file is known to have changed since it was opened; cheap."""

    def reference(self) -> Reference:
        """How another process finds the same bytes.

        Raises
        ------
        TypeError
            It cannot: the bytes are this process's own.
        """
        raise TypeError(
            f"{self.path}: is in this process only, and cannot be sent to another: write it to a file first"
        )

    def advise(self, access: Access) -> None:
        """Tell how the file will be read."""

    def prefetch(self, offset: int, nbytes: int, *, once: bool = False) -> None:
        """Start reading a range; does not wait.

        Parameters
        ----------
        once : bool, default False
            The range will be taken once, soon: what is held for it may go then.
        """

    def prefetch_ranges(self, ranges: Sequence[tuple[int, int]], *, once: bool = False) -> None:
        """`prefetch` of several ranges (offset, bytes), in the order of the file."""
        for offset, nbytes in ranges:
            self.prefetch(offset, nbytes, once=once)

    def wait(self, offset: int, nbytes: int) -> None:
        """Return when a range that was asked for is there."""

    def release(self, offset: int, nbytes: int) -> None:
        """Drop what is held for a range."""

    def forget(self) -> None:
        """Drop ranges that were prefetched to be read once, and were not read."""

    def resident(self, offset: int, nbytes: int) -> int:
        """Bytes of a range that are held in memory; 0 where that cannot be told."""
        return 0

    def lock(self) -> None:
        """Keep the file in memory, as far as the storage can."""


class OwnMemory(Storage):
    """Arrays of another storage, each in writable memory of its own."""

    __slots__ = ("_storage",)

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.path, "c", storage.size, storage.location)
        self._storage = storage

    def array(self, offset: int, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return self._storage.writable_array(offset, shape, dtype)

    def reader(self) -> Any:
        return self._storage.reader()

    def close(self) -> None:
        """Do nothing: the other storage is closed by its owner."""


# Tensors that were sent here one by one share a storage for as long as any of them lives.
_shared: weakref.WeakValueDictionary[Reference, Storage] = weakref.WeakValueDictionary()


def open_same(reference: Reference) -> Storage:
    """The storage that another process has described.

    Raises
    ------
    FileChangedError
        What is there now is another file.
    """
    storage = _shared.get(reference)
    if storage is None or not reference.is_current(storage):
        storage = _shared[reference] = reference.open(header=False)
    return storage
