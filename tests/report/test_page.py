"""The page: what it holds, and that nothing of a file becomes markup or script in a real browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf import TypedValue, ValueType

pytest.importorskip("bokeh")

from mmgguf.report import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

#: Names, keys, tokens and templates that try to be more than text.  `window.hit` tells who succeeded.
ATTACKS = [
    "<img src=x onerror=window.hit=1>",
    "</script><script>window.hit=2</script>",
    "<svg/onload=window.hit=3>",
    '"><script>window.hit=4</script>',
    "javascript:window.hit=5//",
    "{{constructor.constructor('window.hit=6')()}}",
    "$$\\href{javascript:window.hit=7}{x}$$",
    "<b>bold</b><!-- <iframe src=data:text/html,x> -->",
    "]]><style>*{display:none}</style>",
    "\u202egnp.exe\u2066",
    "@name{custom} @{x} $index",
    "a\x00b\x1b[31m\x85\u2028",
    "__proto__",
    "%%data%% %%script%%",
]


def read(path: Path) -> dict[str, Any]:
    """The data of a page."""
    (packed,) = re.findall(r'<script type="text/plain" id="data">([^<]*)</script>', path.read_text())
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return data


def hostile(path: Path) -> Path:
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": ATTACKS[0],
        "tokenizer.ggml.model": ATTACKS[2],
        "tokenizer.ggml.tokens": [*ATTACKS, "plain"],
        "tokenizer.ggml.merges": ATTACKS,
        "tokenizer.chat_template": "\n".join(ATTACKS),
        "nan": float("nan"),
    }
    metadata |= {f"key.{text}"[:200].replace("\0", ""): text for text in ATTACKS}
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for layer in range(3):
        for text in ATTACKS:
            kind = text.replace("\0", "")[:40]
            tensors[f"blk.{layer}.{kind}"] = rng.standard_normal((8, 32)).astype("f4")
    tensors[ATTACKS[1]] = np.array([np.nan, np.inf, 1], "f4")
    mmgguf.write(path, metadata, tensors)
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    bad = hostile(folder / "<img src=x onerror=window.hit=8>.gguf")
    with mmgguf.open(bad) as f:
        changed = {name: (t.dequantize(np.float16) if t.ndim > 1 else t) for name, t in f.items()}
        metadata = f.metadata.replace({"tokenizer.ggml.tokens": [*reversed(ATTACKS), "more"], ATTACKS[3]: 1})
        mmgguf.write(folder / "other.gguf", metadata, changed)
    write_page(bad, folder / "hostile.html")
    write_page(bad, folder / "compared.html", other=folder / "other.gguf")
    write_page(bad, folder / "header.html", statistics=False)
    return {name: folder / f"{name}.html" for name in ("hostile", "compared", "header")}


# The data.


def test_the_page_has_everything(all_types: Path, tmp_path: Path) -> None:
    write_page(all_types, tmp_path / "a.html")
    data = read(tmp_path / "a.html")
    with mmgguf.open(all_types) as f:
        assert [row[0] for row in data["tensors"]] == list(f)
        assert [row[0] for row in data["metadata"]] == list(f.metadata)
    assert data["title"] == all_types.name
    assert {"map", "types", "histogram"} <= set(data["charts"])
    assert all(sum(row[13][2]) > 0 for row in data["tensors"] if row[13] and row[13][2])


def test_only_two_scripts_may_run(pages: dict[str, Path]) -> None:
    import hashlib

    for path in pages.values():
        html = path.read_bytes().decode()
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
        rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert "unsafe" not in rules["script-src"]
        scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'" for s in scripts]
        assert rules["script-src"].split() == hashes
        assert len(hashes) == 2
        # Outside of the packed data and the scripts, nothing of the file is there at all.
        assert "window.hit" not in html
        assert "http-equiv" in html
        assert not re.search(r"\b(?:src|href)=", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))


def test_odd_files(tmp_path: Path, vocabularies_or_none: list[Path]) -> None:
    mmgguf.write(tmp_path / "empty.gguf", {}, {})
    mmgguf.write(
        tmp_path / "odd.gguf", {"general.file_type": TypedValue("x", ValueType.STRING)}, {"w": np.zeros((0, 2))}
    )
    for path in (tmp_path / "empty.gguf", tmp_path / "odd.gguf", *vocabularies_or_none):
        write_page(path, tmp_path / f"{path.name}.html")
        assert read(tmp_path / f"{path.name}.html")["title"] == path.name


@pytest.fixture
def vocabularies_or_none() -> list[Path]:
    from ..support import models

    try:
        return models.vocabularies()[:1]
    except models.Unavailable:
        return []


def test_refusals(all_types: Path, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"other")
    with pytest.raises(FileExistsError, match="exists"):
        write_page(all_types, tmp_path / "a.html")
    with pytest.raises(OSError, match="lost"):
        write_page(all_types, all_types, force=True, statistics=False)
    assert (tmp_path / "a.html").read_bytes() == b"other"
    write_page(all_types, tmp_path / "a.html", force=True)
    assert (tmp_path / "a.html").stat().st_size > 1 << 20


def test_the_header_of_a_large_model_makes_a_small_page(tmp_path: Path) -> None:
    """80 layers and the vocabulary of a model of 70 billion weights, without its data."""
    rng = np.random.default_rng(3)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 12)))) for _ in range(128_256)]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * len(words),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in zip(words * 2, words[1:] * 2, strict=False)],
    }
    kinds = [
        f"{kind}.weight"
        for kind in (
            ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "attn_norm", "ffn_norm"]
        )
    ]
    tensors = {f"blk.{layer}.{kind}": np.zeros((4, 32), "f4") for layer in range(80) for kind in kinds}
    mmgguf.write(tmp_path / "a.gguf", metadata, tensors)
    write_page(tmp_path / "a.gguf", tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 6_000_000


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visit:
    """A page that is open, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        self.page.wait_for_timeout(500)

    def check(self) -> None:
        assert self.page.locator("html").get_attribute("data-ready") == "yes"
        assert self.page.evaluate("() => window.hit") is None
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "data:image/svg+xml", "blob:"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hostile", "compared", "header"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_becomes_markup_or_script(
    browser: Any, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    visit = Visit(browser, pages[name], viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    visit.check()
    assert page.title().startswith("<img src=x onerror=window.hit=8>.gguf")
    # What the page itself makes, and nothing else: no element that only a name could have brought.
    foreign = ("img", "iframe", "object", "embed", "form", "base", "link", "b", "svg", "style", "math")
    script = "(tags) => tags.flatMap(t => [...document.body.getElementsByTagName(t)]).map(e => e.outerHTML)"
    found = page.evaluate(script, foreign)
    assert found == []
    assert page.evaluate("() => document.querySelectorAll('script').length") == 3
    # The texts are all there, as texts.
    cells = page.evaluate("() => [...document.querySelectorAll('#tokenizer td.name')].map(e => e.textContent)")
    assert cells[: len(ATTACKS)][:3] == ATTACKS[:3]
    assert r"\u202egnp.exe\u2066" in cells
    assert r"a\x00b\x1b[31m\x85\u2028".replace(r"\x85", r"\u0085") in cells
    pre = page.evaluate("() => document.querySelector('#templates pre').textContent")
    assert pre.startswith("\n".join(ATTACKS[:6]))
    # Nothing sticks out of the window.
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    # Over every chart, for tooltips.
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        for part in (0.3, 0.5, 0.7):
            page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] * part)
            page.wait_for_timeout(30)
    visit.check()
    page.close()


