"""From a file to the bytes of tensors, as in `test_access`, where the page cache has nothing of the file."""

from __future__ import annotations

import pytest

from .conftest import Case
from .files import Files
from .test_access import Work, measure_ways, work

__all__ = ["work"]


@pytest.mark.parametrize("pattern", ["one row", "one tensor", "all tensors"])
def test_cold(case: Case, files: Files, work: Work, pattern: str, why_not_cold: str | None) -> None:
    if why_not_cold is not None:
        pytest.skip(f"no cold cache here: {why_not_cold}")
    # Dropping a file from the cache takes longer than reading a row of it.
    measure_ways(case, files, work, pattern, "first touch", "cold", seconds=0.3 if pattern != "one row" else 0.1)
