"""Charts of a run: medians as points with whiskers from the first to the third quartile, one colour per contestant.

Times span powers of ten, so their axes are logarithmic, and points stand where bars would have no meaningful length.
Each chart is written as SVG and as PNG, for light pages and for dark ones.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # after the backend is chosen
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .results import Panel, Time
from .words import duration, label, number

__all__ = ["columns", "dots", "growth", "stacked"]

#: One colour per contestant in all charts: mmgguf is blue, what reads is grey, the others are as far apart as can be.
COLOURS: Final = {
    "mmgguf": "#1f77d0",
    "mmgguf, numba": "#1f77d0",
    "mmgguf.torch": "#1f77d0",
    "mmgguf, numpy": "#5fb0ee",
    "mmgguf, numba, all cores": "#0b9aa8",
    "mmgguf, storage=read": "#5fb0ee",
    "mmgguf.torch, portable": "#5fb0ee",
    "mmgguf.compat": "#0b9aa8",
    "transformers, mmgguf.compat": "#0b9aa8",
    "unbuffered (preadv)": "#8a8f98",
    "buffered (64 KiB)": "#6a6f78",
    "np.fromfile": "#a9aeb6",
    "np.memmap": "#9467bd",
    "np.load (mmap)": "#9467bd",
    "C library": "#e8710a",
    "llama.cpp": "#e8710a",
    "gguf-py": "#d62f4b",
    "gguf.js": "#b58900",
    "safetensors": "#2a9d4a",
    "safetensors (bf16)": "#2a9d4a",
    "torch": "#c2469b",
    "transformers": "#c2469b",
    "diffusers": "#8c6d4f",
    "tinygrad": "#7f7f2a",
    "mlx": "#557755",
}
OTHER: Final = "#8a8f98"

THEMES: Final = {
    "": {"page": "#ffffff", "ink": "#1f2328", "faint": "#656d76", "grid": "#d8dee4"},
    "-dark": {"page": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "grid": "#30363d"},
}
WIDTH: Final = 7.0  # inches: 1,400 pixels, shown at 700 on an ordinary screen
ROW: Final = 0.215


Theme = dict[str, str]


def _each_theme(folder: Path, name: str, draw: Callable[[Theme], Any]) -> list[Path]:
    """Draw and save in both themes and formats."""
    written = []
    for suffix, theme in THEMES.items():
        settings = {
            "figure.facecolor": theme["page"],
            "savefig.facecolor": theme["page"],
            "axes.facecolor": theme["page"],
            "axes.edgecolor": theme["grid"],
            "axes.labelcolor": theme["ink"],
            "text.color": theme["ink"],
            "xtick.color": theme["faint"],
            "ytick.color": theme["ink"],
            "grid.color": theme["grid"],
            "grid.linewidth": 0.6,
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "svg.hashsalt": name,
        }
        with mpl.rc_context(settings):
            figure = draw(theme)
            for format_, options in (("png", {"dpi": 200}), ("svg", {})):
                path = folder / f"{name}{suffix}.{format_}"
                metadata = {"Software": None} if format_ == "png" else {"Date": None, "Creator": None}
                figure.savefig(path, metadata=metadata, **options)
                written.append(path)
            plt.close(figure)
    return written


def _title(figure: Any, text: str, note: str, height: float, theme: Theme) -> float:
    """The finding at the top and a note below it; the inches that they take."""
    lines = textwrap.wrap(text, 75)
    figure.text(0.012, 1 - 0.10 / height, "\n".join(lines), fontsize=11, weight="bold", va="top", linespacing=1.25)
    used = 0.10 + 0.2 * len(lines)
    notes = textwrap.wrap(note, 112)
    figure.text(0.012, 1 - (used + 0.06) / height, "\n".join(notes), fontsize=8, color=theme["faint"], va="top")
    return used + 0.1 + 0.15 * len(notes)


def _title_height(text: str, note: str) -> float:
    return 0.2 + 0.2 * len(textwrap.wrap(text, 75)) + 0.15 * len(textwrap.wrap(note, 112))


def _seconds_axis(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value, 1)))
    axes.tick_params(axis="x", labelsize=8, length=0)


def _bare(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)


def dots(folder: Path, name: str, title: str, note: str, panels: Sequence[Panel]) -> list[Path]:
    """Panels below each other on one logarithmic axis of seconds, the fastest contestant of each first."""
    panels = [panel for panel in panels if panel.times]
    rows = [len(panel.times) + len(panel.absent) for panel in panels]
    head = _title_height(title, note)
    height = head + sum(ROW * n + 0.42 for n in rows) + 0.35
    every = [value for panel in panels for time in panel.times.values() for value in (time.q1, time.q3, time.median)]
    span = min(every) / 1.8, max(every) * 1.8

    def draw(theme: Theme) -> Any:
        figure = plt.figure(figsize=(WIDTH, height))
        top = _title(figure, title, note, height, theme)
        for place, (panel, n) in enumerate(zip(panels, rows, strict=True)):
            top += 0.30
            axes = figure.add_axes((0.29, 1 - (top + ROW * n) / height, 0.55, ROW * n / height))
            figure.text(0.012, 1 - (top - 0.07) / height, panel.title, fontsize=9, weight="bold", va="bottom")
            top += ROW * n + 0.12
            _panel(axes, panel, span, theme, last=place == len(panels) - 1)
        return figure

    return _each_theme(folder, name, draw)


def _panel(axes: Any, panel: Panel, span: tuple[float, float], theme: Theme, last: bool) -> None:
    ordered = sorted(panel.times.items(), key=lambda one: one[1].median)
    for place, (contestant, time) in enumerate(ordered):
        colour = COLOURS.get(contestant, OTHER)
        axes.plot([time.q1, time.q3], [place, place], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        axes.plot([time.q1, time.q3], [place, place], "|", color=colour, markersize=7)
        axes.plot(time.median, place, "o", color=colour, markersize=6)
        axes.text(1.015, place, panel.values(time), transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
    for place, reason in enumerate(panel.absent.values(), len(ordered)):
        text = textwrap.shorten(reason, 74, placeholder="…")
        axes.text(
            0.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=theme["faint"]
        )
    names = [contestant for contestant, _ in ordered] + list(panel.absent)
    axes.set_yticks(range(len(names)), [label(one) for one in names], fontsize=8.5)
    for tick, one in zip(axes.get_yticklabels(), names, strict=True):
        if one in panel.absent:
            tick.set_color(theme["faint"])
        elif one.startswith("mmgguf"):
            tick.set_weight("bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(*span)
    _seconds_axis(axes)
    axes.grid(axis="x")
    _bare(axes)
    if not last:
        axes.tick_params(axis="x", labelbottom=False)


def columns(
    folder: Path,
    name: str,
    title: str,
    note: str,
    axis: str,
    values: Mapping[str, Mapping[str, tuple[float, float, float]]],
) -> list[Path]:
    """A row for each kind, a point with quartiles for each contestant, and the medians in columns at the right.

    ``values[kind][contestant]`` is (first quartile, median, third quartile) of a rate.
    """
    contestants = list(dict.fromkeys(one for row in values.values() for one in row))
    n = len(values)
    head = _title_height(title, note) + 0.62
    height = head + 0.2 * n + 0.52
    wide = 0.082 * len(contestants)

    def draw(theme: Theme) -> Any:
        figure = plt.figure(figsize=(WIDTH, height))
        _title(figure, title, note, height, theme)
        axes = figure.add_axes((0.105, 1 - (head + 0.2 * n) / height, 0.863 - wide, 0.2 * n / height))
        for place, row in enumerate(values.values()):
            for column, contestant in enumerate(contestants):
                x = 1.0 + (0.02 + 0.082 * (column + 1)) / (0.863 - wide)
                if contestant not in row:
                    axes.text(
                        x,
                        place,
                        "–",
                        transform=axes.get_yaxis_transform(),
                        va="center",
                        ha="right",
                        color=theme["faint"],
                    )
                    continue
                q1, median, q3 = row[contestant]
                colour = COLOURS.get(contestant, OTHER)
                axes.plot([q1, q3], [place, place], color=colour, linewidth=2.0, alpha=0.5)
                axes.plot(median, place, "o", color=colour, markersize=4.6, markeredgewidth=0)
                axes.text(
                    x, place, number(median), transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=8
                )
        for column, contestant in enumerate(contestants):
            x = 1.0 + (0.02 + 0.082 * (column + 1)) / (0.863 - wide)
            words = textwrap.fill(label(contestant).replace("mmgguf, ", "mmgguf "), 9)
            axes.text(
                x, -0.75, words, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7.5,
                weight="bold", color=COLOURS.get(contestant, OTHER), linespacing=1.05,
            )  # fmt: skip
        axes.set_yticks(range(n), list(values), fontsize=8.5)
        axes.set_ylim(n - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="x", labelsize=8, length=0)
        axes.set_xlabel(axis, fontsize=8.5)
        axes.grid(axis="both", alpha=0.8)
        _bare(axes)
        return figure

    return _each_theme(folder, name, draw)


def growth(
    folder: Path, name: str, title: str, note: str, lines: Mapping[str, Sequence[tuple[int, Time]]]
) -> list[Path]:
    """Time by number of items, each with the line of linear growth from its first point."""
    head = _title_height(title, note)
    height = head + 3.3

    def draw(theme: Theme) -> Any:
        figure = plt.figure(figsize=(WIDTH, height))
        _title(figure, title, note, height, theme)
        axes = figure.add_axes((0.11, 0.42 / height, 0.60, 1 - (head + 0.55) / height))
        for colour, (what, points) in zip(("#1f77d0", "#e8710a", "#2a9d4a"), lines.items(), strict=False):
            xs = [times for times, _ in points]
            axes.plot(xs, [points[0][1].median * x / xs[0] for x in xs], "--", color=colour, alpha=0.6, linewidth=1)
            for x, time in points:
                axes.plot([x, x], [time.q1, time.q3], color=colour, linewidth=2.5, alpha=0.5)
            axes.plot(xs, [time.median for _, time in points], "o-", color=colour, markersize=5, linewidth=1.4)
            last = points[-1][1].median
            axes.text(xs[-1] * 1.12, last, f"{duration(last)}  {what}", color=colour, va="center", fontsize=8.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([1, 2, 4, 8], ["1×", "2×", "4×", "8×"])
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value, 1)))
        axes.set_xlabel("items in the file; dashed: as much longer as there are more of them", fontsize=8.5)
        axes.set_xlim(0.9, 8.6)
        axes.tick_params(labelsize=8.5, length=0)
        axes.grid()
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    return _each_theme(folder, name, draw)


def stacked(
    folder: Path, name: str, title: str, note: str, axis: str, bars: Mapping[str, Sequence[float]], limit: float
) -> list[Path]:
    """Bars from zero, each of several parts, with the sum beside it; and a line at what one copy takes."""
    head = _title_height(title, note)
    height = head + 0.42 * len(bars) + 0.75
    colours = {"mmgguf": "#1f77d0", "mmgguf, storage=read": "#5fb0ee"}

    def draw(theme: Theme) -> Any:
        figure = plt.figure(figsize=(WIDTH, height))
        _title(figure, title, note, height, theme)
        axes = figure.add_axes((0.25, 0.5 / height, 0.62, 0.42 * len(bars) / height))
        for place, (contestant, parts) in enumerate(bars.items()):
            left = 0.0
            for part in parts:
                axes.barh(
                    place,
                    part,
                    0.62,
                    left,
                    color=colours.get(contestant, OTHER),
                    edgecolor=theme["page"],
                    linewidth=1.5,
                )
                left += part
            axes.text(left, place, f"  {left:,.0f} MiB", va="center", fontsize=8.5)
        axes.axvline(limit, color=theme["ink"], linewidth=1, linestyle=":")
        axes.text(limit, -0.52, " one copy", fontsize=7.5, color=theme["faint"], va="bottom")
        axes.set_yticks(range(len(bars)), [label(one) for one in bars], fontsize=8.5)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlabel(axis, fontsize=8.5)
        axes.tick_params(axis="x", labelsize=8, length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="x")
        _bare(axes)
        return figure

    return _each_theme(folder, name, draw)
