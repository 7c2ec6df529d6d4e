"""Arguments and options that several subcommands have."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .printing import safe

__all__ = ["Dtype", "File", "Force", "Names", "Output", "function_for"]

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A GGUF file (any shard of a split model): path, URL or name.")
]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The file to write.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--names", "-n", metavar="GLOB", help="Only these tensors, as 'blk.0.*'; repeatable."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]


class Dtype(StrEnum):
    """What ``--dtype`` takes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


def function_for(target: Path, functions: dict[str, Callable[..., None]], hint: str) -> Callable[..., None]:
    """The function that writes files of the target's suffix."""
    if target.suffix not in functions:
        raise typer.BadParameter(f"{safe(target)}: must end in {' or '.join(functions)}", param_hint=hint)
    return functions[target.suffix]
