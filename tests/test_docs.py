"""The code of the README and of the documentation runs as it is printed.

Each Python block is a script of its own, so it has its own imports, in a folder that holds what the README tells how to
get: ``model.gguf`` (SmolLM2-135M).  The results below lines with ``>>>`` are checked.  A block of the README has a
fresh folder; a page of ``docs/`` keeps its folder, so that a block may read the file that an earlier one wrote.

Blocks of the language ``sh`` run, too, but for those that install or download: these are for ``.ci/run``.  A block
after a line ``<!-- not run: REASON -->`` is skipped with that reason.
"""

from __future__ import annotations

import doctest
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mmgguf

parsers = pytest.importorskip("sybil.parsers.myst")
Document = pytest.importorskip("sybil.document").Document

ROOT = Path(__file__).parents[1]
# Blocks that need one of these are skipped where it is not installed.
OPTIONAL = {
    "bokeh",
    "dask",
    "diffusers",
    "distributed",
    "fsspec",
    "gguf",
    "jax",
    "peft",
    "ray",
    "safetensors",
    "torch",
    "transformers",
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")
# What .ci/run does, what needs a package registry, and what waits for a person.
INSTALLS = re.compile(r"\b(apt-get|git|lint-imports|pip|pre-commit|pytest|ruff|sphinx-build|twine)\b|-m venv|\.ci/run")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    skip: str | None

    @property
    def is_slow(self) -> bool:
        """Programs that start, measure and generate take their time."""
        return self.language == "sh" or ".generate(" in self.code or "compare_values(" in self.code

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    languages = {language: parsers.CodeBlockParser(language, lambda example: None) for language in ("python", "sh")}
    document = Document.parse(str(page), *languages.values())
    blocks = []
    for example in document.examples():
        language = next(name for name in languages if example.region.lexemes["arguments"] == name)
        skip = NOT_RUN.search(document.text[: example.start])
        blocks.append(Block(page, example.line, language, str(example.parsed), skip and skip[1]))
    return blocks


# Cells of a notebook go on from each other; they are executed when the site is built.
BLOCKS = [block for page in PAGES if "file_format: mystnb" not in page.read_text() for block in blocks_of(page)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The folders of the pages of ``docs/`` that have one already."""
    return {}


@pytest.fixture
def folder(
    request: pytest.FixtureRequest, folders: dict[Path, Path], smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder of a block, with the model and with a ``.venv/bin`` that has this Python."""
    page = request.getfixturevalue("block").page
    if page in folders:
        path = folders[page]
    else:
        path = request.getfixturevalue("tmp_path_factory").mktemp("docs")
        if page.parent != ROOT:
            folders[page] = path
        (path / "model.gguf").symlink_to(smollm2)
        (path / "examples").symlink_to(ROOT / "examples")
        bin_ = path / ".venv" / "bin"
        bin_.mkdir(parents=True)
        for name, module in {"python": "", "mmgguf": "-m mmgguf"}.items():
            (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            (bin_ / name).chmod(0o755)
    monkeypatch.chdir(path)
    return path


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
# peft asks transformers in a way that is about to go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.slow] * block.is_slow, id=block.id) for block in BLOCKS],
)
def test_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.skip:
        pytest.skip(block.skip)
    try:
        if block.language == "sh":
            run_shell(block.code, folder, monkeypatch)
        elif block.code.startswith(">>>"):
            run_session(block)
        else:
            run_script(block.code, folder)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def run_script(code: str, folder: Path) -> None:
    script = folder / "block.py"
    script.write_text(code)
    runpy.run_path(str(script), run_name="__main__")


def run_session(block: Block) -> None:
    test = doctest.DocTestParser().get_doctest(block.code, {"__name__": "__main__"}, block.id, block.id, block.line)
    try:
        doctest.DebugRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, clear_globs=False)
    except doctest.UnexpectedException as unexpected:
        raise unexpected.exc_info[1] from None
    except doctest.DocTestFailure as failure:
        pytest.fail(f"{failure.example.source}gave {failure.got}instead of {failure.example.want}", pytrace=False)
    assert test.examples


def run_shell(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if INSTALLS.search(code):
        pytest.skip("installs, downloads or tests something")
    monkeypatch.setenv("PATH", f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    # The mmgguf that these tests import, also where it is the working tree's.
    monkeypatch.setenv("PYTHONPATH", str(Path(mmgguf.__file__).parents[1]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
