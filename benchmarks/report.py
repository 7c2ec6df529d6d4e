"""``python -m benchmarks.report``: measure, and make a page with charts of what was measured.

    python -m benchmarks.report                        # everything, in about ten minutes
    python -m benchmarks.report --file model.gguf      # what depends on the file, on yours
    python -m benchmarks.report open access            # these modules; --add keeps the others' results
    python -m benchmarks.report --from results.json    # no measuring: the page of a run
    python -m benchmarks.report --update               # and put the figures into the README and the documentation

The run, its page and its charts go to build/benchmarks.  The tracked results, and the figures in the README and the
documentation, change only with --update.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from . import figures, machine, page
from .files import NotThere, given_model
from .results import TRACKED, Results

HERE: Final = Path(__file__).parent
MODULES: Final = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))
OUTPUT: Final = HERE.parent / "build" / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Measure, and make a page with charts of what was measured.",
        epilog="Modules: " + ", ".join(MODULES),
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="measure only these")
    parser.add_argument(
        "--file", action="append", default=[], metavar="PATH", help="measure this GGUF file (repeatable)"
    )
    parser.add_argument("--small", action="store_true", help="small generated files: to see that it works")
    parser.add_argument("--add", action="store_true", help="keep what the other modules of the last run measured")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="do not measure: take this run")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help="default: build/benchmarks")
    parser.add_argument(
        "--update", action="store_true", help="replace the tracked results and the figures that quote them"
    )
    parser.add_argument("--drop-files", action="store_true", help="delete the generated files at the end")
    options = parser.parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(f"benchmarks.report: {problem}", file=sys.stderr)
        return 2
    target = options.output / "results.json"
    if options.source is None:
        began = time.monotonic()
        run = _measure(options)
        if run is None:
            print("benchmarks.report: nothing was measured", file=sys.stderr)
            return 1
        if options.add and target.exists():
            run = merged(Results.load(target).data, run)
        print(f"measured in {time.monotonic() - began:.0f} s")
        results = Results(run)
    else:
        results = Results.load(options.source)
    written = write(results, options.output)
    print(f"wrote {options.output / 'README.md'}, with results.json and {len(written)} charts")
    for sentence in results.shortcomings:
        print(sentence)
    if results.failed and options.source is None:
        print(f"benchmarks.report: failed, so nothing was updated: {', '.join(results.failed)}", file=sys.stderr)
        print(f"to take what was measured: python -m benchmarks.report --from {target} --update", file=sys.stderr)
        return 1
    if options.update:
        return _update(results)
    print("the tracked results are as they were; --update replaces them")
    return 0


def _problem(options: argparse.Namespace) -> str | None:
    """What keeps this from running, found before anything runs."""
    unknown = [name for name in options.modules if name not in MODULES]
    if unknown:
        return f"no module is called {unknown[0]}; there are {', '.join(MODULES)}"
    if options.file and options.update:
        return "--update takes the suite's own files: results of --file are of your machine"
    if options.small and options.update:
        return "--update takes files of full size"
    if options.source is not None and (options.modules or options.file or options.add):
        return "--from measures nothing, so it takes neither modules nor --file nor --add"
    if options.source is not None and not options.source.is_file():
        return f"{options.source}: no such file"
    try:
        given = [given_model(path).id for path in options.file]
    except NotThere as error:
        return str(error)
    if options.add and (options.output / "results.json").exists():
        return differences(Results.load(options.output / "results.json").data, machine.about(options.small, given))
    return None


def _measure(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run the suite in a process of its own; what it measured, or None where that broke off."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        command = [sys.executable, "-m", "pytest", "-q", "-q", "--no-header", "-rfE", "-W", "ignore"]
        command += ["-p", "no:cacheprovider", "-p", "no:randomly", "--results", str(path)]
        command += [f"--file={os.path.abspath(path)}" for path in options.file]
        command += ["--small"] * options.small + ["--drop-files"] * options.drop_files
        command += [str(HERE / f"test_{name}.py") for name in options.modules or MODULES]
        subprocess.run(command, cwd=HERE.parent, check=False)
        return Results.load(path).data if path.exists() else None


def differences(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Why the figures of two runs do not belong together."""
    for key, what in (("commit_info", "commits"), ("machine_info", "machines"), ("sizes", "sizes"), ("files", "files")):
        if old[key] != new[key]:
            return f"--add: the runs are of different {what}: {old[key]} and {new[key]}"
    return None


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A run with the modules of two; where both have one, that of the new.

    Raises
    ------
    ValueError
        They are of different versions, machines or files, so that their figures do not belong together.
    """
    if (different := differences(old, new)) is not None:
        raise ValueError(different)
    gone = set(new["modules"])
    cases = {id_: case for id_, case in old["cases"].items() if case["module"] not in gone}
    kept = [one for one in old["benchmarks"] if one["extra_info"]["module"] not in gone]
    seconds = {id_: taken for id_, taken in old["seconds"].items() if id_.partition(":")[0] not in gone}
    return {
        **new,
        "modules": sorted({*old["modules"], *new["modules"]}),
        "cases": {**cases, **new["cases"]},
        "benchmarks": kept + new["benchmarks"],
        "seconds": {**seconds, **new["seconds"]},
        "failed": [id_ for id_ in old.get("failed", []) if id_.partition(":")[0] not in gone] + new.get("failed", []),
        "load": {**{id_: old["load"][id_] for id_ in seconds}, **new["load"]},
    }


def write(results: Results, folder: Path) -> list[Path]:
    """Write ``results.json``, ``README.md`` and its charts into a folder, which is made if need be; the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def draw(kind: str, name: str, title: str, note: str, **data: Any) -> None:
        from . import charts  # matplotlib, which nobody else needs

        written.extend(getattr(charts, kind)(folder, name, title, note, **data))

    results.save(folder / "results.json")  # first: measuring took minutes
    text = page.page(results, draw)
    (folder / "README.md").write_text(text, "utf-8")
    return written


def _update(results: Results) -> int:
    try:
        changed = figures.update(results)
    except KeyError as error:
        print(
            f"benchmarks.report: a page quotes what this run has not measured: {error}; nothing was updated",
            file=sys.stderr,
        )
        return 1
    for path in TRACKED.parent.iterdir():
        path.unlink()
    charts = write(results, TRACKED.parent)
    print(f"updated {TRACKED.parent}, with {len(charts)} charts" + "".join(f", {path.name}" for path in changed))
    return 0


if __name__ == "__main__":
    if shutil.which("git") is None:
        print("benchmarks.report: no git, so the results will not say of which commit they are", file=sys.stderr)
    # Whoever stops this stops the measuring process, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
