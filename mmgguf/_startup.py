"""Let Ctrl-C end the command line at once, without a traceback, while its imports run.

Imported first by the package, as numpy takes most of the time.  Only the command line is a program of ours: whoever
imports the library gets the `KeyboardInterrupt` that Python raises.
"""

from __future__ import annotations

import os
import sys

__all__ = ["is_program", "signal_default"]


def is_program() -> bool:
    """Whether this process runs ``mmgguf`` or ``python -m mmgguf``."""
    argv, given = getattr(sys, "argv", None) or [""], sys.orig_argv
    if argv[0] == "-m":  # as it is until the module is found, for which its package is imported
        return "-m" in given and given[given.index("-m") + 1 :][:1] == ["mmgguf"]
    return str(os.path.splitext(os.path.basename(argv[0]))[0]) == "mmgguf"


#: Whether Python's own handler of SIGINT waits to be put back.
signal_default = False

if is_program():
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal_default = True

# Here, and not where it is first needed: among modules of the package, for whatever reason, it takes 10 ms longer.
import numpy  # noqa: E402, F401
