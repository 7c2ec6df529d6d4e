"""``mmgguf split``: a model in several files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from .options import File, Force
from .printing import is_terminal, print_lines, print_table, size_text
from .progress import progress_bar

__all__ = ["parse_size", "split"]

_UNITS: Final = {
    letter + end: base**power
    for power, letter in enumerate("KMGT", 1)
    for end, base in (("", 1000), ("B", 1000), ("iB", 1024))
} | {"": 1, "B": 1}


def parse_size(text: str) -> int:
    """Bytes from ``2GiB``, ``500M`` (of 1000, as llama.cpp counts) or a plain number.

    >>> parse_size("2GiB"), parse_size("1.5K")
    (2147483648, 1500)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    size = float(match[1]) * units[match[2].lower()] if match is not None and match[2].lower() in units else 0.0
    if not 1 <= size < 1 << 63:
        raise typer.BadParameter(f"{text!r:.40} is not a size such as 2GiB or 500M")
    return int(size)


def split(
    file: File,
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="The shards will be PREFIX-00001-of-00003.gguf, ….")],
    max_size: Annotated[
        int | None, typer.Option(metavar="SIZE", parser=parse_size, help="Bytes of tensors per shard, as 2GiB or 500M.")
    ] = None,
    max_tensors: Annotated[int | None, typer.Option(metavar="N", min=1, help="Tensors per shard.")] = None,
    at_layers: Annotated[bool, typer.Option("--at-layers", help="Never divide a layer.")] = False,
    empty_first: Annotated[
        bool, typer.Option("--no-tensor-first-split", help="Leave the first shard without tensors.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the shards.")] = False,
    force: Force = False,
) -> None:
    """Split a model into shards, as llama.cpp lays them out.

    Into a pipe: one line per shard, path, tensors and bytes of tensors separated by tabs.
    """
    import mmgguf

    from ..edit import plan_split
    from ..edit import split as split_file

    if max_size is None and max_tensors is None and not at_layers:
        raise typer.BadParameter("one of them is needed", param_hint="'--max-size' / '--max-tensors' / '--at-layers'")
    options = {"max_size": max_size, "max_tensors": max_tensors}
    with mmgguf.open(file) as f:
        parts = plan_split(f, **options, at_layers=at_layers, empty_first=empty_first)
        rows = [
            (f"{prefix}-{no:05d}-of-{len(parts):05d}.gguf", len(part), sum(t.nbytes for t in part))
            for no, part in enumerate(parts, 1)
        ]
        if not dry_run:
            with progress_bar(f"{len(parts)} shards") as progress:
                split_file(
                    f, prefix, **options, at_layers=at_layers, empty_first=empty_first, force=force, progress=progress
                )
    if is_terminal():
        table = [(path, count, size_text(nbytes)) for path, count, nbytes in rows]
        print_table(("shard", "tensors", "size"), table, right=("tensors", "size"), flexible="shard")
    else:
        print_lines(rows)
