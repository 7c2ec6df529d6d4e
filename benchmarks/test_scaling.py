"""Opening a file of 1, 2, 4 and 8 times as many tensors or strings: it should take that much longer, or less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mmgguf

from . import models
from .conftest import Case
from .files import Files
from .turns import Contestant

TIMES = (1, 2, 4, 8)


@pytest.mark.parametrize("what", ["tensors", "strings", "long strings"])
def test_open(case: Case, files: Files, what: str) -> None:
    paths, counts = zip(*(scaled_file(files, what, times) for times in TIMES), strict=True)

    def contestant(path: str) -> Callable[[], Contestant]:
        return lambda: Contestant(lambda: mmgguf.open(path), finish=lambda file: file.close())

    def check(name: str, file: mmgguf.GGUFFile) -> None:
        found = len(file) if what == "tensors" else file.metadata.array_info("tokenizer.ggml.tokens").count
        assert found == counts[TIMES.index(int(name[:-1]))]

    contestants = {f"{times}×": contestant(path) for times, path in zip(TIMES, paths, strict=True)}
    case.time(f"scaling/{what}", contestants, seconds=0.5, check=check, counts=list(counts))


def scaled_file(files: Files, what: str, times: int) -> tuple[str, int]:
    """A file with so many times the smallest number of tensors or strings."""
    if what == "tensors":
        count = files.sizes.tensors * times

        def make(path: Path) -> None:
            models.many_tensors(path, count)
    elif what == "strings":
        count = files.sizes.tokens // 2 * times

        def make(path: Path) -> None:
            models.vocabulary(path, count, 0)
    else:
        count = files.sizes.tokens // 16 * times

        def make(path: Path) -> None:
            models.long_strings(path, count)

    return files.get(f"{count}-{what.replace(' ', '-')}.gguf", make), count
