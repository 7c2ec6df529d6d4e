"""Ways to get the stored bytes of tensors into numpy: mapped, read with and without a buffer, and other libraries."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import mmgguf

from ..storage.descriptors import read_at
from ..types import layout_of
from .peers import PEERS, Format, Peer

__all__ = ["WAYS", "Way", "byte_sum", "page_sum"]

Bytes = npt.NDArray[np.uint8]
#: By name: where a tensor begins in the file, its bytes, and the bytes of one row.
Places = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way from a file to arrays.

    Attributes
    ----------
    name : str
        For tables.
    kind : {"mapped", "read"}
        Whether arrays are the file, or copies of it.
    format : {"gguf", "safetensors", "torch"}
        What it opens.
    open : callable
        Path → handle.  Raises `peers.Unavailable`.
    close : callable
        Gives up a handle.
    tensor : callable
        Handle, name → all stored bytes of the tensor, in any shape and dtype.
    row : callable
        Handle, name, index → the stored bytes of one row.
    """

    name: str
    kind: str
    format: Format
    open: Callable[[str], Any]
    close: Callable[[Any], Any]
    tensor: Callable[[Any, str], npt.NDArray[Any]]
    row: Callable[[Any, str, int], npt.NDArray[Any]]


def page_sum(array: npt.NDArray[Any]) -> int:
    """The sum of one byte of every 4096: touches each page, and shows that the right one was touched."""
    return int(_flat(array)[::4096].sum(dtype=np.uint64))


def byte_sum(array: npt.NDArray[Any]) -> int:
    """The sum of all bytes, taken eight at a time: every byte goes through the processor."""
    flat = _flat(array)
    whole = len(flat) & ~7
    total = int(np.add.reduce(flat[:whole].view(np.uint64))) + int(flat[whole:].sum(dtype=np.uint64))
    return total & 0xFFFFFFFFFFFFFFFF


def _flat(array: npt.NDArray[Any]) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _places(path: str) -> Places:
    with mmgguf.open(path) as file:
        known = {name: t for name, t in file.items() if layout_of(t.type) is not None}
        return {name: (t.file_offset, t.nbytes, t.info.row_size) for name, t in known.items()}


# Handles of the ways below: something to read from, and the places.


def _open_raw(path: str) -> tuple[io.FileIO, Places]:
    return io.FileIO(path), _places(path)


def _close_file(handle: tuple[Any, Places]) -> None:
    handle[0].close()


def _pread(descriptor: int, offset: int, nbytes: int) -> Bytes:
    array = np.empty(nbytes, np.uint8)
    if read_at(descriptor, array.data, offset) != nbytes:
        raise EOFError(f"needs {nbytes} bytes at byte {offset}, the file has fewer by now")
    return array


def _unbuffered_tensor(handle: tuple[io.FileIO, Places], name: str) -> Bytes:
    offset, nbytes, _ = handle[1][name]
    return _pread(handle[0].fileno(), offset, nbytes)


def _unbuffered_row(handle: tuple[io.FileIO, Places], name: str, index: int) -> Bytes:
    offset, _, row = handle[1][name]
    return _pread(handle[0].fileno(), offset + index * row, row)


def _open_buffered(path: str) -> tuple[io.BufferedReader, Places]:
    return io.BufferedReader(io.FileIO(path), 64 * 1024), _places(path)


def _buffered_tensor(handle: tuple[io.BufferedReader, Places], name: str) -> Bytes:
    offset, nbytes, _ = handle[1][name]
    handle[0].seek(offset)
    return np.frombuffer(handle[0].read(nbytes), np.uint8)


def _buffered_row(handle: tuple[io.BufferedReader, Places], name: str, index: int) -> Bytes:
    offset, _, row = handle[1][name]
    handle[0].seek(offset + index * row)
    return np.frombuffer(handle[0].read(row), np.uint8)


def _fromfile_tensor(handle: tuple[io.FileIO, Places], name: str) -> Bytes:
    offset, nbytes, _ = handle[1][name]
    handle[0].seek(offset)
    return np.fromfile(handle[0], np.uint8, nbytes)


def _fromfile_row(handle: tuple[io.FileIO, Places], name: str, index: int) -> Bytes:
    offset, _, row = handle[1][name]
    handle[0].seek(offset + index * row)
    return np.fromfile(handle[0], np.uint8, row)


def _open_memmap(path: str) -> list[Any]:
    return [np.memmap(path, np.uint8, "r"), _places(path)]


def _memmap_tensor(handle: list[Any], name: str) -> Bytes:
    offset, nbytes, _ = handle[1][name]
    array: Bytes = handle[0][offset : offset + nbytes]
    return array


def _memmap_row(handle: list[Any], name: str, index: int) -> Bytes:
    offset, _, row = handle[1][name]
    array: Bytes = handle[0][offset + index * row : offset + (index + 1) * row]
    return array


def _mapped_row(handle: mmgguf.GGUFFile, name: str, index: int) -> npt.NDArray[Any]:
    data = handle[name].data
    row: npt.NDArray[Any] = data.reshape(-1, data.shape[-1])[index]
    return row


def _of_peer(peer: Peer, kind: str, row: Callable[[Any, str, int], npt.NDArray[Any]] | None = None) -> Way:
    get = peer.get
    if get is None:
        raise ValueError(f"{peer.name} gives no arrays")

    def first_axes_flat(handle: Any, name: str, index: int) -> npt.NDArray[Any]:
        data = get(handle, name)
        line: npt.NDArray[Any] = data.reshape(-1, data.shape[-1])[index]
        return line

    return Way(peer.name, kind, peer.format, peer.open, peer.close, get, row or first_axes_flat)


WAYS: Final[dict[str, Way]] = {
    way.name: way
    for way in (
        Way(
            "mmgguf",
            "mapped",
            "gguf",
            mmgguf.open,
            lambda f: f.close(),
            lambda f, name: f[name].data,
            _mapped_row,
        ),
        Way(
            "mmgguf, storage=read",
            "read",
            "gguf",
            lambda path: mmgguf.open(path, storage="read"),
            lambda f: f.close(),
            lambda f, name: f[name].data,
            _mapped_row,
        ),
        Way("unbuffered (preadv)", "read", "gguf", _open_raw, _close_file, _unbuffered_tensor, _unbuffered_row),
        Way("buffered (64 KiB)", "read", "gguf", _open_buffered, _close_file, _buffered_tensor, _buffered_row),
        Way("np.fromfile", "read", "gguf", _open_raw, _close_file, _fromfile_tensor, _fromfile_row),
        Way("np.memmap", "mapped", "gguf", _open_memmap, list.clear, _memmap_tensor, _memmap_row),
        _of_peer(PEERS["gguf-py"], "mapped"),
        _of_peer(
            PEERS["safetensors"],
            "read",
            lambda handle, name, index: handle.get_slice(name)[index : index + 1],
        ),
        _of_peer(PEERS["torch"], "mapped"),
    )
}
