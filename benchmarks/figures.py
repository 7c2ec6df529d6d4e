"""Figures in the README and in the documentation, made from the tracked run and checked against it.

A figure in a sentence stands between comments that name it; a table, between comments on lines of their own::

    opens in <!-- =time:open/vocabulary:mmgguf -->4.6 ms<!-- = -->

    <!-- figures: headlines -->
    ...
    <!-- /figures -->

Keys: ``time:CASE:CONTESTANT``, ``ratio:CASE:ONE:OTHER`` (how many times as long ONE takes), ``claim:ID``, ``run``
(its date and processor).  `BLOCKS` has the names of blocks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import claims, page
from .results import Results
from .words import duration, number

__all__ = ["BLOCKS", "figure", "loose_figures", "pages", "render", "stale", "update"]

ROOT: Final = Path(__file__).parents[1]
RESULTS_PAGE: Final = ROOT / "benchmarks" / "results" / "README.md"

INLINE: Final = re.compile(r"(<!-- =([^>]+?) -->)(.*?)(<!-- = -->)", re.DOTALL)
BLOCK: Final = re.compile(r"(<!-- figures: ([\w -]+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def figure(results: Results, key: str) -> str:
    """The text of a figure.

    Raises
    ------
    KeyError
        The run has no such figure.
    """
    kind, *rest = key.split(":")
    if kind == "time" and len(rest) == 2:
        return duration(results.median(*rest))
    if kind == "ratio" and len(rest) == 3:
        return number(results.ratio(*rest))
    if kind == "claim" and len(rest) == 1:
        return next(value for claim, value, _ in claims.rows(results, (rest[0],)))
    if key == "run":
        return f"{results.date}, {results.machine['processor']}"
    raise KeyError(f"no kind of figure is called {key!r}")


def _headlines(results: Results) -> str:
    rows = [
        [claim.text, value, "" if met else "missed: " + claim.bar]
        for claim, value, met in claims.rows(results, claims.HEADLINES)
    ]
    missed = any(row[2] for row in rows)
    table = page.table([row if missed else row[:2] for row in rows], ["claim", "measured", "bar"][: 3 if missed else 2])
    text = (
        f"Medians of one run ({figure(results, 'run')}). The [results](benchmarks/results/README.md) have the others, "
    )
    text += " ".join(["those that miss their bar among them, with charts.", *results.shortcomings])
    return table + "\n" + textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False) + "\n"


def _missed(results: Results) -> str:
    rows = [[claim.text, value, claim.bar] for claim, value, met in claims.rows(results) if not met]
    return page.table(rows, ["missed", "measured", "bar"]) if rows else "No bar is missed.\n"


def _compat(results: Results) -> str:
    """gguf's reader, and mmgguf.compat in its place."""
    names = {
        "open, with `tensors`": ("open/smollm2", "gguf-py", "mmgguf.compat"),
        "`contents()` of every field": ("contents/smollm2", "gguf-py", "mmgguf.compat"),
        "the Llama 3 vocabulary (408 k strings), open": ("open/vocabulary", "gguf-py", "mmgguf.compat"),
        "transformers, `from_pretrained(gguf_file=…)` and a first token": (
            "jobs/smollm2, start computing",
            "transformers",
            "transformers, mmgguf.compat",
        ),
    }
    rows = []
    for what, (case, one, other) in names.items():
        if {one, other} <= set(results.times(case)):
            times = [duration(results.median(case, name)) for name in (one, other)]
            rows.append([what, *times, number(results.ratio(case, one, other))])
    return page.table(
        rows, ["SmolLM2-135M (98 MB, 98 k strings, 272 tensors)", "gguf", "mmgguf.compat", "times faster"]
    )


def _torch(results: Results) -> str:
    """`mmgguf.torch.dequantize` beside diffusers' functions."""
    rows = []
    for case in results.cases("dequantize in torch"):
        if {"diffusers", "mmgguf.torch"} <= set(results.times(case)):
            times = [duration(results.median(case, name)) for name in ("diffusers", "mmgguf.torch")]
            rows.append([case.partition("/")[2], *times, number(results.ratio(case, "diffusers", "mmgguf.torch"))])
    return page.table(rows, ["type", "diffusers", "mmgguf.torch", "times as fast"])


#: What stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``.
BLOCKS: Final[dict[str, Callable[[Results], str]]] = {
    "headlines": _headlines,
    "missed": _missed,
    "jobs": page.jobs_table,
    "gguf-reader": _compat,
    "torch": _torch,
}


def render(text: str, results: Results) -> str:
    """A page with the figures of a run in it."""
    text = BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]](results)}{m[4]}", text)
    return INLINE.sub(lambda m: f"{m[1]}{figure(results, m[2])}{m[4]}", text)


def stale(results: Results) -> list[Path]:
    """The pages whose figures are not those of the run, the page of results among them."""
    found = [path for path in pages() if (text := path.read_text("utf-8")) != render(text, results)]
    if not RESULTS_PAGE.exists() or RESULTS_PAGE.read_text("utf-8") != page.page(results):
        found.append(RESULTS_PAGE)
    return found


def update(results: Results) -> list[Path]:
    """Write the figures of a run into the README and the documentation; the files that changed."""
    # All of them before the first is written: a figure may be missing.
    new = {path: render(path.read_text("utf-8"), results) for path in pages()}
    changed = [path for path, text in new.items() if path.read_text("utf-8") != text]
    for path in changed:
        path.write_text(new[path], "utf-8")
    return changed


#: A number with a unit of time or of speed, or a factor: what only a measurement can know.
FIGURE: Final = re.compile(
    r"(?<![\w.-])\d[\d.,]*(?:\s*(?:to|–|-)\s*\d[\d.,]*)?\s?"
    r"(?:ns|µs|us|ms|s|GB/s|MB/s|GiB/s|times (?:as (?:fast|long|much|slow)|faster|slower))(?![\w/])"
)
#: A paragraph that says when and on what it was measured needs no key: it is not of the tracked run.
DATED: Final = re.compile(r"20\d\d-\d\d-\d\d")


def loose_figures(text: str) -> list[str]:
    """Measured figures of a page that come neither from the run nor with the date on which they were measured."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = BLOCK.sub("", text)
    text = re.sub(r"`[^`\n]*`", "", INLINE.sub("", text))
    found, dated = [], False
    for paragraph in re.split(r"\n\s*\n", text):
        # A table has the date of the paragraph above it.
        dated = bool(DATED.search(paragraph)) or (dated and paragraph.startswith("|"))
        if not dated and "<!-- not measured -->" not in paragraph:
            found += FIGURE.findall(paragraph)
    return found
