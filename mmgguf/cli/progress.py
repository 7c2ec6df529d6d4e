"""The progress bar of the subcommands that take their time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import human_size
from ..selection import Progress
from .printing import print_note, safe, shorten_middle, size_text

__all__ = ["progress_bar", "refuse_existing", "writing"]


def refuse_existing(target: Path, force: bool) -> None:
    """Raise FileExistsError where there is a file already, unless ``--force`` is given."""
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "already exists; --force replaces it", str(target))


@contextmanager
def writing(target: Path, force: bool, *, dequantizes: bool = False) -> Iterator[Progress | None]:
    """Write a file in this context: it must not exist, unless ``--force`` is given; its size is printed at the end."""
    refuse_existing(target, force)
    with progress_bar(target.name, dequantizes=dequantizes) as progress:
        yield progress
    print_note(f"wrote {target}: {size_text(os.path.getsize(target))}")


@contextmanager
def progress_bar(what: str, *, wanted: bool = True, dequantizes: bool = False) -> Iterator[Progress | None]:
    """Show bytes as a progress bar if the standard error is a terminal; gives the library's callback.

    Where `dequantizes`, it also says when it waits for kernels that are compiled.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    # Imported here: the other subcommands should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    narrow = console.width < 70

    class Bytes(ProgressColumn):
        """Bytes done, bytes in all and bytes per second, in the same units."""

        def render(self, task: Task) -> Text:
            if task.total is None:  # nothing has begun yet
                return Text()
            speed = None if narrow else task.finished_speed or task.speed
            done, total = human_size(int(task.completed)), human_size(int(task.total))
            return Text(f"{done} of {total}" + (f", {human_size(int(speed))}/s" if speed else ""), no_wrap=True)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(None, table_column=Column(ratio=1)),
        Bytes(Column(no_wrap=True)),
        TimeRemainingColumn(True),
    )
    with Bar(*columns[: 3 if narrow else 4], console=console, transient=True, expand=True) as bar:
        what = shorten_middle(safe(what), console.width // 4)
        task = bar.add_task(what, total=None)

        def describe(more: str) -> None:
            bar.update(task, description=what + more, refresh=True)

        with _compiling(describe) if dequantizes else nullcontext():
            yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _compiling(describe: Callable[[str], None]) -> Iterator[None]:
    """Say that a kernel is being compiled: at its first use on a machine that takes seconds, and then never again."""
    from ..dequant.dispatch import get_backend

    if get_backend() != "numba":
        yield
        return
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            describe(": compiling, this once")

        def on_end(self, event: Any) -> None:
            describe("")

    with event.install_listener("numba:compile", Listener()):
        yield
