"""The page on which the tracked run can be explored, in a browser: it shows what the run has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import Results
from benchmarks.words import duration, label, number

pytest.importorskip("bokeh")
pytest.importorskip("matplotlib")

import bokeh

from benchmarks import explorer

from .report.test_page import CHROMIUM, FLAGS

RESULTS = Results.load()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("explorer")
    for name in explorer.SCRIPTS:
        shutil.copy(Path(bokeh.__file__).parent / "server/static/js" / name, folder)
    script, places = explorer.embedded(RESULTS)
    scripts = "".join(f'<script src="{name}"></script>' for name in explorer.SCRIPTS)
    html = f'<!doctype html><meta charset="utf-8"><body>{"".join(places)}{scripts}{script}'
    (folder / "page.html").write_text(html, "utf-8")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found = browser.new_page()
        said: list[str] = []
        found.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        found.on("pageerror", lambda e: said.append(str(e)))
        found.goto((folder / "page.html").as_uri())
        found.wait_for_selector("select", timeout=60_000)
        yield found
        browser.close()
        assert said == []


def shown(page: Any, chart: int) -> dict[str, list[Any]]:
    """What the points of a chart are, the uppermost first."""
    script = """async chart => {
      await new Promise(done => setTimeout(done, 200))
      const plot = Bokeh.documents[0].roots()[chart].children.at(-1)
      const data = Object.fromEntries(Object.entries(plot.renderers[0].data_source.data).map(([k, v]) => [k, [...v]]))
      return {...data, rows: [...plot.y_range.factors].reverse()}
    }"""
    data: dict[str, list[Any]] = page.evaluate(script, chart)
    return data


@pytest.mark.parametrize("case", [None, "dequantize/Q4_K", "strings first/vocabulary", "jobs/smollm2, get one tensor"])
def test_case(page: Any, case: str | None) -> None:
    if case is not None:  # else the one that the page opens with
        page.locator("select").nth(0).select_option(case)
    times = sorted(RESULTS.times(case or explorer.CASE).items(), key=lambda one: one[1].median)
    data = shown(page, 0)
    assert data["rows"] == data["who"] == [label(name) for name, _ in times]
    assert data["text"] == [duration(time.median) for _, time in times]
    assert [data["q1"], data["q3"]] == [[time.q1 for _, time in times], [time.q3 for _, time in times]]


@pytest.mark.parametrize(("one", "other"), [("gguf-py", "mmgguf"), ("C library", "mmgguf, numba")])
def test_pair(page: Any, one: str, other: str) -> None:
    for place, name in ((1, one), (2, other)):
        page.locator("select").nth(place).select_option(label(name))
    cases = dict.fromkeys(bench["group"] for bench in RESULTS.data["benchmarks"])
    both = [case for case in cases if {one, other} <= set(RESULTS.times(case))]
    ratios = {case: RESULTS.ratio(case, one, other) for case in both}
    data = shown(page, 1)
    assert len(both) > 5
    assert data["rows"] == sorted(both, key=lambda case: -ratios[case])
    assert data["ratio"] == pytest.approx(sorted(ratios.values(), reverse=True))
    assert [float(text.replace(",", "")) for text in data["text"]] == pytest.approx(data["ratio"], rel=0.06)
    assert number(data["ratio"][0]) == data["text"][0]


def test_nothing_in_common(page: Any) -> None:
    page.locator("select").nth(1).select_option("gguf-py")
    page.locator("select").nth(2).select_option("gguf-py")
    assert shown(page, 1)["rows"] == []
    title = "Bokeh.documents[0].roots()[1].children.at(-1).title.text"
    assert page.evaluate(title) == "Choose two of them."
