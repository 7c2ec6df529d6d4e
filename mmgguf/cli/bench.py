"""``mmgguf bench``: compare ways of loading on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .printing import is_terminal, print_json, print_lines, print_note, print_sentence, print_table

if TYPE_CHECKING:
    from ..bench.quick import Row

__all__ = ["bench"]


def bench(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A model; without one, it writes its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare mapped, buffered and unbuffered reads, and the other libraries that are installed.

    Takes less than a minute.  Without FILE it writes a model of 300 MB into a temporary folder.  Times are the best
    of several runs.
    """
    # Imported here: the other subcommands should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..bench.quick import measure_all

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        rows, left_out = measure_all(
            file, lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
        )
    if as_json:
        print_json({"rows": [_as_dict(row) for row in rows], "left_out": left_out})
        return
    if not is_terminal():
        print_lines(
            (row.what, row.one, row.other, f"{row.seconds:.6g}", f"{row.other_seconds:.6g}", row.meaning)
            for row in rows
        )
    else:
        _print(rows)
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
        print_table(
            (what, "takes", "with", "takes ", "ratio"),
            [
                (row.one, duration(row.seconds), row.other, duration(row.other_seconds), _times(row.ratio) + "x")
                for row in same
            ],
            right=("takes", "takes ", "ratio"),
            flexible=what,
        )
        for row in same:
            print_sentence(f"{verdict(row)}: {row.meaning}.")
        typer.echo()


def verdict(row: Row) -> str:
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
