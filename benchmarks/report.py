"""``python -m benchmarks.report RESULTS.json -o DIR``: a page of Markdown with plots from pytest-benchmark's JSON.

Times are the least of all rounds: on a machine that does other things too, these were disturbed least.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # after the backend is chosen

Bench = dict[str, Any]
Table = list[list[str]]

#: One colour per contestant on all plots: mmgguf stands out, whatever reads is grey, peers are warm.
COLOURS = {
    "mmgguf": "#0b6e99",
    "mmgguf, numba": "#0b6e99",
    "mmgguf, numpy": "#6bb3d1",
    "mmgguf, numba, all cores": "#073b52",
    "mmgguf, storage=read": "#6bb3d1",
    "unbuffered (preadv)": "#4d4d4d",
    "buffered (64 KiB)": "#808080",
    "np.fromfile": "#b3b3b3",
    "np.memmap": "#8c6bb1",
    "C library": "#d9772b",
    "gguf-py": "#c23b4b",
    "safetensors": "#e0b23c",
    "torch": "#7a9a3a",
    "tinygrad": "#a6761d",
    "mlx": "#666600",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json=FILE wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where README.md and plots go")
    options = parser.parse_args()
    write_report(json.loads(options.results.read_text("utf-8")), options.output)


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write ``README.md`` and its plots into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    benches: list[Bench] = results["benchmarks"]
    parts = [_front(results)]
    sections: list[Callable[[list[Bench], Path], str]] = [
        _claims,
        _opening,
        _headers,
        _access,
        _dequantizing,
        _memory,
        _scaling,
    ]
    parts += [text for section in sections if (text := section(benches, folder))]
    (folder / "README.md").write_text("\n".join(parts), "utf-8")


def _front(results: dict[str, Any]) -> str:
    machine = results["machine_info"]
    lines = [
        "# Benchmark results",
        "",
        f"Measured on {results['datetime'][:10]} with `pytest benchmarks` ({results.get('sizes', 'full')} sizes); this "
        "page was made by `python -m benchmarks.report`. Times are the least of all rounds.",
        "",
    ]
    return "\n".join(lines) + _table([[name, f"{value}"] for name, value in machine.items()], ["", ""])


# ---------------------------------------------------------------- parts of pages


def _table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _best(bench: Bench) -> float:
    return float(bench["stats"]["min"])


def _in_group(benches: list[Bench], start: str) -> dict[str, list[Bench]]:
    """The benchmarks of groups that begin with `start`, by the rest of the group's name."""
    groups: dict[str, list[Bench]] = {}
    for bench in benches:
        group = bench["group"] or ""
        if group.startswith(start):
            groups.setdefault(group.removeprefix(start), []).append(bench)
    return groups


