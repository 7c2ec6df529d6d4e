"""The files that are measured: generated ones in the user's cache folder, a real model, or those that were given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mmgguf
from mmgguf.bench import peers
from mmgguf.bench.models import TOKENS, llama

from . import models
from .words import size

__all__ = ["FULL", "GENERATED", "SMALL", "Files", "Model", "NotThere", "Sizes", "cache_folder", "given_model"]

#: Part of the names of generated files: a change of the generators must not meet files of the old ones.
GENERATION = 3


class NotThere(Exception):
    """A file cannot be had on this machine; the message says why in one line."""


@dataclass(frozen=True)
class Sizes:
    """How large the generated files are."""

    name: str
    tokens: int
    merges: int
    scale: float
    vocabulary_rows: int
    words: int
    tensors: int
    matrix: tuple[int, int]
    hole: int


FULL = Sizes("full", TOKENS, models.MERGES, 0.5, 64_128, 4096, 1000, (4096, 4096), 40 << 30)
SMALL = Sizes("small", 2_000, 4_000, 1 / 16, 1_024, 128, 100, (64, 1024), 40 << 30)


@dataclass(frozen=True)
class Model:
    """A file to measure.

    Attributes
    ----------
    id : str
        Part of the ids of cases.
    title : str
        What it is, for tables and charts.
    path : str
        Where it is.
    """

    id: str
    title: str
    path: str


def cache_folder(small: bool) -> Path:
    """Where generated files are kept: $MMGGUF_BENCH_CACHE, or mmgguf-bench in the user's cache folder."""
    given = os.environ.get("MMGGUF_BENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(base) / "mmgguf-bench") / (SMALL if small else FULL).name


class Files:
    """Generated files, made when they are first asked for."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes

    def get(self, name: str, make: Callable[[Path], None], need: int = 64 << 20) -> str:
        """The path of a file of that name; `make` makes it, if `need` bytes are free.

        Raises
        ------
        NotThere
            They are not.
        """
        path = self.folder / f"{GENERATION}-{name}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if free < need * 1.2:
                raise NotThere(f"{name} needs {need >> 20} MiB on the disk, {free >> 20} are free")
            partial = path.with_name(f"{os.getpid()}-{path.name}")
            try:
                make(partial)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return str(path)

    def generated(self, id_: str) -> Model:
        """The generated file of that id."""
        title, make, need = GENERATED[id_]
        path = self.get(f"{id_}.gguf", lambda path: make(path, self.sizes), need(self.sizes))
        with mmgguf.open(path) as file:
            strings = sum(
                file.metadata.array_info(f"tokenizer.ggml.{key}").count
                for key in ("tokens", "merges")
                if f"tokenizer.ggml.{key}" in file.metadata
            )
            nbytes = sum(tensor.nbytes for tensor in file.values())
            title = title.format(tensors=f"{len(file):,}", strings=f"{strings:,}", size=size(nbytes))
        return Model(id_, title, path)

    def in_format(self, path: str, format_: peers.Format) -> str:
        """The tensors of a GGUF file in a peer's format."""
        if format_ == "gguf":
            return path
        with mmgguf.open(path) as source:
            stem = Path(path).name.removeprefix(f"{GENERATION}-").removesuffix(".gguf")
            name = f"{stem}-{source.nbytes}.{format_}"
            return self.get(name, lambda target: peers.save_as(format_, source, target), source.nbytes)


def _vocabulary(path: Path, sizes: Sizes) -> None:
    models.vocabulary(path, sizes.tokens, sizes.merges)


def _llama(path: Path, sizes: Sizes) -> None:
    llama(path, sizes.scale, sizes.vocabulary_rows, sizes.words)


def _many(path: Path, sizes: Sizes) -> None:
    models.many_tensors(path, sizes.tensors)


def _plain(path: Path, sizes: Sizes) -> None:
    models.many_tensors(path, 291)


def _little(sizes: Sizes) -> int:
    return 64 << 20


def _of_llama(sizes: Sizes) -> int:
    return int(5e9 * sizes.scale**2)


#: By id: what it is, what makes it, and about how many bytes it has at most.
GENERATED: dict[str, tuple[str, Callable[[Path, Sizes], None], Callable[[Sizes], int]]] = {
    "vocabulary": ("Llama 3 vocabulary: {strings} strings", _vocabulary, _little),
    "llama": ("{tensors} tensors in the shapes of Llama 3 8B: {size}", _llama, _of_llama),
    "many": ("{tensors} small tensors", _many, _little),
    "plain": ("{tensors} tensors, no vocabulary", _plain, _little),
}


def given_model(path: str | os.PathLike[str]) -> Model:
    """A file that somebody named.

    Raises
    ------
    NotThere
        It cannot be opened; the message is one line with its path.
    """
    try:
        with mmgguf.open(path) as file:
            nbytes = file.nbytes
    except (OSError, mmgguf.GGUFError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotThere(f"{os.fspath(path)}: {message.splitlines()[0]}") from error
    stem = Path(path).stem
    return Model(stem, f"{stem}: {size(nbytes)}", os.path.abspath(path))
