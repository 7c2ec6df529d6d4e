"""Options, files, progress, and what is kept of a run.

`python -m benchmarks.report` runs this suite and makes its page.  `pytest benchmarks --once` runs each contestant once
on small files, which checks that all of them give the same results.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import mmgguf
from mmgguf.bench import measure
from mmgguf.bench.peers import Unavailable

from . import machine, results
from .files import FULL, GENERATED, SMALL, Files, Model, NotThere, Sizes, cache_folder, given_model
from .turns import Contestant, summary, take_turns

# Some take builders of files from the tests. At the end: an installed mmgguf still comes before the folder mmgguf/.
sys.path.append(str(Path(__file__).resolve().parents[1]))

RESULTS = pytest.StashKey[dict[str, Any]]()
PROGRESS = pytest.StashKey["Progress"]()
#: Seconds of a test of which no earlier run is known.
USUAL = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mmgguf")
    group.addoption(
        "--file",
        action="append",
        default=[],
        metavar="PATH",
        help="measure this GGUF file instead of the generated ones (repeatable)",
    )
    group.addoption("--once", action="store_true", help="each contestant once, on small files: do they work?")
    group.addoption("--small", action="store_true", help="small generated files")
    group.addoption(
        "--drop-files", action="store_true", help="delete the generated files at the end instead of keeping them"
    )
    group.addoption("--results", metavar="JSON", help="add what is measured to this file; `benchmarks.report` sets it")


def is_small(config: pytest.Config) -> bool:
    return bool(config.getoption("--small") or config.getoption("--once"))


def pytest_configure(config: pytest.Config) -> None:
    try:
        given = [given_model(path) for path in config.getoption("--file")]
    except NotThere as error:
        raise pytest.UsageError(str(error)) from None
    about = machine.about(is_small(config), [model.id for model in given])
    config.stash[RESULTS] = results.empty(**about)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [str(path) for path in metafunc.config.getoption("--file")]
    for fixture, generated in (("model", [*GENERATED, "smollm2"]), ("large_model", ["llama"])):
        if fixture in metafunc.fixturenames:
            labels = given or generated
            ids = [Path(label).stem for label in labels]
            metafunc.parametrize(fixture, labels, ids=ids, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With files given, only what is measured on them."""
    if config.getoption("--file"):
        kept = [
            item
            for item in items
            if {"model", "large_model", "real_model", "types"} & set(getattr(item, "fixturenames", ()))
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return SMALL if is_small(pytestconfig) else FULL


@pytest.fixture(scope="session")
def files(pytestconfig: pytest.Config, sizes: Sizes) -> Iterator[Files]:
    folder = cache_folder(is_small(pytestconfig))
    yield Files(folder, sizes)
    if pytestconfig.getoption("--drop-files"):
        shutil.rmtree(folder, ignore_errors=True)


def _smollm2() -> Model:
    from tests.support import models  # sys.path has its folder only now

    try:
        return Model("smollm2", "SmolLM2 135M in Q4_1: 98 MB", str(models.smollm2()))
    except models.Unavailable as error:
        pytest.skip(str(error))


def _model(label: str, files: Files) -> Model:
    if label == "smollm2":
        return _smollm2()
    try:
        return files.generated(label) if label in GENERATED else given_model(label)
    except NotThere as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest, files: Files) -> Model:
    return _model(request.param, files)


@pytest.fixture(scope="session")
def large_model(request: pytest.FixtureRequest, files: Files) -> Model:
    found = _model(request.param, files)
    with mmgguf.open(found.path) as opened:
        if not opened:
            pytest.skip(f"{found.id} has no tensors")
    return found


@pytest.fixture(scope="session")
def real_model(pytestconfig: pytest.Config) -> Model:
    """SmolLM2-135M-Instruct in Q4_1, or the first file that was given."""
    given = pytestconfig.getoption("--file")
    return given_model(given[0]) if given else _smollm2()


@pytest.fixture(scope="session")
def why_not_cold(files: Files) -> str | None:
    """Why no cache can be made cold here, or None; asked once, of a small file where the others are."""
    return measure.why_not_cold(files.generated("many").path)


# ---------------------------------------------------------------- measuring