def _bars(
    folder: Path,
    name: str,
    values: dict[str, dict[str, float]],
    label: str,
    *,
    log: bool = False,
    width: float = 9.0,
    marks: Callable[[float], str] | None = None,
) -> str:
    """A plot of grouped bars, ``values[category][contestant]``; its Markdown."""
    contestants = list(dict.fromkeys(one for row in values.values() for one in row))
    figure, axes = plt.subplots(figsize=(width, 3.6), layout="constrained")
    step = 0.84 / max(len(contestants), 1)
    for number, contestant in enumerate(contestants):
        places, heights = [], []
        for place, row in enumerate(values.values()):
            if contestant in row:
                places.append(place + (number - (len(contestants) - 1) / 2) * step)
                heights.append(row[contestant])
        bars = axes.bar(places, heights, step * 0.92, label=contestant, color=COLOURS.get(contestant))
        if marks is not None:
            axes.bar_label(bars, [marks(height) for height in heights], fontsize=6, rotation=90, padding=2)
    axes.set_xticks(range(len(values)), list(values), rotation=45 if len(values) > 8 else 0, fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    if log:
        axes.set_yscale("log")
    if marks is not None:
        axes.margins(y=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    figure.legend(fontsize=7, ncols=5, loc="outside upper left", frameon=False)
    return _save(figure, folder, name, label)


def _save(figure: Any, folder: Path, name: str, label: str) -> str:
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return f"![{label}]({name}.png)\n"


# ---------------------------------------------------------------- sections


def _claims(benches: list[Bench], folder: Path) -> str:
    rows = []
    for bench in benches:
        info = bench["extra_info"]
        if "claim" not in info:
            continue
        details = ""
        if "ratio_of_least" in info:
            details = f"fresh processes, medians; least: {info['ratio_of_least']:.3g}"
        elif "ratio_of_medians" in info:
            details = " / ".join(f"{info[key]:.3g}" for key in ("ratio_of_medians", "ratio_of_cpu") if key in info)
            if "gain_of_stores" in info:
                details += " (stores alone: {:.3g}, medians {:.3g})".format(*info["gain_of_stores"])
        elif "slowest" in info:
            details = info["slowest"]
        sign, number = info["bar"].split()
        bar = f"{'≤' if sign == '<=' else '≥'} {number}"
        rows.append([info["claim"], f"{info['measured']:.3g}", bar, "yes" if info["met"] else "**no**", details])
    if not rows:
        return ""
    return (
        "\n## Claims\n\nContestants took turns, in one process where no other is named. Last column: the ratio of the "
        "medians and that of processor time, as second opinions, or the slowest type.\n\n"
        + _table(rows, ["claim", "measured", "bar", "met", "medians / cpu"])
    )


def _opening(benches: list[Bench], folder: Path) -> str:
    groups = _in_group(benches, "open: ")
    if not groups:
        return ""
    values = {
        label: {bench["extra_info"]["peer"]: _best(bench) * 1e3 for bench in group} for label, group in groups.items()
    }
    text = "\n## Opening a file\n\nEverything up to the point where tensors can be asked for, page cache warm. "
    text += "safetensors and torch files hold no vocabulary.\n\n"
    text += _bars(folder, "open", values, "milliseconds to open (log)", log=True, marks=lambda value: f"{value:.3g}")
    strings = _in_group(benches, "open and list all strings: ")
    rows = [
        [label, bench["extra_info"]["peer"], _duration(_best(bench))]
        for label, group in strings.items()
        for bench in group
    ]
    if rows:
        text += "\nOpen and make every token and merge a string (the C library does while it opens):\n\n"
        text += _table(rows, ["file", "", "time"])
    return text


def _headers(benches: list[Bench], folder: Path) -> str:
    text = ""
    for label, group in _in_group(benches, "header: ").items():
        rows = []
        for bench in group:
            info = bench["extra_info"]
            rows.append([info["way"], _duration(_best(bench)), f"{info['system_calls']:,}"])
        nbytes = group[0]["extra_info"]["header_bytes"]
        text += f"\n### {label}: a header of {nbytes:,} bytes\n\n" + _table(rows, ["way", "time", "reads and seeks"])
    return text and "\n## Parsing headers: buffered, unbuffered, mapped\n" + text


def _access(benches: list[Bench], folder: Path) -> str:
    groups = _in_group(benches, "access: ")
    if not groups:
        return ""
    text = "\n## From the file to the bytes of tensors\n\nThe file is open already. *First touch* reads a byte of "
    text += "every page in memory that is new; *every byte* takes all of them through the processor.\n"
    by_model: dict[str, dict[str, list[Bench]]] = {}
    for name, group in groups.items():
        model, _, rest = name.partition(", ")
        by_model.setdefault(model, {})[rest] = group
    for number, (model, patterns) in enumerate(by_model.items()):
        values = {}
        for pattern, group in patterns.items():
            if pattern.startswith("all tensors") and "handed out" not in pattern:
                label = pattern.removeprefix("all tensors, ").replace(", ", "\n")
                values[label] = {
                    bench["extra_info"]["way"]: bench["extra_info"]["nbytes"] / _best(bench) / 1e9 for bench in group
                }
        text += f"\n### {model}\n\n"
        text += _bars(
            folder, f"access-{number}", values, "all tensors: GB per second (log)", log=True, marks=lambda v: f"{v:.3g}"
        )
        ways = list(dict.fromkeys(bench["extra_info"]["way"] for group in patterns.values() for bench in group))
        rows = []
        for pattern, group in patterns.items():
            found = {bench["extra_info"]["way"]: _duration(_best(bench)) for bench in group}
            rows.append([pattern, *(found.get(way, "") for way in ways)])
        text += "\n" + _table(rows, ["", *ways])
    return text


def _dequantizing(benches: list[Bench], folder: Path) -> str:
    values: dict[str, dict[str, float]] = {}
    for name, group in _in_group(benches, "dequantize: ").items():
        if " " not in name:
            values[name] = {
                bench["extra_info"]["contestant"]: bench["extra_info"]["written"] / _best(bench) / 1e9
                for bench in group
            }
    if not values:
        return ""
    text = "\n## Dequantizing\n\nGigabytes of float32 written per second; one thread unless said. 4096 × 4096 "
    text += "elements, output memory reused (except by gguf-py, which offers no way to).\n\n"
    text += _bars(folder, "dequantize", values, "GB of float32 per second (log)", log=True, width=14)
    contestants = list(dict.fromkeys(one for row in values.values() for one in row))
    rows = [[name, *(f"{row[one]:.2f}" if one in row else "" for one in contestants)] for name, row in values.items()]
    for name in ("mmgguf, numpy", "mmgguf, numba"):
        for peer in ("gguf-py", "C library"):
            ratios = [row[name] / row[peer] for row in values.values() if name in row and peer in row]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                text += f"\n{name} against {peer}: geometric mean {mean:.2f}, least {min(ratios):.2f}.\n"
    return text + "\n" + _table(rows, ["type", *contestants])


def _memory(benches: list[Bench], folder: Path) -> str:
    text = ""
    mib = 2**20
    for label, group in _in_group(benches, "memory: ").items():
        if "one process" in label:
            rows = []
            for bench in group:
                for step, found in bench["extra_info"]["steps"].items():
                    numbers = [f"{found[kind] / mib:.1f}" for kind in ("anonymous", "file", "share")]
                    rows.append([bench["extra_info"]["storage"], step, *numbers])
            size = group[0]["extra_info"]["nbytes"] / mib
            text += f"\n### {label}: {size:.0f} MiB of tensors, MiB added since the start\n\n"
            text += _table(rows, ["storage", "after", "anonymous", "file-backed", "proportional share"])
        elif "four processes" in label:
            values = {}
            rows = []
            for bench in group:
                info = bench["extra_info"]
                values[f"storage={info['storage']}"] = {
                    f"process {i}": one["share"] / mib for i, one in enumerate(info["each"], 1)
                }
                rows.append(
                    [
                        info["storage"],
                        *(f"{one['share'] / mib:.0f}" for one in info["each"]),
                        f"{info['together'] / mib:.0f}",
                    ]
                )
            text += f"\n### {label} with the same {group[0]['extra_info']['nbytes'] / mib:.0f} MiB: MiB each (PSS)\n\n"
            text += _bars(
                folder, "memory", values, "MiB of memory, proportional share", width=6, marks=lambda v: f"{v:.0f}"
            )
            text += "\n" + _table(rows, ["storage", "1", "2", "3", "4", "together"])
        else:
            added = group[0]["extra_info"]["steps"]["open"]["anonymous"] / mib
            text += f"\n### {label}\n\nOpening it added {added:.2f} MiB of anonymous memory.\n"
    return text and "\n## Memory\n" + text


def _scaling(benches: list[Bench], folder: Path) -> str:
    groups = _in_group(benches, "scaling: ")
    if not groups:
        return ""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    rows = []
    for group in groups.values():
        group = sorted(group, key=lambda bench: bench["extra_info"]["count"])
        info = [bench["extra_info"] for bench in group]
        times = [one["times"] for one in info]
        axes.plot(times, [_best(bench) * 1e3 for bench in group], marker="o", label=info[0]["what"])
        rows.append([f"{info[0]['what']} (1× = {info[0]['count']:,})", *(_duration(_best(bench)) for bench in group)])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1×", "2×", "4×", "8×"])
    axes.set_ylabel("milliseconds to open (log)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    text = "\n## Scaling\n\nOpening files of 1 to 8 times as many items.\n\n"
    text += _save(figure, folder, "scaling", "milliseconds to open, by number of items")
    return text + "\n" + _table(rows, ["", "1×", "2×", "4×", "8×"])


if __name__ == "__main__":
    main()
