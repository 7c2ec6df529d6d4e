"""``mmgguf compare``: how two files differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import mmgguf

from .printing import (
    UNUSABLE,
    errors_as_one_line,
    is_terminal,
    print_json,
    print_lines,
    print_sentence,
    print_table,
)
from .progress import progress_bar

__all__ = ["compare"]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A GGUF file, or any shard of a split model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json: Annotated[bool, typer.Option("--json", help="A JSON array, one line per difference.")] = False,
) -> None:
    """Tell how the metadata and the tensors of two files differ.

    The exit status is 0 if they do not, 1 if they do, 2 if a file cannot be read or the output cannot be written.
    Alignment, offsets, order, byte order and the distribution over shards do not count.

    Into a pipe: one line per difference, change, kind, name and what exactly separated by tabs.
    """
    with errors_as_one_line(UNUSABLE), progress_bar("comparing") as progress:
        differences = mmgguf.compare(a, b, progress=progress)
    rows = [(d.change, d.kind, d.name, d.message) for d in differences]
    if json:
        print_json([asdict(difference) for difference in differences])
    elif not is_terminal():
        print_lines(rows)
    elif rows:
        print_table(("change", "kind", "name", "what"), rows, flexible="what")
    else:
        print_sentence("No differences.")
    if differences:
        raise typer.Exit(1)
