"""System calls, counted."""

from __future__ import annotations

import io
import os
from typing import Any

__all__ = ["CountingFile"]


class CountingFile(io.FileIO):
    """An unbuffered file that counts the system calls it makes.

    Attributes
    ----------
    calls : dict of str to int
        ``"read"`` and ``"lseek"``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "r")
        self.calls = {"read": 0, "lseek": 0}

    @property
    def total(self) -> int:
        """All calls together."""
        return sum(self.calls.values())

    def readinto(self, buffer: Any) -> int:
        self.calls["read"] += 1
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            raise ValueError("a read without a size makes any number of calls")
        self.calls["read"] += 1
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.calls["lseek"] += 1
        return super().seek(offset, whence)

    def tell(self) -> int:
        self.calls["lseek"] += 1
        return super().tell()
