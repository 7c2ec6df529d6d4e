"""``mmgguf demo``: what mapping is good for, shown on a file that the demo writes itself."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer

import mmgguf

from ..format.writer import TypedTensor, write
from ..storage.base import StorageKind
from ..types import LAYOUTS, GGMLType
from .ls import print_tensors
from .printing import is_terminal, print_lines, print_note, print_sentence, print_table, size_text

__all__ = ["demo"]

REPEATS = 5


def demo(
    size: Annotated[int, typer.Option(metavar="MIB", min=1, max=4096, help="How large the model is, in MiB.")] = 64,
) -> None:
    """Time mapping a small model beside reading it.

    Needs no file: writes a random model with every ggml type into a temporary folder, lists it, and removes
    it at the end.
    """
    with tempfile.TemporaryDirectory(prefix="mmgguf-demo-") as folder:
        path = os.path.join(folder, "demo.gguf")
        began = time.perf_counter()
        write_model(path, size << 20)
        seconds = time.perf_counter() - began
        print_note(f"wrote {path}: {size_text(os.path.getsize(path))} in {seconds:.2f} s")
        with mmgguf.open(path) as model:
            print_tensors(list(model.values()))
            count, nbytes = len(model), sum(tensor.nbytes for tensor in model.values())
        _print_timings(path, count, nbytes)


def write_model(path: str | os.PathLike[str], nbytes: int) -> None:
    """A model of about `nbytes` with one tensor of each ggml type, filled with random bytes."""
    rng = np.random.default_rng(0)
    each = nbytes // len(GGMLType)
    tensors: dict[str, TypedTensor] = {}
    for type_ in GGMLType:
        layout = LAYOUTS[type_]
        columns = 1024  # a whole number of every type's blocks
        row_size = layout.row_size(columns)
        rows = max(1, each // row_size)
        # Made when their turn comes, and let go afterwards.
        tensors[f"blk.0.{type_.name.lower()}.weight"] = TypedTensor(
            lambda shape=(rows, row_size): rng.integers(0, 256, shape, np.uint8), type_, (rows, columns)
        )
    write(path, {"general.architecture": "demo", "general.name": "One tensor of each type"}, tensors)


def _take(path: str, storage: StorageKind) -> None:
    with mmgguf.open(path, storage=storage) as model:
        # All are held at once, as a loaded model is: reads get no memory back that is still warm.
        _ = [tensor.data for tensor in model.values()]


def _take_and_use(path: str, storage: StorageKind) -> None:
    with mmgguf.open(path, storage=storage) as model:
        for data in [tensor.data for tensor in model.values()]:
            data.reshape(-1).view(np.uint8).max()


def _best(function: Callable[[str, StorageKind], None], path: str, storage: StorageKind) -> float:
    """The shortest of a few runs, in seconds: what disturbs a run can only lengthen it."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function(path, storage)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _print_timings(path: str, count: int, nbytes: int) -> None:
    steps = {"open, take every tensor": _take, "the same, and use every byte": _take_and_use}
    times = [(name, _best(step, path, "mmap"), _best(step, path, "read")) for name, step in steps.items()]
    if is_terminal():
        typer.echo()
        print_table(
            ("", "mapped", "read", "ratio"),
            [(name, _ms(mapped), _ms(read), f"{read / mapped:.1f}x") for name, mapped, read in times],
            right=("mapped", "read", "ratio"),
            flexible="",
            labelled=("mapped", "read", "ratio"),
        )
        typer.echo()
    else:
        print_lines((name, f"{mapped:.6f}", f"{read:.6f}") for name, mapped, read in times)
    _, mapped, read = times[0]
    _, mapped_used, read_used = times[1]
    print_sentence(
        f"Mapping gave all {count} tensors as arrays in {_ms(mapped)} without moving a byte, where "
        f"unbuffered reads copied {size_text(nbytes)} in {_ms(read)}; using every byte took "
        f"{_ms(mapped_used)} in all when mapped and {_ms(read_used)} when read (the file was in the page cache)."
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
