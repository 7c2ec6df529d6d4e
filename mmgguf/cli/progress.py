"""The progress bar of the subcommands that take their time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .. import selection as walk
from .printing import safe

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str, wanted: bool = True) -> Iterator[walk.Progress | None]:
    """A bar of bytes on the standard error, where people see it; gives what the library calls with them."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    # Imported here: the other subcommands should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(safe(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
