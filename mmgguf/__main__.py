"""The entry point of ``mmgguf`` and ``python -m mmgguf``; without its extra, it says how to install it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from . import _startup
from .errors import MissingExtraError


def main() -> None:
    """Run the command line; without its extra, say how to install it and exit with status 1."""
    # Closed ones (`mmgguf ls FILE >&-`) are None.  What opens them again also keeps files from taking their numbers.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it stays open
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        from mmgguf.cli import app

        _end_by_exceptions()
        app(prog_name="mmgguf")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"mmgguf: {MissingExtraError(package, 'cli')}")
    except KeyboardInterrupt:
        # Pressed while the commands were still being imported; later it is the commands' own affair.
        sys.exit(130)


def _end_by_exceptions() -> None:
    """Let the signals that end a program end it by an exception, which removes temporary files on its way."""
    if _startup.signal_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):  # of which Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores it
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would disturb what cleans up
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