@pytest.mark.slow
def test_search_sort_and_choice(browser: Any, smollm2: Path, tmp_path: Path) -> None:
    write_page(smollm2, tmp_path / "a.html")
    visit = Visit(browser, tmp_path / "a.html", viewport={"width": 1400, "height": 900})
    page = visit.page

    def rows(part: str, column: int) -> list[str]:
        script = f"() => [...document.querySelectorAll('#{part} tbody tr')].map(r => r.cells[{column}].textContent)"
        result: list[str] = page.evaluate(script)
        return result

    with mmgguf.open(smollm2) as f:
        page.locator("#tokenizer input").fill("hello")
        page.wait_for_timeout(400)
        expected = [token for token in f.metadata["tokenizer.ggml.tokens"] if "hello" in token.lower()]
        assert rows("tokenizer", 1) == expected
        # By keyboard: to the head of a column, and its order turned.
        sizes = sorted((t.size for t in f.values()), reverse=True)
        page.locator("#tensors th button", has_text="weights").focus()
        page.keyboard.press("Enter")
        assert rows("tensors", 3)[:5] == [f"{size:,}" for size in sizes[:5]]
        assert page.locator("#tensors th[aria-sort=descending]").count() == 1
        page.keyboard.press("Enter")
        assert rows("tensors", 3)[0] == f"{sizes[-1]:,}"
    page.locator("#tensors input").fill("blk.3. ffn_down")
    page.wait_for_timeout(400)
    assert rows("tensors", 0) == ["blk.3.ffn_down.weight"]
    page.locator("#tensors td button").click()
    assert page.locator("#histogram select").input_value() == "blk.3.ffn_down.weight"
    page.locator("#statistics select").select_option("std")
    page.emulate_media(media="print")
    page.wait_for_timeout(200)
    visit.check()
    page.close()


def test_the_page_replaces_neither_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        mmgguf.write(tmp_path / f"{name}.gguf", {}, {"t": np.zeros(4, "f4")})
    before = (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(OSError, match="would be lost"):
        write_page(tmp_path / "a.gguf", tmp_path / "b.gguf", other=tmp_path / "b.gguf", force=True)
    assert (tmp_path / "b.gguf").read_bytes() == before
