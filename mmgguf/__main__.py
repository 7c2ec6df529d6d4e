"""The entry point of ``mmgguf`` and ``python -m mmgguf``: works, or says how to make it work."""

from __future__ import annotations

import os
import sys

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

        app(prog_name="mmgguf")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"mmgguf: {MissingExtraError(package, 'cli')}")
    except KeyboardInterrupt:
        # Pressed while the commands were still being imported; later it is the commands' own affair.
        sys.exit(130)


if __name__ == "__main__":
    main()
