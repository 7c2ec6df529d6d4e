"""Two threads at one object, without chance: something happens between any two steps of a call, once for each step.

A race is a change by another thread between two bytecodes.  Instead of hoping for a thread switch there, the change is
made from a trace function, before the first, the second, … bytecode that the call executes in the given modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FrameType, ModuleType
from typing import Any

__all__ = ["steps", "with_change_at"]

_real = cache(os.path.realpath)


def with_change_at(
    step: int, call: Callable[[], Any], change: Callable[[], Any], modules: tuple[ModuleType, ...]
) -> int:
    """Run `call`, and `change` right before its bytecode number `step` in these modules; how many bytecodes it ran.

    An exception of `call` passes through.
    """
    files = {_real(str(module.__file__)) for module in modules}
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if event == "call":
            if _real(frame.f_code.co_filename) not in files:
                return None
            frame.f_trace_opcodes = True
        elif event == "opcode":
            if count == step:
                count += 1
                change()  # not traced itself: Python does not trace a trace function
            else:
                count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def steps(call: Callable[[], Any], modules: tuple[ModuleType, ...]) -> Iterator[int]:
    """The numbers of all bytecodes that `call` executes in these modules."""
    return iter(range(with_change_at(-1, call, lambda: None, modules)))
