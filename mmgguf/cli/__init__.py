"""The command line: one module per subcommand, registered here.

A subcommand is a function with typer's annotations.  It raises what the library raises; `errors_as_one_line`
turns that into a line and an exit status for all of them.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .. import __version__
from ..dequant import BACKENDS
from .bench import bench
from .compare import compare
from .convert import convert
from .demo import demo
from .dequantize import dequantize
from .edit import edit
from .estimate import estimate
from .extract import extract
from .help import Command, Commands
from .ls import ls
from .merge import merge
from .models import models
from .printing import safe
from .report import report
from .show import show
from .split import split
from .stats import stats
from .verify import verify

__all__ = ["app"]


# Errors of usage in plain lines as well; and a traceback, if ever, as Python prints it.
app = typer.Typer(
    name="mmgguf",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmgguf {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    r"""Look into GGUF model files.

    A terminal gets tables; a pipe gets one line per item, fields separated by tabs.  Characters that could
    drive a terminal are always shown as escapes (\x1b, \u202e; \xff for a byte that is not UTF-8).
    """
    backend = os.environ.get("MMGGUF_BACKEND") or "numpy"
    if backend not in BACKENDS:
        raise typer.BadParameter(f"{safe(backend)} is not one of {', '.join(BACKENDS)}", param_hint="MMGGUF_BACKEND")


# In the order of the help text.
for _function in (
    ls,
    show,
    verify,
    compare,
    stats,
    report,
    convert,
    dequantize,
    edit,
    split,
    merge,
    extract,
    estimate,
    models,
    demo,
    bench,
):
    app.command(cls=Command)(_function)
