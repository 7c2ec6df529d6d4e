"""What tells another process whether the file that it opens is the one that was meant."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from ..errors import FileChangedError
from .descriptors import read_at

__all__ = ["Identity", "header_digest", "host"]


class Identity(NamedTuple):
    """What tells another process whether it has opened the same file.

    Size and time of the last change alone do not: copies that keep times and images with fixed times have others'.
    Where both processes see the same file systems, the file has to be the same one; everywhere, its header the same.

    Attributes
    ----------
    size : int
        In bytes, at opening.
    mtime_ns : int
        Time of the last change at opening, in nanoseconds.
    host : bytes
        Digest of what names the machine and its mounted file systems: where `device` and `inode` mean something.
    device, inode : int
        Which file it is on that host.
    header_nbytes : int
        How many bytes from the start of the file `header` is the digest of.
    header : bytes
        BLAKE2b digest of the header, 16 bytes.
    """

    size: int
    mtime_ns: int
    host: bytes
    device: int
    inode: int
    header_nbytes: int
    header: bytes


def header_digest(descriptor: int, nbytes: int, path: str) -> bytes:
    """Digest of the first `nbytes` bytes of an open file, read and not mapped, in pieces of 1 MiB."""
    import hashlib  # takes longer to load than most of this package

    digest = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(0, nbytes, len(buffer) or 1):
        piece = buffer[: nbytes - start]
        if read_at(descriptor, piece, start) != len(piece):
            raise FileChangedError(f"{path}: is shorter than its header of {nbytes} bytes: it was cut off")
        digest.update(piece)
    return digest.digest()


@functools.cache
def host() -> bytes:
    """Digest of what names this machine and the file systems that this process sees.

    On Linux the running kernel and the mount namespace, since containers of one kernel may have other devices for the
    same file; elsewhere the machine's network name and address.
    """
    import hashlib  # takes longer to load than most of this package

    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = f"{file.read().strip()} {os.stat('/proc/self/ns/mnt').st_ino}"
    except OSError:
        import platform
        import uuid

        name = f"{platform.node()} {uuid.getnode()}"
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
