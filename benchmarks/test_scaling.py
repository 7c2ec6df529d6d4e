"""Opening a file of 1, 2, 4 and 8 times as many tensors or strings: it should take that much longer, or less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mmgguf

from . import models
from .conftest import Files, Timed


@pytest.mark.parametrize("times", [1, 2, 4, 8])
@pytest.mark.parametrize("what", ["tensors", "strings", "long strings"])
def test_open(benchmark: Any, timed: Timed, files: Files, what: str, times: int) -> None:
    path, count = scaled_file(files, what, times)
    benchmark.group = f"scaling: open, by number of {what}"
    benchmark.extra_info.update(what=what, count=count, times=times)
    file = timed(lambda: mmgguf.open(path), finish=lambda file: file.close())
    if what == "tensors":
        assert len(file) == count
    else:
        assert file.metadata.array_info("tokenizer.ggml.tokens").count == count


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
