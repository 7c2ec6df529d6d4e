"""The tracked run on a page to explore: a directive, ``{results-explorer}``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bokeh
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks import explorer
from benchmarks.results import TRACKED, Results


class ResultsExplorer(SphinxDirective):
    """Two charts: all contestants of one case, and two contestants in all cases."""

    def run(self) -> list[nodes.Node]:
        for file in (str(TRACKED), __file__, explorer.__file__):
            self.env.note_dependency(file)
        results = Results.load()
        script, (case, pair) = explorer.embedded(results)
        scripts = "".join(f'<script src="_static/{name}"></script>' for name in explorer.SCRIPTS)
        return [
            nodes.paragraph("", f"The run: {results.date}, {results.machine['processor']}."),
            nodes.raw("", "<noscript><p>The charts need JavaScript.</p></noscript>", format="html"),
            nodes.rubric("", "All who did one thing"),
            nodes.raw("", f'<div class="explorer">{case}</div>', format="html"),
            nodes.rubric("", "Two of them, in everything that both did"),
            nodes.raw("", f'<div class="explorer">{pair}</div>{scripts}{script}', format="html"),
        ]


def _copy_scripts(app: Sphinx, error: Exception | None) -> None:
    # Beside the site's other files, so that the page fetches nothing from elsewhere.
    if error is None and app.builder.format == "html":
        for name in explorer.SCRIPTS:
            shutil.copy(Path(bokeh.__file__).parent / "server/static/js" / name, app.outdir / "_static" / name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("results-explorer", ResultsExplorer)
    app.connect("build-finished", _copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
