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
    values: Annotated[
        bool, typer.Option("--values", help="Compare the numbers, as of two quantizations of one model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON array, one line per difference.")] = False,
) -> None:
    """Compare the metadata and the tensors of two files.

    The exit status is 0 if they do not, 1 if they do, 2 if a file cannot be read or the output cannot be written.
    Alignment, offsets, order, byte order and the distribution over shards do not count.

    Into a pipe: one line per difference, change, kind, name and what exactly separated by tabs.

    With --values first a sentence, then how the structure differs, then only the tensors whose numbers do: name, both
    types, NMSE, RMSE, greatest error, cosine, and the divergence of the histograms in nats. JSON is then one object.
    """
    if values:
        _compare_values(a, b, json)
        return
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


def _compare_values(a: str, b: str, json: bool) -> None:
    from ..inspect import compare_values

    with errors_as_one_line(UNUSABLE), progress_bar("comparing") as progress:
        found = compare_values(a, b, progress=progress)
    differ = [t for t in found.tensors if t.nmse or t.non_finite or t.a_type is not t.b_type]
    structure = [(d.change, d.kind, d.name, d.message) for d in found.structure]
    rows = [
        (t.name, t.a_type.name, t.b_type.name, t.nmse, t.rmse, t.max_error, t.cosine, t.kl)
        for t in sorted(differ, key=lambda t: -t.nmse)
    ]
    if json:
        names = [
            [asdict(t) | {"a_type": t.a_type.name, "b_type": t.b_type.name} for t in ts] for ts in (found.types, differ)
        ]
        differences = [asdict(d) for d in found.structure]
        print_json({"summary": found.summary, "structure": differences, "types": names[0], "tensors": names[1]})
    elif not is_terminal():
        print_lines([(found.summary,), (), *structure, (), *rows])
    else:
        print_sentence(found.summary)
        if structure:
            typer.echo()
            print_table(("change", "kind", "name", "what"), structure, flexible="what")
        columns = ("tensor", "from", "to", "NMSE", "RMSE", "max", "cosine", "KL")
        if rows:
            typer.echo()
            per_type = [
                (f"all {t.tensors}", t.a_type.name, t.b_type.name, *_short(t.nmse, t.rmse, t.max_error), "", "")
                for t in found.types
            ]
            cells = [(*row[:3], *_short(*row[3:6]), f"{row[6]:.6f}", *_short(row[7])) for row in rows]
            print_table(columns, per_type + cells, right=columns[3:], flexible="tensor", labelled=columns[3:])
    if structure or any(t.nmse or t.non_finite for t in differ):
        raise typer.Exit(1)


def _short(*numbers: float) -> list[str]:
    return [f"{number:.3g}" for number in numbers]
