"""How Sphinx builds the site: ``sphinx-build -W docs docs/_build/html``."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the working tree, whether or not a version of it is installed
sys.path.insert(0, str(HERE))

import mmgguf  # noqa: E402

project = "mmgguf"
author = "The mmgguf developers"
copyright = "The mmgguf developers"
version = release = mmgguf.__version__

extensions = [
    "myst_nb",  # pages in MyST, and notebooks, which are executed
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "types_page",  # types_page.py, beside this file
    "explorer_page",
]
exclude_patterns = ["_build", "_generated"]
templates_path = ["_templates"]
default_role = "py:obj"  # `name` in a docstring is a link where there is such a name
html_theme = "furo"
html_title = "mmgguf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
os.environ["PYTHONPATH"] = str(HERE.parent)  # for the processes in which notebooks run
suppress_warnings = ["myst.header"]  # included pages (the changelog) begin with a heading of their own level

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the Parameters sections tell types, with shapes and units
autodoc_member_order = "bysource"
# Adapters are documented whether or not the framework is installed where the site is built.
autodoc_mock_imports = [
    name
    for name in (
        "torch",
        "jax",
        "safetensors",
        "gguf",
        "dask",
        "distributed",
        "fsspec",
        "numba",
        "typer",
        "rich",
        "bokeh",
    )
    if importlib.util.find_spec(name) is None
]
numpydoc_show_class_members = False  # the template of classes lists them
numpydoc_xref_param_type = False

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True


def _show_results(app: object, name: str, source: list[str]) -> None:
    """Put the page that `benchmarks.report` made into the page of measurements, with the charts of the site's theme."""
    if name != "measurements":
        return
    results = HERE.parent / "benchmarks" / "results"
    text = (results / "README.md").read_text("utf-8")
    # One level below the page's own heading.
    text = re.sub(r"^#", "##", text, flags=re.MULTILINE).replace(
        "](results.json)", "](https://github.com/mmgguf/mmgguf/blob/main/benchmarks/results/results.json)"
    )

    def images(match: re.Match[str]) -> str:
        return "\n".join(
            f"```{{image}} ../benchmarks/results/{match[2]}{dark}.svg\n:alt: {match[1]}\n:class: only-{theme}\n```\n"
            for dark, theme in (("", "light"), ("-dark", "dark"))
        )

    text = re.sub(r'<picture>.*?alt="([^"]*)" src="([\w-]+)\.svg".*?</picture>', images, text, flags=re.DOTALL)
    source[0] = source[0].replace("<!-- results -->", text)


def setup(app: object) -> None:
    app.connect("source-read", _show_results)  # type: ignore[attr-defined]
