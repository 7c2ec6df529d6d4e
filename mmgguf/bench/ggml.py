"""The C library ggml through ctypes, as the wheel of pywhispercpp carries it: built for portable x86-64."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..types import GGMLType

__all__ = ["InitParams", "Unavailable", "c_library", "declare", "dequantize_in_c"]

_POINTER: Final = ctypes.c_void_p
_INT64: Final = ctypes.c_int64


class Unavailable(Exception):
    """A peer is not installed, or cannot be used here; the message is the reason."""


class InitParams(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Tell ctypes what functions of the library return and take."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


@cache
def c_library() -> ctypes.CDLL:
    """``libggml-base``, able to open files.

    Raises
    ------
    Unavailable
        It is not installed, or cannot be loaded.
    """
    try:
        files = importlib.metadata.files("pywhispercpp") or []
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("ggml's C library is not installed: pip install pywhispercpp") from None
    found = [Path(str(file.locate())) for file in files if "ggml-base" in Path(str(file)).name]
    found = [path.resolve() for path in found if path.exists() and path.suffix != ".lib"]
    if not found:
        raise Unavailable("this wheel of pywhispercpp has no libggml-base")
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise Unavailable(str(error)) from error
    declare(
        library,
        {
            "gguf_init_from_file": (_POINTER, (ctypes.c_char_p, InitParams)),
            "gguf_free": (None, (_POINTER,)),
            "gguf_get_n_tensors": (_INT64, (_POINTER,)),
            "gguf_get_tensor_name": (ctypes.c_char_p, (_POINTER, _INT64)),
            "ggml_free": (None, (_POINTER,)),
        },
    )
    return library


def dequantize_in_c(type_: GGMLType) -> Callable[[npt.NDArray[Any], npt.NDArray[np.float32]], None]:
    """C's loop over the blocks of a type, as a function of contiguous blocks and of the float32 array to fill.

    Raises
    ------
    Unavailable
        The library has none for this type, or is not here.
    """
    name = type_.name
    # The K of the K-quants is the only capital in C's names.
    stem = name[:-1].lower() + "K" if name.endswith("_K") else name.lower()
    try:
        function = getattr(c_library(), f"dequantize_row_{stem}")
    except AttributeError:
        raise Unavailable(f"the C library does not dequantize {name}") from None
    function.restype, function.argtypes = None, (_POINTER, _POINTER, _INT64)

    def run(blocks: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
        function(blocks.ctypes.data, out.ctypes.data, out.size)

    return run
