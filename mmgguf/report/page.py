"""One self-contained page about a file: no network, and nothing of the file becomes markup or script.

Everything that comes from the file travels as data: compressed JSON in base64, of which the page's own script makes
text nodes.  The page's policy (Content-Security-Policy) lets exactly two scripts run, by their hashes: Bokeh's and the
page's own; it allows no connection, image, frame or form.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from ..file import GGUFFile, Source, opened
from ..format.target import replacing
from ..inspect import ValueComparison, compare_values, stats, verify
from ..selection import Progress
from .charts import charts
from .data import METRICS, collect

__all__ = ["render", "write_page"]


def write_page(
    source: Source,
    output: str | os.PathLike[str],
    *,
    other: Source | None = None,
    statistics: bool = True,
    progress: Progress | None = None,
    force: bool = False,
) -> None:
    """Write a page about a file that any browser opens from disk.

    It shows the file as a map, types by share and by layer, bits per weight along the depth, statistics as a heat map,
    histograms, outliers, the tokenizer and all metadata with search, the chat template, and what `mmgguf.verify` finds.

    Parameters
    ----------
    source : path-like or GGUFFile
        The model; its shards together.
    output : path-like
        The HTML file to write.
    other : path-like or GGUFFile, optional
        Another model, such as another quantization: how far its numbers lie from this one's.
    statistics : bool, default True
        Look at every weight.  Without, the page is made from the header alone.
    progress : callable, optional
        Called with the stored bytes that were looked at and those in all, for the statistics and then the comparison.
    force : bool, default False
        Replace a file that is there.

    Raises
    ------
    MissingExtraError
        Bokeh is not installed.
    FileExistsError
        `output` is there.
    GGUFError, OSError
        A file cannot be read; what the operating system refuses.

    Examples
    --------
    >>> write_page("model.gguf", "report.html")
    """
    target = os.fsdecode(output)
    if not force and os.path.lexists(target):
        raise FileExistsError(None, "already exists; force replaces it", target)
    _bokeh_script()  # before a long look at the weights
    with opened(source) as f:
        found = stats(f, progress=progress) if statistics else {}
        comparison, name = None, None
        sources = [shard.path for shard in f.shards]
        if other is not None:
            with opened(other) as g:
                comparison, name = compare_values(f, g, progress=progress), g.path
                sources += [shard.path for shard in g.shards]
        html = render(f, found, comparison, name)
    with replacing(target, [path for path in sources if os.path.exists(path)]) as file:
        file.write(html.encode())


def render(
    f: GGUFFile, statistics: dict[str, Any], comparison: ValueComparison | None = None, other: str | None = None
) -> str:
    """The page as text; see `write_page`."""
    from bokeh.embed import json_item

    try:
        findings = verify(f)
    except (OSError, TypeError):  # its file is gone, or was never a local one
        findings = None
    figures = charts(f, statistics, comparison)
    data = collect(f, findings, statistics, comparison, other)
    data["metrics"] = METRICS
    data["charts"] = {place: json_item(figure) for place, figure in figures.items()}
    packed = base64.b64encode(
        gzip.compress(json.dumps(data, allow_nan=False, default=str).encode(), 9, mtime=0)
    ).decode()
    style, script, frame = (_asset(name) for name in ("page.css", "page.js", "page.html"))
    bokeh = _bokeh_script()
    policy = (
        f"default-src 'none'; script-src {_hash(bokeh)} {_hash(script)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "data": packed, "bokeh": bokeh, "script": script}
    # Not `str.format`: Bokeh has braces of its own.  What is put in is not looked at again.
    pieces = frame.split("%%")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _bokeh_script() -> str:
    try:
        import bokeh
    except ModuleNotFoundError:
        raise MissingExtraError("bokeh", "report") from None
    text = (Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js").read_text("utf-8")
    # A browser hashes the text as it reads it: with plain newlines, and up to the end of the element.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in text
    return text


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
