"""Options, generated files and the table of claims.  `pytest benchmarks` runs everything; see the README."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.bench import measure, peers
from mmgguf.bench.models import TOKENS, llama

from . import machine, models

# Some take builders of files from the tests. At the end: an installed mmgguf still comes before the folder mmgguf/.
sys.path.append(str(Path(__file__).resolve().parents[1]))

#: Part of the names of generated files: a change of the generators must not meet files of the old ones.
GENERATION = 2


@dataclass(frozen=True)
class Sizes:
    """How large the generated files are."""

    name: str
    tokens: int
    merges: int
    scale: float
    vocabulary_rows: int
    words: int
    tensors: int
    matrix: tuple[int, int]
    hole: int


FULL = Sizes("full", TOKENS, models.MERGES, 0.5, 64_128, 4096, 1000, (4096, 4096), 40 << 30)
SMALL = Sizes("small", 2_000, 4_000, 1 / 16, 1_024, 128, 100, (64, 1024), 40 << 30)


@dataclass(frozen=True)
class Model:
    """A file to measure."""

    label: str
    path: str


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mmgguf")
    group.addoption(
        "--file",
        action="append",
        default=[],
        metavar="PATH",
        help="measure this GGUF file instead of the generated ones (repeatable)",
    )
    group.addoption("--small", action="store_true", help="small generated files; the default with --benchmark-disable")
    group.addoption(
        "--drop-files", action="store_true", help="delete the generated files at the end instead of keeping them"
    )


def is_small(config: pytest.Config) -> bool:
    return bool(config.getoption("--small") or config.getoption("--benchmark-disable"))


def cache_folder(config: pytest.Config) -> Path:
    """Where generated files are kept: $MMGGUF_BENCH_CACHE, or mmgguf-bench in the user's cache folder."""
    given = os.environ.get("MMGGUF_BENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(base) / "mmgguf-bench") / (SMALL if is_small(config) else FULL).name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [str(path) for path in metafunc.config.getoption("--file")]
    for fixture, generated in (("model", ["vocabulary", "llama", "many"]), ("large_model", ["llama"])):
        if fixture in metafunc.fixturenames:
            labels = given or generated
            ids = [Path(label).stem for label in labels]
            metafunc.parametrize(fixture, labels, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return SMALL if is_small(pytestconfig) else FULL


class Files:
    """Generated files, made when they are first asked for."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes

    def get(self, name: str, make: Callable[[Path], None], need: int = 64 << 20) -> str:
        """The path of a file of that name; `make` makes it, if `need` bytes are free."""
        path = self.folder / f"{GENERATION}-{name}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if free < need * 1.2:
                pytest.skip(f"{name} needs {need >> 20} MiB on the disk, {free >> 20} are free")
            partial = path.with_name(f"{os.getpid()}-{path.name}")
            try:
                make(partial)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return str(path)

    def generated(self, label: str) -> str:
        """The generated GGUF file of that label."""
        sizes = self.sizes
        if label == "vocabulary":
            return self.get("vocabulary.gguf", lambda path: models.vocabulary(path, sizes.tokens, sizes.merges))
        if label == "llama":
            need = int(5e9 * sizes.scale**2)
            return self.get(
                "llama.gguf", lambda path: llama(path, sizes.scale, sizes.vocabulary_rows, sizes.words), need
            )
        if label == "many":
            return self.get("many.gguf", lambda path: models.many_tensors(path, sizes.tensors))
        raise ValueError(label)

    def in_format(self, path: str, format_: peers.Format) -> str:
        """The tensors of a GGUF file in a peer's format."""
        if format_ == "gguf":
            return path
        with mmgguf.open(path) as source:
            stem = Path(path).name.removeprefix(f"{GENERATION}-").removesuffix(".gguf")
            name = f"{stem}-{source.nbytes}.{format_}"
            return self.get(name, lambda target: peers.save_as(format_, source, target), source.nbytes)


@pytest.fixture(scope="session")
def files(pytestconfig: pytest.Config, sizes: Sizes) -> Iterator[Files]:
    folder = cache_folder(pytestconfig)
    yield Files(folder, sizes)
    if pytestconfig.getoption("--drop-files"):
        shutil.rmtree(folder, ignore_errors=True)


def _model(label: str, files: Files) -> Model:
    if label in ("vocabulary", "llama", "many"):
        return Model(label, files.generated(label))
    return Model(Path(label).stem, label)


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest, files: Files) -> Model:
    return _model(request.param, files)


@pytest.fixture(scope="session")
def large_model(request: pytest.FixtureRequest, files: Files) -> Model:
    found = _model(request.param, files)
    with mmgguf.open(found.path) as opened:
        if not opened:
            pytest.skip(f"{found.label} has no tensors")
    return found


@pytest.fixture(scope="session")
def why_not_cold(files: Files) -> str | None:
    """Why no cache can be made cold here, or None; asked once, of a small file where the others are."""
    return measure.why_not_cold(files.generated("many"))


Timed = Callable[..., Any]


@pytest.fixture
def timed(benchmark: Any) -> Iterator[Timed]:
    """Time a function with preparations and clean-ups that do not count.

    ``timed(run, prepare=None, finish=None, seconds=1.0)`` gives the result of the last run.  `prepare` makes the
    arguments (a tuple), `finish` gets the result; it comes after the next round's beginning at the latest.
    """
    kept: list[tuple[Callable[[Any], Any], Any]] = []

    def clean() -> None:
        while kept:
            finish, result = kept.pop()
            finish(result)

    def run_timed(
        run: Callable[..., Any],
        prepare: Callable[[], tuple[Any, ...]] | None = None,
        finish: Callable[[Any], Any] | None = None,
        seconds: float = 1.0,
        max_rounds: int = 200,
    ) -> Any:
        def target(*arguments: Any) -> Any:
            result = run(*arguments)
            if finish is not None:
                kept.append((finish, result))
            return result

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            clean()
            return (prepare() if prepare is not None else ()), {}

        rounds = 1
        if benchmark.enabled:
            arguments, _ = setup()
            start = time.perf_counter()
            target(*arguments)
            once = time.perf_counter() - start
            del arguments
            least = 3 if once < seconds else 2 if once < 3 * seconds else 1
            rounds = max(least, min(max_rounds, int(seconds / max(once, 1e-6))))
        return benchmark.pedantic(target, setup=setup, rounds=rounds)

    yield run_timed
    clean()


# ---------------------------------------------------------------- what is kept of a run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The machine's kind, without its name."""
    folder = cache_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    machine_info.clear()
    machine_info.update(machine.describe(folder))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["datetime"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    output_json["sizes"] = "small" if is_small(config) else "full"
    output_json["commit_info"] = {key: output_json.get("commit_info", {}).get(key) for key in ("id", "dirty")}


@pytest.hookimpl(hookwrapper=True)
def pytest_benchmark_group_stats() -> Generator[None, Any, None]:
    """Leave claims out of the tables of times: how long it took to measure one says nothing."""
    outcome = yield
    outcome.force_result([(name, group) for name, group in outcome.get_result() if name != "claims"])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The claims, each with what was measured."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in getattr(session, "benchmarks", []) if "claim" in bench.extra_info]
    if not rows:
        return
    terminalreporter.section("claims")
    for bench in rows:
        info = bench.extra_info
        verdict = "met" if info["met"] else "NOT MET"
        terminalreporter.line(f"{verdict:8} {info['measured']:>10.4g} {info['bar']:>10}  {info['claim']}")
