"""``mmgguf merge``: a split model in one file."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Force, Output
from .progress import writing

__all__ = ["merge"]


def merge(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Any shard of a split model.")],
    output: Output,
    force: Force = False,
) -> None:
    """Put the shards of a model together into one file."""
    from ..edit import merge as merge_file

    with writing(output, force) as progress:
        merge_file(file, output, force=force, progress=progress)
