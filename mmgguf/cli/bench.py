"""``mmgguf bench``: compare ways of loading on this machine."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import is_terminal, print_json, print_lines, print_note, print_sentence, print_table, safe, terminal

if TYPE_CHECKING:
    from ..bench.quick import Row
    from ..bench.verdict import Advice

__all__ = ["bench"]

#: Columns below which a table is stacked.
_TABLE = 64


def bench(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A model; without one, it writes its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare mapped, buffered and unbuffered reads, and the other libraries that are installed.

    Ends with a verdict: what to do on this machine, for this file.  Takes about half a minute.  Without FILE it writes
    a model of 300 MB into a temporary folder.  Times are the best of several runs, and medians in the verdict.
    """
    # Imported here: the other subcommands should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..bench.quick import measure_all

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        rows, verdict, left_out = measure_all(
            file, lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
        )
    if as_json:
        advice = [dataclasses.asdict(one) for one in verdict]
        print_json({"rows": [_as_dict(row) for row in rows], "verdict": advice, "left_out": left_out})
        return
    if not is_terminal():
        print_lines(
            (row.what, row.one, row.other, f"{row.seconds:.6g}", f"{row.other_seconds:.6g}", row.meaning)
            for row in rows
        )
        print_lines(("verdict", one.about, one.answer, one.reason) for one in verdict)
    else:
        _print(rows)
        _print_verdict(verdict, file)
    for reason in left_out:
        print_note(f"left out: {reason}")


def _as_dict(row: Row) -> dict[str, object]:
    return {
        "what": row.what,
        "one": row.one,
        "other": row.other,
        "seconds": row.seconds,
        "other_seconds": row.other_seconds,
        "ratio": row.ratio,
        "meaning": row.meaning,
    }


def _print(rows: list[Row]) -> None:
    works: dict[str, list[Row]] = {}
    for row in rows:
        works.setdefault(row.what, []).append(row)
    for what, same in works.items():
        if terminal().width < _TABLE:  # what is stacked has no header
            print_sentence(f"To {what}:")
        print_table(
            (f"To {what},", "takes", "and", "takes ", "as long"),
            [
                (row.one, duration(row.seconds), row.other, duration(row.other_seconds), _times(row.ratio) + " times")
                for row in same
            ],
            right=("takes", "takes ", "as long"),
            flexible=f"To {what},",
        )
        for row in same:
            print_sentence(f"{in_words(row)}: {row.meaning}.")
        typer.echo()


def _print_verdict(verdict: list[Advice], file: str | None) -> None:
    if not verdict:
        print_sentence("No verdict: the file has no tensors that can be loaded.")
        return
    what = "the generated model" if file is None else safe(os.path.basename(file))
    print_sentence(f"On this machine, for {what}:")
    for one in verdict:
        print_sentence(f"* {one.about}: {one.answer}; {one.reason}.")


def in_words(row: Row) -> str:
    """A row in words."""
    one, other = row.one, row.other
    if row.ratio >= 1.1:
        return f"{one} is {_times(row.ratio)} times as fast as {other}"
    if row.ratio > 0.9:
        return f"{one} and {other} take the same time"
    return f"{one} takes {_times(1 / row.ratio)} times as long as {other}"


def duration(seconds: float) -> str:
    """Seconds for people, three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
