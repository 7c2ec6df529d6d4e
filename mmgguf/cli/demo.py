"""``mmgguf demo``: a small model to try things on, and how long it takes to open."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

import mmgguf

from ..storage.base import StorageKind
from .bench import duration
from .ls import print_tensors
from .options import Force
from .printing import print_note, print_sentence, size_text
from .progress import writing

__all__ = ["demo"]


def demo(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to leave the model; without it, it is removed.")
    ] = None,
    size: Annotated[int, typer.Option(metavar="MIB", min=1, max=4096, help="How large the model is, in MiB.")] = 64,
    force: Force = False,
) -> None:
    """Write a random model with a tensor of every ggml type, list it, and time mapping it beside reading it."""
    from ..bench.models import every_type

    with tempfile.TemporaryDirectory(prefix="mmgguf-demo-") as folder:
        path = file or Path(folder, "demo.gguf")
        with writing(path, force):
            every_type(path, size << 20)
        with mmgguf.open(path) as model:
            print_tensors(list(model.values()))
            count, nbytes = len(model), sum(tensor.nbytes for tensor in model.values())
        mapped, read = _seconds(path, "mmap"), _seconds(path, "read")
    print_sentence(
        f"Mapping gave all {count} tensors as arrays in {duration(mapped)} without moving a byte, where unbuffered "
        f"reads copied {size_text(nbytes)} in {duration(read)}, out of the page cache. 'mmgguf bench' measures more."
    )
    if file is not None:
        print_note(f"Go on with: mmgguf show {os.fspath(file)}")


def _seconds(path: Path, storage: StorageKind) -> float:
    began = time.perf_counter()
    with mmgguf.open(path, storage=storage) as model:
        # All are held at once, as a loaded model is: reads get no memory back that is still warm.
        _ = [tensor.data for tensor in model.values()]
        return time.perf_counter() - began
