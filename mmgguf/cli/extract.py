"""``mmgguf extract``: some tensors of a model in a file of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import File, Force, Output
from .progress import writing

__all__ = ["extract"]


def extract(
    file: File,
    output: Output,
    names: Annotated[
        list[str], typer.Option("--names", "-n", metavar="GLOB", help="These tensors, as 'blk.0.*'; repeatable.")
    ],
    force: Force = False,
) -> None:
    """Write some tensors of a model to a file of their own, with all of its metadata."""
    from ..edit import extract as extract_file

    with writing(output, force) as progress:
        extract_file(file, output, names=names, force=force, progress=progress)
