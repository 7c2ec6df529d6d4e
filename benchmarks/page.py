"""The page of a run: findings, tables and charts in Markdown, every number of them from the run's JSON.

Making the text needs no matplotlib, so that a test can make it again and compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from . import claims
from .results import Panel, Results, Time
from .words import duration, label, mebibytes, number, rate, short_rate, size

__all__ = ["Draw", "page", "table"]


class Draw(Protocol):
    """Draws the chart of that kind, a function of `charts`, under that name."""

    def __call__(self, kind: str, name: str, title: str, note: str, **data: Any) -> Any: ...


def page(results: Results, draw: Draw | None = None) -> str:
    """The page in Markdown; `draw` makes its charts."""
    parts = [_front(results), _claims(results)]
    parts += [section(results, draw or _nothing) for section in SECTIONS]
    return "\n".join(part for part in parts if part)


def _nothing(kind: str, name: str, title: str, note: str, **data: Any) -> None:
    pass


# ---------------------------------------------------------------- parts of pages


def table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def picture(name: str, title: str) -> str:
    """A chart for light pages and for dark ones."""
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{name}-dark.svg">\n'
        f'<img alt="{title}" src="{name}.svg" width="100%">\n</picture>\n'
    )


def cell(time: Time | None, reason: str = "") -> str:
    """A median with its quartiles."""
    if time is None:
        return reason
    if time.rounds < 2:
        return f"{duration(time.median)} (once)"
    return f"{duration(time.median)} ({duration(time.q1)} to {duration(time.q3)})"


def absences(results: Results, cases: Iterable[str]) -> str:
    """Who could not take part anywhere, and why."""
    reasons: dict[str, None] = {}
    for case in cases:
        for contestant, reason in results.absent(case).items():
            reasons.setdefault(f"* {label(contestant)}: {reason}")
    return "\nNot taking part:\n\n" + "\n".join(reasons) + "\n" if reasons else ""


def comparison(results: Results, case: str, others: Sequence[str] = ("C library", "gguf-py", "safetensors")) -> str:
    """``12 times as fast as ...`` for those that took part."""
    times = results.times(case)
    found = [(number(results.ratio(case, other, "mmgguf")), label(other)) for other in others if other in times]
    return ", ".join(f"{'' if ratio == '1.0' else f'{ratio} times '}as fast as {other}" for ratio, other in found)


# ---------------------------------------------------------------- sections


def _front(results: Results) -> str:
    commit = str(results.data["commit_info"].get("id") or "unknown")[:10]
    dirty = ", changed" if results.data["commit_info"].get("dirty") else ""
    rows = [[name, f"{value}"] for name, value in {**results.machine, "commit": commit + dirty}.items()]
    text = (
        "# Benchmark results\n\n"
        f"Measured on {results.date} by `python -m benchmarks.report`, which made this page from one run, "
        "[results.json](results.json). Contestants of a case took turns; times are medians, in brackets with the first "
        "and the third quartile.\n"
    )
    for sentence in results.shortcomings:
        text += f"\n**{sentence}**\n"
    return text + "\n" + table(rows, ["", ""])


def _claims(results: Results) -> str:
    found = claims.rows(results)
    if not found:
        return ""
    missed = [claim for claim, _, met in found if not met]
    text = f"## Claims\n\n{len(found) - len(missed)} of {len(found)} bars are met"
    text += (
        f", {len(missed)} missed. Ratios are those of medians.\n\n" if missed else ". Ratios are those of medians.\n\n"
    )
    rows = [
        [
            claim.text,
            value,
            claim.bar.replace("<= ", "≤\u00a0").replace(">= ", "≥\u00a0"),
            "yes" if met else "**no**",
            claim.detail(results),
        ]
        for claim, value, met in found
    ]
    return text + table(rows, ["claim", "measured", "bar", "met", "behind it"])


JOBS: Final = ("see the metadata", "get one tensor", "get all tensors as float32", "start computing")


def jobs_table(results: Results) -> str:
    """What to pick for each of the four jobs, a row for each contestant."""
    cases = {job: next((c for c in results.cases("jobs") if c.endswith(f", {job}")), "") for job in JOBS}
    contestants = list(
        dict.fromkeys(one for case in cases.values() for one in [*results.times(case), *results.absent(case)])
    )
    rows = []
    for one in contestants:
        times = [results.times(case).get(one) for case in cases.values()]
        if not any(times):
            continue
        row = [label(one)]
        for case, time in zip(cases.values(), times, strict=True):
            best = min((t.median for t in results.times(case).values()), default=0.0)
            text = "–" if time is None else duration(time.median)
            row.append(f"**{text}**" if time is not None and time.median == best else text)
        rows.append(row)
    return table(rows, ["", *JOBS]) if rows else ""


def _jobs(results: Results, draw: Draw) -> str:
    cases = results.cases("jobs")
    if not cases:
        return ""
    title = results.facts(cases[0])["title"]
    everything = next((case for case in cases if case.endswith(JOBS[2])), "")
    others = ("gguf-py", "diffusers", "safetensors (bf16)")
    finding = f"{title.partition(':')[0]}: every tensor as float32 with mmgguf in "
    if "mmgguf" in results.times(everything):
        finding += f"{duration(results.median(everything, 'mmgguf'))}, {comparison(results, everything, others)}"
    note = "Seconds from the path, page cache warm, libraries imported; medians, with quartiles as whiskers."
    panels = [
        Panel(case.partition(", ")[2].capitalize(), results.times(case), absent=results.absent(case)) for case in cases
    ]
    draw("dots", "jobs", finding, note, panels=panels)
    text = "## What to pick for a job\n\n"
    text += f"{title}. From the path each time, with the libraries imported and the page cache warm. Whoever takes "
    text += "safetensors or `.npy` has converted the weights once"
    facts = results.facts(everything)
    if "file_nbytes" in facts:
        half, whole = (number(facts["nbytes"] / n / facts["file_nbytes"]) for n in (2, 1))
        text += f", to {half} and {whole} times the bytes of this file"
    text += ". "
    text += (
        "llama.cpp starts in a process of its own, until its server has answered with one token; the others until they "
    )
    text += "have that token's logits. A dash: it does not do that.\n\n"
    text += jobs_table(results) + "\n" + picture("jobs", finding)
    for case in results.cases("load"):
        for one, time in results.times(case).items():
            text += f"\nLoading alone, until it is ready: {label(one)} {cell(time)}.\n"
    return text


def _opening(results: Results, draw: Draw) -> str:
    cases = [case for case in results.cases("open") if results.times(case)]
    if not cases:
        return ""
    first = cases[0]
    title = results.facts(first)["title"]
    finding = f"{title.partition(':')[0]}: opened in {duration(results.median(first, 'mmgguf'))}, "
    finding += comparison(results, first)
    note = (
        "Until tensors can be asked for, page cache warm; medians, with quartiles as whiskers. "
        "safetensors and torch files hold the tensors without the vocabulary."
    )
    main = [case for case in cases if len(results.times(case)) > 2] or cases
    panels = [
        Panel(
            results.facts(case)["title"],
            results.times(case),
            absent={one: why for one, why in results.absent(case).items() if "installed" not in why},
        )
        for case in main
    ]
    draw("dots", "open", finding, note, panels=panels)
    text = "## Opening a file\n\nEverything up to the point where tensors can be asked for, page cache warm.\n\n"
    text += picture("open", finding)
    rest = [case for case in cases if case not in main]
    if rest:
        rows = [
            [results.facts(case)["title"], *(cell(results.times(case).get(one)) for one in ("mmgguf", "C library"))]
            for case in rest
        ]
        text += "\n" + table(rows, ["", "mmgguf", label("C library")])
    strings = results.cases("strings")
    if strings:
        text += (
            "\nEvery token and merge as a string, of an open file; ggml's C library makes them while it opens, so that "
        )
        text += "its time is that of opening:\n\n"
        who = ("mmgguf", "C library", "gguf-py")
        rows = [
            [results.facts(case)["title"], *(cell(results.times(case).get(one)) for one in who)] for case in strings
        ]
        text += table(rows, ["", *map(label, who)])
    return text + absences(results, cases)


WAYS: Final = ("first touch, warm", "every byte, warm", "first touch, cold")


def _access(results: Results, draw: Draw) -> str:
    cases = results.cases("access")
    if not cases:
        return ""
    text = "## From the file to the bytes of tensors\n\nThe file is open already. *First touch* reads a byte of every "
    text += "page, in memory that is new; *every byte* takes all of them through the processor, and only there "
    text += "gigabytes per second mean something. *Cold*: the file was dropped from the page cache.\n"
    models = dict.fromkeys(case.partition("/")[2].partition(", ")[0] for case in cases)
    for number_, model in enumerate(models):
        mine = [case for case in cases if case.startswith(f"access/{model}, ")]
        title = results.facts(mine[0])["title"]
        panels, nbytes = [], results.facts(mine[0])["nbytes"]
        for way in WAYS:
            case = f"access/{model}, all tensors, {way}"
            if case in mine:
                values: Callable[[Time], str] = lambda time: duration(time.median)  # noqa: E731
                if way.startswith("every byte"):
                    nbytes = results.facts(case)["nbytes"]
                    values = lambda time, nbytes=nbytes: f"{duration(time.median)}, {rate(nbytes, time.median)}"  # noqa: E731
                panels.append(Panel(f"All tensors, {way}", results.times(case), values))
        case = f"access/{model}, all tensors, every byte, warm"
        if case not in mine:
            continue
        finding = f"Mapped, every byte of {size(nbytes)} goes through the processor in "
        finding += f"{duration(results.median(case, 'mmgguf'))}; read, in "
        finding += duration(results.median(case, "unbuffered (preadv)"))
        note = f"{title}, open already. Medians, with quartiles as whiskers."
        name = f"access-{number_}" if number_ else "access"
        draw("dots", name, finding, note, panels=panels)
        text += f"\n### {title}\n\n" + picture(name, finding)
        ways = list(dict.fromkeys(one for case in mine for one in results.times(case)))
        rows = [[label(one), *(cell(results.times(case).get(one)) for case in mine)] for one in ways]
        text += "\n" + table(rows, ["", *(case.partition(", ")[2] for case in mine)])
    return text + absences(results, cases)


#: Room, chart, who is compared with whom, and how it was measured.
DEQUANTIZED: Final = (
    (
        "dequantize",
        "dequantize",
        "mmgguf, numba",
        "C library",
        "One thread unless said; output memory reused, except by gguf-py, which offers no way to.",
    ),
    (
        "dequantize in torch",
        "dequantize-torch",
        "mmgguf.torch",
        "diffusers",
        "New float32 tensors of torch on the CPU, one thread.",
    ),
)


def _dequantizing(results: Results, draw: Draw) -> str:
    text = ""
    for room, name, one, other, what in DEQUANTIZED:
        cases = results.cases(room)
        if not cases:
            continue
        rates = {}
        for case in cases:
            written = results.facts(case)["written"] / 1e9
            rates[case.partition("/")[2]] = {
                contestant: (written / time.q3, written / time.median, written / time.q1)
                for contestant, time in results.times(case).items()
            }
        rates = dict(sorted(rates.items(), key=lambda row: row[1].get(other, (0, 0, 0))[1]))
        finding = _finding_of_types(results, rates, one, other, room)
        note = f"{what} Medians, with quartiles as whiskers; sorted by {label(other)}. –: does not know that type."
        draw("columns", name, finding, note, axis="GB of float32 written per second", values=rates)
        text += "\n" + picture(name, finding)
        pairs = [
            (a, b)
            for a in next(iter(rates.values()))
            for b in ("gguf-py", "C library", "diffusers")
            if a.startswith("mmgguf") and "cores" not in a
        ]
        for a, b in pairs:
            try:
                ratios = claims.dequantize_ratios(results, a, b, room)
            except KeyError:
                continue
            slowest = min(ratios, key=lambda name: ratios[name])
            mean = number(statistics.geometric_mean(ratios.values()), 3)
            text += f"\n* {a} against {label(b)}: {mean} times as fast (geometric mean), {slowest} least: "
            text += number(ratios[slowest], 3)
        text += "\n"
    threads = results.cases("threads")
    if threads:
        rows = [
            [
                case.partition("/")[2],
                *(cell(results.times(case).get(one)) for one in ("one thread", "two threads")),
                number(results.ratio(case, "one thread", "two threads")),
                number(results.ratio(case, "stores, one", "stores, two")),
            ]
            for case in threads
        ]
        text += "\nTwo threads against one, and what two threads gain that only fill the same memory:\n\n"
        text += table(rows, ["type", "one thread", "two threads", "times as fast", "filling memory"])
    return text and "## Dequantizing\n" + text


def _memory(results: Results, draw: Draw) -> str:
    text = ""
    for case in results.cases("memory"):
        facts = results.facts(case)
        if case.endswith("four processes"):
            bars = {
                name: [share / 2**20 for share in facts[storage]]
                for name, storage in (("mmgguf", "mmap"), ("mmgguf, storage=read", "read"))
                if storage in facts
            }
            sums = {name: sum(shares) for name, shares in bars.items()}
            copies = {name: number(value * 2**20 / facts["nbytes"], 1) for name, value in sums.items()}
            finding = "Four processes share one copy of mapped weights"
            if "mmgguf, storage=read" in sums:
                finding += f"; read, they have {copies['mmgguf, storage=read']} copies"
            note = f"{facts['title']}. Each part is the share of a process (PSS)."
            draw(
                "stacked",
                "memory",
                finding,
                note,
                axis="MiB of memory, all four together",
                bars=bars,
                limit=facts["nbytes"] / 2**20,
            )
            text += "\n" + picture("memory", finding)
        elif case.endswith("one process"):
            rows = [
                [
                    storage,
                    step,
                    *(f"{number(max(found[kind], 0) / 2**20, 3)}" for kind in ("anonymous", "file", "share")),
                ]
                for storage in ("mmap", "read")
                for step, found in facts.get(storage, {}).items()
            ]
            text += f"\nOne process with {mebibytes(facts['nbytes'])} of tensors, MiB added since the start:\n\n"
            text += table(rows, ["storage", "after", "anonymous", "file-backed", "proportional share"])
        else:
            added = mebibytes(facts["anonymous"])
            text += f"\nOpening a file of {facts['nbytes'] >> 30} GiB added {added} of anonymous memory.\n"
    return text and "## Memory\n" + text


def _scaling(results: Results, draw: Draw) -> str:
    cases = results.cases("scaling")
    if not cases:
        return ""
    lines, rows, growths = {}, [], []
    for case in cases:
        what = case.partition("/")[2]
        points = [(int(name[:-1]), time) for name, time in results.times(case).items()]
        lines[what] = points
        growths.append(points[-1][1].median / points[0][1].median)
        counts = results.facts(case)["counts"]
        rows.append([f"{what} (1× = {counts[0]:,})", *(cell(time) for _, time in points)])
    span = f"8 times the items take {number(min(growths))} to {number(max(growths))} times as long"
    finding = f"Opening grows no faster than the file: {span}" if max(growths) <= 8 else f"Opening {span}"
    draw("growth", "scaling", finding, "Medians, with quartiles as whiskers; both axes logarithmic.", lines=lines)
    return "## Scaling\n\n" + picture("scaling", finding) + "\n" + table(rows, ["", "1×", "2×", "4×", "8×"])


def _headers(results: Results, draw: Draw) -> str:
    text = ""
    for case in results.cases("header"):
        facts = results.facts(case)
        rows = [[way, cell(time), f"{facts['system_calls'][way]:,}"] for way, time in results.times(case).items()]
        text += f"\n{facts['title']}, a header of {facts['header_bytes']:,} bytes:\n\n" + table(
            rows, ["way", "time", "reads and seeks"]
        )
    return text and "## Parsing headers: buffered, unbuffered, mapped\n" + text


#: Rooms that fit into one table of times.
REST: Final = {
    "load_file": "load_file, all tensors as float32",
    "rows": "1,000 random rows",
    "sources": "by a URL",
    "estimate": "estimate the memory",
    "statistics": "statistics",
    "inspect": "inspect",
    "edit": "edit",
    "report": "the report",
    "split and merge": "split and merge",
    "contents": "every contents() of gguf's reader",
    "strings first": "list all strings, first in a process",
    "import": "import",
    "get": "get every tensor by name",
    "dequantize to": "dequantize into other dtypes",
    "dequantize rows": "dequantize rows",
}


def _rest(results: Results, draw: Draw) -> str:
    rows, cases = [], []
    for room, what in REST.items():
        for case in results.cases(room):
            cases.append(case)
            name = results.facts(case).get("title", case.partition("/")[2])
            for one, time in results.times(case).items():
                extra = ""
                if room == "statistics":
                    values = short_rate(results.facts(case)["values_nbytes"], time.median)
                    extra = f"{values} GB of float32 values per second"
                rows.append([f"{what}: {name}", label(one), cell(time), extra])
    if not rows:
        return ""
    return (
        "## The rest\n\n"
        + table(rows, ["", "", "time", ""])
        + absences(results, [c for c in cases if c.startswith("sources")])
    )


SECTIONS: Final = (_jobs, _opening, _access, _dequantizing, _memory, _scaling, _headers, _rest)


def _finding_of_types(
    results: Results, rates: dict[str, dict[str, tuple[float, float, float]]], one: str, other: str, room: str
) -> str:
    ours = [row[one][1] for row in rates.values() if one in row]
    theirs = [row[other][1] for row in rates.values() if other in row]
    if not ours:
        return "Dequantizing, by type"
    text = f"{one} writes {number(min(ours))} to {number(max(ours))} GB of float32 per second, whatever the type"
    if theirs:
        text += f"; {label(other)} {number(min(theirs))} to {number(max(theirs))}"
    return text
