"""The figures in the README and in the documentation are those of the tracked run, and the report makes them.

On a made-up run: no test here measures anything.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import claims, figures, page, report, results, turns, words

ROOT = Path(__file__).parents[1]


def bench(case: str, contestant: str, *seconds: float, module: str = "open") -> dict[str, Any]:
    return results.entry(case, contestant, turns.summary(list(seconds)), module)


def made_up(**changes: Any) -> dict[str, Any]:
    """A run with something in every room."""
    mib = {"anonymous": 2 << 20, "file": 9 << 20, "share": 7 << 20}
    access = "access/llama, all tensors, "
    one_of_each = {
        "open/vocabulary": {"mmgguf": 0.004, "C library": 0.032, "gguf-py": 8.9, "mmgguf.compat": 0.008},
        "open/plain": {"mmgguf": 0.0003, "safetensors": 0.0002, "C library": 0.0002},
        "open/ggml-vocab-llama-bpe": {"mmgguf": 0.004, "C library": 0.04},
        "strings/vocabulary": {"mmgguf": 0.05, "C library": 0.03, "gguf-py": 3.0},
        "header/vocabulary": {"seeker, 64 KiB": 0.004},
        access + "first touch, warm": {"mmgguf": 0.01, "unbuffered (preadv)": 0.35},
        access + "every byte, warm": {"mmgguf": 0.05, "unbuffered (preadv)": 0.25},
        access + "first touch, cold": {"mmgguf": 0.6, "unbuffered (preadv)": 0.62},
        "dequantize/Q4_K": {"mmgguf, numba": 0.01, "mmgguf, numpy": 0.03, "C library": 0.02, "gguf-py": 0.2},
        "dequantize/Q8_0": {"mmgguf, numba": 0.01, "mmgguf, numpy": 0.03},
        "dequantize in torch/Q4_K": {"mmgguf.torch": 0.01, "diffusers": 0.2},
        "threads/Q4_K": {"one thread": 0.01, "two threads": 0.008, "stores, one": 0.01, "stores, two": 0.009},
        "scaling/tensors": {"1×": 0.001, "2×": 0.002, "4×": 0.0035, "8×": 0.006},
        "jobs/smollm2, see the metadata": {"mmgguf": 0.001, "gguf-py": 1.2},
        "jobs/smollm2, get all tensors as float32": {"mmgguf": 0.1, "gguf-py": 1.2},
        "estimate/SmolLM2": {"mmgguf": 0.0006},
        "statistics/Q4_K": {"two threads": 0.2},
    }
    facts: dict[str, dict[str, Any]] = {
        "header/vocabulary": {"system_calls": {"seeker, 64 KiB": 12345}, "header_bytes": 7_800_000},
        "statistics/Q4_K": {"values_nbytes": 1 << 28},
        "scaling/tensors": {"counts": [1000, 2000, 4000, 8000]},
        "memory/llama, one process": {"nbytes": 9 << 20, "mmap": {"touch": mib}},
        "memory/llama, four processes": {"nbytes": 7 << 20, "mmap": [2 << 20] * 4, "read": [7 << 20] * 4},
        "memory/huge file": {"nbytes": 40 << 30, "anonymous": 98304},
    }
    cases = {}
    for case in [*one_of_each, *facts]:
        known = {"title": f"the title of {case}: 1 GB", "nbytes": 10**9, "written": 10**8, "tensors": 1000}
        absent = {"torch": "cannot read it"} if case == "open/vocabulary" else {}
        cases[case] = {"module": "open", "facts": known | facts.get(case, {}), "absent": absent}
    run = results.empty(
        datetime="2026-01-02",
        commit_info={"id": "c0ffee", "dirty": False},
        machine_info={"processor": "abacus, 10 beads"},
        sizes="full",
        files=[],
        all_modules=["open"],
    )
    run["modules"].append("open")
    run["cases"].update(cases)
    for case, times in one_of_each.items():
        run["benchmarks"] += [bench(case, who, 0.9 * median, median, 1.3 * median) for who, median in times.items()]
    return run | changes


# ---------------------------------------------------------------- the pages of this repository


def test_the_pages_show_the_tracked_run() -> None:
    """`python -m benchmarks.report --from benchmarks/results/results.json --update` makes them new."""
    assert figures.stale(results.Results.load()) == []


@pytest.mark.parametrize("path", figures.pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_figure_is_written_by_hand(path: Path) -> None:
    """Each comes from the run (see `benchmarks.figures`), or its paragraph says when it was measured, and on what."""
    assert figures.loose_figures(path.read_text("utf-8")) == []


def test_the_readme_quotes_its_headlines() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.partition("<!-- figures: headlines -->\n")[2].partition("<!-- /figures -->")[0]
    assert table.count("\n| ") >= 1
    assert set(claims.HEADLINES) <= {claim.id for claim in claims.CLAIMS}


def test_the_tracked_run_is_read_by_pytest_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    # It reads a path once, so that the same twice would be compared with nothing.
    paths = [str(results.TRACKED), str(tmp_path / "other.json")]
    shutil.copy(*paths)
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *paths, "--between=median", "-k", "open"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "open/vocabulary: mmgguf" in done.stdout


# ---------------------------------------------------------------- figures


def test_figures() -> None:
    run = results.Results(made_up())
    text = "opens in <!-- =time:open/vocabulary:mmgguf -->1 s<!-- = -->,\n"
    text += "<!-- figures: missed -->\nold\n<!-- /figures -->\n"
    new = figures.render(text, run)
    assert "<!-- =time:open/vocabulary:mmgguf -->4.0 ms<!-- = -->" in new
    assert "| open 291 tensors without a vocabulary: time against safetensors | 1.50 | <= 1.0 |" in new
    assert figures.render(new, run) == new
    assert figures.figure(run, "ratio:open/vocabulary:C library:mmgguf") == "8.0"
    assert figures.figure(run, "claim:open-vocabulary") == "0.125"
    for key in ("time:open/nothing:mmgguf", "time:open/vocabulary:nobody", "nothing"):
        with pytest.raises(KeyError):
            figures.figure(run, key)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("opens in 37 µs", ["37 µs"]),
        ("7.5 times as fast, at 1.2 GB/s", ["7.5 times as fast", "1.2 GB/s"]),
        ("takes 0.4 to 0.7 ms", ["0.4 to 0.7 ms"]),
        ("<!-- =run -->takes 5 s<!-- = -->", []),
        ("took 0.7 s (2026-11-24, AMD EPYC)", []),
        ("```\n5 s\n```", []),
        ("On 2026-11-24:\n\n| 5 s |\n\n7 s", ["7 s"]),
        ("Q4_K of `timeout=5 s`, 27 types, 98 MB, 8 times as many", []),
    ],
)
def test_loose_figures(text: str, found: list[str]) -> None:
    assert figures.loose_figures(text) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.85, "8.8 s"),
        (0.00996, "10 ms"),
        (0.9999, "1.0 s"),
        (4.6e-3, "4.6 ms"),
        (3.7e-5, "37 µs"),
        (1.3e-7, "130 ns"),
        (124, "120 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_numbers() -> None:
    assert [words.number(x) for x in (0.127, 8.64, 35.3, 11321.0, 9.96, 0.0)] == [
        "0.13",
        "8.6",
        "35",
        "11,000",
        "10",
        "0",
    ]


# ---------------------------------------------------------------- the report


def test_page() -> None:
    text = page.page(results.Results(made_up()))
    for expected in (
        "Measured on 2026-01-02",
        "| processor | abacus, 10 beads |",
        "| open a vocabulary as large as Llama 3's: time against ggml's C library | 0.125 | ≤\u00a00.25 | yes |",
        "| open 291 tensors without a vocabulary: time against safetensors | 1.50 | ≤\u00a01.0 | **no** |",
        "* torch: cannot read it",
        "| seeker, 64 KiB | 4.0 ms (3.8 ms to 4.6 ms) | 12,345 |",
        "mmgguf, numba against ggml's C library: 2.00 times as fast (geometric mean), Q4_K least: 2.00",
        "| mmap | touch | 2.00 | 9.00 | 7.00 |",
        "| tensors (1× = 1,000) | 1.0 ms",
        "Opening a file of 40 GiB added 0.0938 MiB",
        "8 times the items take 6.0 to 6.0 times as long",
    ):
        assert expected in text, expected
    assert "**" not in text.partition("## Claims")[0]


def test_a_partial_run_says_so() -> None:
    for changes, expected in (
        ({"files": ["mine"]}, "only files that were given: mine"),
        ({"sizes": "small"}, "files were small"),
        ({"failed": ["open: open[many]"]}, "These failed: open: open[many]"),
        ({"load": {"a": 1.0, "b": 7.0, "c": 9.0}}, "kept the machine busy (7 for each processor)"),
        ({"all_modules": ["access", "open"]}, "left out: access"),
    ):
        run = results.Results(made_up(**changes))
        assert not run.complete
        assert expected in page.page(run)


@pytest.mark.slow
def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmgguf[bench]'")
    report.write(results.Results(made_up()), tmp_path)
    text = (tmp_path / "README.md").read_text("utf-8")
    names = {"jobs", "open", "access", "dequantize", "dequantize-torch", "memory", "scaling"}
    expected = {f"{name}{dark}.{kind}" for name in names for dark in ("", "-dark") for kind in ("svg", "png")}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"README.md", "results.json"}
    assert all(f'src="{name}.svg"' in text and f'srcset="{name}-dark.svg"' in text for name in names)
    again = results.Results.load(tmp_path / "results.json")
    assert again.data == made_up()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nothing.gguf"], "nothing.gguf: No such file or directory"),
        (["--file", __file__], "test_measurements.py"),
        (["nothing"], "no module is called nothing"),
        (["--update", "--small"], "full size"),
        (["--from", "nothing.json"], "nothing.json: no such file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert report.main([*arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_report_leaves_tracked_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked, quoting = tmp_path / "tracked" / "results.json", tmp_path / "page.md"
    tracked.parent.mkdir()
    tracked.write_text("old")
    quoting.write_text("takes <!-- =time:inspect/x:mmgguf -->9 s<!-- = -->")
    monkeypatch.setattr(report, "TRACKED", tracked)
    monkeypatch.setattr(figures, "pages", lambda: [quoting])
    run = made_up()  # without charts, and without what the page quotes
    run["benchmarks"] = [one for one in run["benchmarks"] if one["group"].startswith("estimate")]
    run["cases"] = {id_: case for id_, case in run["cases"].items() if id_.startswith("estimate")}
    results.Results(run).save(tmp_path / "run.json")
    arguments = ["--from", str(tmp_path / "run.json"), "-o", str(tmp_path / "out")]

    assert report.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out' / 'README.md'}" in said
    assert "the tracked results are as they were" in said
    # What the page quotes is missing: nothing changes, even when asked.
    assert report.main([*arguments, "--update"]) == 1
    assert "inspect/x" in capsys.readouterr().err
    assert tracked.read_text() == "old"

    run["benchmarks"].append(bench("inspect/x", "mmgguf", 0.004))
    results.Results(run).save(tmp_path / "run.json")
    assert report.main([*arguments, "--update"]) == 0
    assert f"updated {tracked.parent}" in capsys.readouterr().out
    assert {path.name for path in tracked.parent.iterdir()} == {"README.md", "results.json"}
    assert "4.0 ms" in quoting.read_text()


def test_runs_are_merged_by_module() -> None:
    old = made_up(all_modules=["access", "open"])
    new = made_up(all_modules=["access", "open"], modules=["access"], cases={}, benchmarks=[])
    new["benchmarks"] = [bench("access/x", "mmgguf", 1.0, module="access")]
    both = report.merged(old, new)
    assert both["modules"] == ["access", "open"]
    assert len(both["benchmarks"]) == len(old["benchmarks"]) + 1
    assert report.merged(both, new)["benchmarks"] == both["benchmarks"]
    with pytest.raises(ValueError, match="different machines"):
        report.merged(old, new | {"machine_info": {"processor": "another"}})


# ---------------------------------------------------------------- turns


def test_turns() -> None:
    order: list[str] = []

    def contestant(name: str, seconds: float) -> turns.Contestant:
        def run() -> float:
            order.append(name)
            return seconds

        return turns.Contestant(run, tells=True)

    made = {"fast": contestant("fast", 0.01), "slow": contestant("slow", 0.4), "slowest": contestant("slowest", 9.0)}
    taken = turns.take_turns(made, budget=0.2)
    assert {name: len(seconds) for name, (seconds, _) in taken.items()} == {"fast": 20, "slow": 5, "slowest": 1}
    # The first of each warms up, and the slow one's turns lie among those of the fast one.
    rest = "".join(name[0] for name in order[3:] if name != "slowest")
    assert rest == "ffffs" * 5
    assert turns.take_turns(made, budget=0.2, once=True)["fast"] == ([0.01], 1)


def test_a_first_run_that_compiles_does_not_count() -> None:
    seconds = iter([2.0, 0.01, *[0.02] * 100])
    compiling = turns.Contestant(lambda: next(seconds), tells=True)
    taken, _ = turns.take_turns({"numba": compiling}, budget=0.2)["numba"]
    assert taken == [0.02] * 20
    seconds = iter([2.0, 1.9, 1.8])
    slow = turns.Contestant(lambda: next(seconds), tells=True)
    assert turns.take_turns({"slow": slow}, budget=0.2)["slow"] == ([2.0, 1.9], 1)


def test_summary_has_what_pytest_benchmark_shows() -> None:
    stats = turns.summary([4.0, 1.0, 2.0, 3.0, 5.0], iterations=10)
    assert (stats["median"], stats["q1"], stats["q3"], stats["iqr"], stats["rounds"]) == (3.0, 2.0, 4.0, 2.0, 5)
    assert turns.summary([2.0])["q1"] == 2.0
    json.dumps(stats)
