"""What notebooks show: small, escaped, without touching data; and pictures by matplotlib."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmgguf
from mmgguf.notebook import hist, visible

from .support import build

ATTACKS = ["<script>x</script>", "'><img src=x onerror=x>", "\u202eb", "\x1b[31m", "$x$", "&lt;"]
TAGS = {"details", "summary", "div", "table", "thead", "tbody", "tr", "th", "td"}


class Checker(HTMLParser):
    """Only the tags and attributes that the tables are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style", "open", "colspan"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(shown: Any) -> list[str]:
    checker = Checker()
    checker.feed(shown._repr_html_())
    checker.close()
    assert checker.open == []
    return checker.texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    metadata = {"general.architecture": "llama", "array": [1, 2, 3]} | {f"k.{a}": a for a in ATTACKS}
    tensors: dict[str, Any] = {f"blk.0.{a}": np.ones((2, 4), "f4") for a in ATTACKS}
    tensors["scalar"] = np.array(1, "f4")
    mmgguf.write(tmp_path / "<b>.gguf", metadata, tensors)
    return tmp_path / "<b>.gguf"


def test_files_tensors_metadata_and_findings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mmgguf.open(path) as f:
        monkeypatch.setattr(type(f.shards[0].file), "array", None)  # whoever touches data fails
        shown = texts(f)
        assert "<b>.gguf" in shown
        assert "UINT32[3]" in shown
        for attack in ATTACKS:
            assert visible(f"blk.0.{attack}", 200) in shown
            assert visible(attack, 200) in shown
        tensor = f[f"blk.0.{ATTACKS[0]}"]
        assert texts(tensor)[:5] == [f"blk.0.{ATTACKS[0]}", "type", "F32", "shape", "2×4"]
        assert "llama" in texts(f.metadata)
    assert "closed" in texts(f)[0]
    monkeypatch.undo()
    findings = mmgguf.verify(path)
    assert findings == list(findings)
    assert "key-style" in texts(findings)


def test_thousands_of_tensors_stay_small(tmp_path: Path) -> None:
    b = build.Build(3).start(tensors=5000, pairs=1).text(b"k" * 5000, b"v" * 100_000)
    for number in range(5000):
        b.tensor(b"t%d" % number, [], type_=999)
    (tmp_path / "a.gguf").write_bytes(bytes(b.pad()))
    with mmgguf.open(tmp_path / "a.gguf") as f:
        shown = f._repr_html_()
        assert "… and 4,500 more" in shown
        assert len(shown) < 100_000
        assert "unknown 999" in texts(f["t7"])


def test_pictures(path: Path, all_types: Path, smollm2_or_none: Path | None) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots()
    with mmgguf.open(path) as f:
        assert f.plot(ax=ax) is ax
        f["scalar"].hist()
        axes = f[f"blk.0.{ATTACKS[4]}"].hist(bins=[0.0, 1.0, 2.0])
        assert axes.patches[0].get_data().values.tolist() == [0, 8]
        figure.canvas.draw()  # a title with dollars is no mathematics
        axes.figure.canvas.draw()
    with mmgguf.open(all_types) as f:
        f.plot()
        for tensor in f.values():
            with np.errstate(over="ignore", invalid="ignore"):
                ax = tensor.hist(bins=10)
            counts = ax.patches[0].get_data().values
            numbers = np.asarray(tensor[...])
            assert counts.sum() == np.isfinite(numbers).sum()
            pyplot.close("all")
    if smollm2_or_none is not None:
        with mmgguf.open(smollm2_or_none) as f:
            f.plot()
            assert "kv cache" in texts(mmgguf.estimate(f))
            t = f["blk.0.attn_q.weight"]
            expected, _ = np.histogram(t.dequantize().astype("f8"), 50)
            assert t.hist(bins=50).patches[0].get_data().values.tolist() == expected.tolist()
    pyplot.close("all")


@pytest.fixture
def smollm2_or_none() -> Path | None:
    from .support import models

    try:
        return models.smollm2()
    except models.Unavailable:
        return None


def test_nothing_finite_and_pieces() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = hist("t", lambda: iter([np.array([np.nan, np.inf])]), 4, None)
    assert ax.patches[0].get_data().values.sum() == 0
    ax = hist("t", lambda: iter([np.array([1.0]), np.array([1.0, np.nan])]), 4, None)
    assert ax.patches[0].get_data().values.sum() == 2
