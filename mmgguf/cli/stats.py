"""``mmgguf stats``: statistics of a model's numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

import mmgguf

from ..inspect import Importance, TensorStats, importance, is_imatrix
from ..inspect import stats as statistics
from .options import File, Names
from .printing import is_terminal, print_json, print_lines, print_table, shape_text
from .progress import progress_bar

__all__ = ["stats"]


def stats(
    file: File,
    names: Names = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON array, with outliers and histograms.")] = False,
) -> None:
    """Show minimum, maximum, mean, deviation, zeros and what is not finite, of each tensor.

    Of an importance matrix (llama-imatrix): which weight matrices matter most, and what they have seen.

    Into a pipe: one line per tensor, separated by tabs: name, type, count, min, max, mean, std, rms, zeros, NaN,
    infinite. Of an importance matrix: name, experts, columns, activations, mean, max, total, entropy, coverage.
    """
    with mmgguf.open(file) as f:
        if is_imatrix(f.metadata) and not names:
            _print_importance(importance(f), json)
            return
        with progress_bar("looking") as progress:
            found = statistics(f, names=names or None, progress=progress)
        known = [one for one in found.values() if one is not None]
        if json:
            print_json([_as_dict(one) for one in known])
        elif not is_terminal():
            fields = ("count", "min", "max", "mean", "std", "rms", "zeros", "nan", "infinite")
            print_lines((one.name, one.type.name, *(getattr(one, field) for field in fields)) for one in known)
        else:
            _print_table(known)


def _print_table(rows: list[TensorStats]) -> None:
    columns = ("name", "type", "min", "max", "mean", "std", "zeros", "not finite", "largest at")
    print_table(
        columns,
        [
            (
                one.name,
                one.type.name,
                _short(one.min),
                _short(one.max),
                _short(one.mean),
                _short(one.std),
                f"{one.zero_share:.1%}",
                one.nan + one.infinite,
                shape_text(one.outliers[0].index) if one.outliers else "",
            )
            for one in rows
        ],
        right=columns[2:],
        flexible="name",
        labelled=columns[2:],
    )


def _print_importance(rows: list[Importance], json: bool) -> None:
    if json:
        print_json([asdict(row) for row in rows])
        return
    if not is_terminal():
        print_lines(asdict(row).values() for row in rows)
        return
    columns = ("name", "experts", "activations", "mean", "max", "total", "entropy", "coverage")
    print_table(
        columns,
        [
            (
                row.name,
                row.experts,
                f"{row.activations:.0f}",
                _short(row.mean),
                _short(row.max),
                _short(row.total),
                f"{row.entropy:.3f}",
                f"{row.coverage:.1%}",
            )
            for row in rows
        ],
        right=columns[1:],
        flexible="name",
        labelled=columns[1:],
    )


def _short(number: float) -> str:
    return f"{number:.4g}"


def _as_dict(one: TensorStats) -> dict[str, Any]:
    span = one.histogram.span()
    return {
        "name": one.name,
        "type": one.type.name,
        "count": one.count,
        "zeros": one.zeros,
        "nan": one.nan,
        "infinite": one.infinite,
        "min": one.min,
        "max": one.max,
        "mean": one.mean,
        "std": one.std,
        "rms": one.rms,
        "outliers": [[o.value, list(o.index)] for o in one.outliers],
        "histogram": {
            "counts": one.histogram.counts[span].tolist(),
            "edges": one.histogram.edges[span.start : span.stop + 1].tolist() if span.stop else [],
        },
    }
