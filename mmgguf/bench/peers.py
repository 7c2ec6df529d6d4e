"""Other libraries that open model files, each behind the same few functions, where they are installed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

import mmgguf

from ..types import layout_of
from .ggml import InitParams, Unavailable, c_library

__all__ = ["PEERS", "Peer", "Unavailable", "save_as", "versions"]

Format = Literal["gguf", "safetensors", "torch"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that opens model files.

    Attributes
    ----------
    name : str
        As a reader knows it.
    package : str
        What pip installs.
    format : {"gguf", "safetensors", "torch"}
        What it opens; `save_as` makes the same tensors in the other formats.
    open : callable
        Path → handle, with all metadata parsed.  Raises `Unavailable`.
    close : callable
        Gives up a handle.
    names : callable
        Handle → names of the tensors.
    get : callable or None
        Handle, name → the stored data as an array; None where the library gives no such thing.
    maps : bool
        Whether data that `get` returns is the mapped file, not a copy.
    """

    name: str
    package: str
    format: Format
    open: Callable[[str], Any]
    close: Callable[[Any], Any]
    names: Callable[[Any], list[str]]
    get: Callable[[Any, str], Any] | None
    maps: bool = True

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        if self.package == "mmgguf":
            return mmgguf.__version__
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def require(self) -> None:
        """Raise `Unavailable` where it is not installed."""
        if self.version is None:
            raise Unavailable(f"{self.name} is not installed: pip install {self.package}")


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{package} cannot be imported: {error}") from error


def _nothing(handle: Any) -> None:
    pass


# ---------------------------------------------------------------- the C library


def _c_open(path: str) -> tuple[int, ctypes.c_void_p]:
    context = ctypes.c_void_p()
    handle = c_library().gguf_init_from_file(os.fsencode(path), InitParams(True, ctypes.pointer(context)))
    if not handle:
        raise Unavailable("the C library refuses this file")
    return handle, context


def _c_close(handle: tuple[int, ctypes.c_void_p]) -> None:
    c_library().gguf_free(handle[0])
    if handle[1].value:
        c_library().ggml_free(handle[1])


def _c_names(handle: tuple[int, ctypes.c_void_p]) -> list[str]:
    library = c_library()
    return [library.gguf_get_tensor_name(handle[0], i).decode() for i in range(library.gguf_get_n_tensors(handle[0]))]


# ---------------------------------------------------------------- Python libraries


def _gguf_open(path: str) -> tuple[Any, dict[str, Any]]:
    module = _module("gguf", "gguf")
    try:
        reader = module.GGUFReader(path)
    except (ValueError, KeyError) as error:
        raise Unavailable(f"gguf-py refuses this file: {error}") from error
    return reader, {tensor.name: tensor for tensor in reader.tensors}


def _safetensors_open(path: str) -> Any:
    return _module("safetensors", "safetensors").safe_open(path, "np")


def _torch_open(path: str) -> Any:
    return _module("torch", "torch").load(path, mmap=True, weights_only=True)


def _tinygrad_open(path: str) -> Any:
    tensor = _module("tinygrad", "tinygrad").Tensor(Path(path))
    try:
        module = _module("tinygrad.llm.gguf", "tinygrad")
    except Unavailable:  # where older versions have it
        module = _module("tinygrad.nn.state", "tinygrad")
    return module.gguf_load(tensor)


def _mlx_open(path: str) -> Any:
    return _module("mlx.core", "mlx").load(path, return_metadata=True)


PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer(
            "mmgguf",
            "mmgguf",
            "gguf",
            mmgguf.open,
            lambda f: f.close(),
            list,
            lambda f, name: f[name].data,
        ),
        Peer("C library", "pywhispercpp", "gguf", _c_open, _c_close, _c_names, None),
        Peer(
            "gguf-py",
            "gguf",
            "gguf",
            _gguf_open,
            _nothing,
            lambda handle: list(handle[1]),
            lambda handle, name: handle[1][name].data,
        ),
        Peer(
            "safetensors",
            "safetensors",
            "safetensors",
            _safetensors_open,
            _nothing,
            lambda handle: list(handle.keys()),
            lambda handle, name: handle.get_tensor(name),
            maps=False,
        ),
        Peer("tinygrad", "tinygrad", "gguf", _tinygrad_open, _nothing, lambda h: list(h[1]), None),
        Peer("mlx", "mlx", "gguf", _mlx_open, _nothing, lambda h: list(h[0]), None),
        Peer(
            "torch",
            "torch",
            "torch",
            _torch_open,
            _nothing,
            list,
            lambda handle, name: handle[name].numpy(),
        ),
    )
}


def save_as(format_: Format, source: mmgguf.GGUFFile, path: str | os.PathLike[str]) -> None:
    """Write the stored data of all tensors in a peer's format.

    Plain types keep their dtype and shape; blocks, which these formats do not know, become uint8 with the same bytes.

    Raises
    ------
    Unavailable
        The library that writes the format is not installed.
    """
    if format_ == "gguf":
        raise ValueError("the source is GGUF already")
    arrays = {}
    for name, tensor in source.items():
        if layout_of(tensor.type) is None:
            continue
        data = tensor.data
        # bfloat16 is no dtype of numpy's own, and these writers do not know it.
        plain = data.dtype.names is None and data.dtype.kind in "fiu"
        arrays[name] = data if plain else data.view(np.uint8)
    if format_ == "safetensors":
        _module("safetensors.numpy", "safetensors").save_file(arrays, os.fspath(path))
    else:
        torch = _module("torch", "torch")
        torch.save({name: torch.tensor(np.array(array)) for name, array in arrays.items()}, path)


def versions(peers: Mapping[str, Peer] = PEERS) -> dict[str, str]:
    """The installed versions by name."""
    return {name: version for name, peer in peers.items() if (version := peer.version) is not None}
