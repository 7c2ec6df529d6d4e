"""``mmgguf report``: a page about a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import File, Force
from .printing import print_note, safe, size_text
from .progress import progress_bar, refuse_existing

__all__ = ["report"]


def report(
    file: File,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="Another model, such as another quantization, to compare.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUTPUT", help="The page to write.")] = Path(
        "report.html"
    ),
    statistics: Annotated[
        bool, typer.Option("--stats/--no-stats", help="Look at every weight, or at the header alone.")
    ] = True,
    force: Force = False,
) -> None:
    """Write a self-contained page about a model, which any browser opens from disk.

    It shows the file as a map, types by share and by layer, statistics, histograms and outliers, the tokenizer and the
    metadata with search, the chat template, and what verify finds; with OTHER how far its numbers lie away.
    """
    from ..report import write_page

    refuse_existing(output, force)
    with progress_bar("looking", wanted=statistics or other is not None) as progress:
        write_page(file, output, other=other, statistics=statistics, progress=progress, force=force)
    print_note(f"wrote {safe(output)}: {size_text(os.path.getsize(output))}")