class Case:
    """Measures contestants in turns and keeps what was found under the id of a case."""

    def __init__(self, run: dict[str, Any], module: str, once: bool) -> None:
        self.run = run
        self.module = module
        self.once = once

    def time(
        self,
        id_: str,
        contestants: Mapping[str, Callable[[], Contestant | Callable[[], Any]]],
        *,
        seconds: float = 0.3,
        check: Callable[[str, Any], Any] | None = None,
        **facts: Any,
    ) -> None:
        """Time contestants.

        Parameters
        ----------
        id_ : str
            ``room/what``, forever: old runs are compared with new ones by it.
        contestants : mapping of str to callable
            By name, what makes a `Contestant`, or a function to time.  It raises `Unavailable`, or skips, where the
            contestant cannot take part; the reason is printed beside the others' results.
        seconds : float
            For each contestant, all its rounds together.  Slow ones take longer.
        check : callable, optional
            Called with a name and the result of a run, before anything counts.
        **facts
            What else is to be kept of the case.
        """
        absent, ready = {}, {}
        for name, make in contestants.items():
            try:
                made = make()
            except (Unavailable, NotThere, pytest.skip.Exception) as reason:
                absent[name] = str(reason).splitlines()[0]
                continue
            ready[name] = made if isinstance(made, Contestant) else Contestant(made)

        def refused(name: str, error: Exception) -> bool:
            """Whatever another library raises is why it takes no part."""
            if name.startswith("mmgguf"):
                return False
            text = str(error) if isinstance(error, Unavailable) else f"does not do it: {type(error).__name__}: {error}"
            absent[name] = (text.splitlines() or [""])[0][:200]
            return True

        for name, (taken, iterations) in take_turns(ready, seconds, check, self.once, refused).items():
            self.run["benchmarks"].append(results.entry(id_, name, summary(taken, iterations), self.module))
        self.keep(id_, absent, **facts)

    def keep(self, id_: str, absent: Mapping[str, str] | None = None, **facts: Any) -> None:
        """Keep what was found without a clock: counts, bytes, names."""
        known = self.run["cases"].setdefault(id_, {"module": self.module, "facts": {}, "absent": {}})
        known["facts"].update(facts)
        known["absent"].update(absent or {})


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    module = request.path.stem.removeprefix("test_")
    return Case(request.config.stash[RESULTS], module, bool(request.config.getoption("--once")))


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--once"))


# ---------------------------------------------------------------- progress, and what is kept


class Progress:
    """What is done and how long the rest will take, from the seconds that each test took in the run before."""

    def __init__(self, items: list[pytest.Item], known: Mapping[str, float]) -> None:
        # A file that was given takes what such tests took on average.
        by_function: dict[str, list[float]] = {}
        for id_, seconds in known.items():
            by_function.setdefault(id_.partition("[")[0], []).append(seconds)
        self.expected = {}
        for item in items:
            alike = by_function.get(_short(item.nodeid).partition("[")[0], [USUAL])
            self.expected[item.nodeid] = known.get(_short(item.nodeid), sum(alike) / len(alike))
        self.began = time.monotonic()
        self.done = 0

    def line(self, nodeid: str) -> str:
        """About the test that begins."""
        expected = [*self.expected.values()]
        past, rest = sum(expected[: self.done]), sum(expected[self.done :])
        gone = time.monotonic() - self.began
        if past > 10:
            rest *= gone / past  # this machine, compared with the one before
        self.done += 1
        return f"{_clock(gone)} gone, about {_clock(rest)} to go  [{self.done}/{len(self.expected)}]  {_short(nodeid)}"


def _short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2].removeprefix("test_").replace(".py::test_", ": ")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if not config.getoption("--results"):
        return
    known = results.Results.load().data["seconds"] if results.TRACKED.exists() and not is_small(config) else {}
    config.stash[PROGRESS] = Progress(session.items, known)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    _began[nodeid] = time.monotonic()


_began: dict[str, float] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    progress = item.config.stash.get(PROGRESS, None)
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    if progress is not None and reporter is not None:
        line = progress.line(item.nodeid)
        width = shutil.get_terminal_size().columns - 1
        reporter.write(f"\r{line[:width]:{width}}" if reporter.isatty else line + "\n", flush=True)
    result = yield
    item.config.stash[RESULTS]["load"][_short(item.nodeid)] = round(machine.load(), 2)
    item.config.stash[RESULTS]["seconds"][_short(item.nodeid)] = round(time.monotonic() - _began[item.nodeid], 2)
    module = item.path.stem.removeprefix("test_")
    if module not in item.config.stash[RESULTS]["modules"]:
        item.config.stash[RESULTS]["modules"].append(module)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any, config: pytest.Config) -> tuple[str, str, str] | None:
    """No dots between the lines of progress."""
    if PROGRESS in config.stash and report.outcome != "failed":
        return (
            ("passed" if report.passed and report.when == "call" else report.outcome if report.skipped else ""),
            "",
            "",
        )
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.append(_short(report.nodeid))


_failed: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--results", None)
    if path:
        session.config.stash[RESULTS]["failed"] = list(dict.fromkeys(_failed))
        results.Results(session.config.stash[RESULTS]).save(path)
