"""``mmgguf convert``: GGUF to safetensors and back, or byte order; ``mmgguf dequantize``: GGUF to plain numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .printing import print_note, safe, size_text
from .progress import progress_bar

__all__ = ["convert", "dequantize"]


class Dtype(StrEnum):
    """What ``--dtype`` takes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class ByteOrder(StrEnum):
    """What ``--byte-order`` takes."""

    LITTLE = "little"
    BIG = "big"


_Names = Annotated[
    list[str] | None,
    typer.Option("--names", "-n", metavar="GLOB", help="Only these tensors, as 'blk.0.*'; repeatable."),
]
_Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")]


def convert(
    source: Annotated[str, typer.Argument(help="A GGUF file (any shard of a split model), or a safetensors file.")],
    target: Annotated[Path, typer.Argument(help="The file to write: *.safetensors, or *.gguf.")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="What blocks and floats become; else blocks float32, floats as they are.")
    ] = None,
    names: _Names = None,
    byte_order: Annotated[
        ByteOrder | None, typer.Option(help="GGUF to GGUF of that byte order; blocks stay blocks.")
    ] = None,
    force: _Force = False,
) -> None:
    """Convert GGUF to safetensors, dequantizing blocks, safetensors to GGUF of plain types, or GGUF's byte order.

    The target's suffix tells the direction.  Metadata goes along; memory does not grow with the model.
    """
    if byte_order is not None:
        if dtype is not None or names:
            raise typer.BadParameter("takes neither --dtype nor --names", param_hint="--byte-order")
        from ..edit import convert_byte_order

        with progress_bar(target.name) as progress:
            convert_byte_order(source, target, byte_order=byte_order.value, force=force, progress=progress)
        print_note(f"wrote {target}: {size_text(os.path.getsize(target))}")
        return
    if Path(source).suffix == target.suffix:
        raise typer.BadParameter(
            f"both files are {target.suffix[1:]}: there is nothing to convert", param_hint="TARGET"
        )
    from .. import safetensors

    functions: dict[str, Callable[..., None]] = {".safetensors": safetensors.save_file, ".gguf": safetensors.to_gguf}
    _write(functions, source, target, dtype, names, force, "TARGET")


def dequantize(
    file: Annotated[str, typer.Argument(help="A GGUF file, or any shard of a split model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: *.npz, or *.safetensors.")],
    dtype: Annotated[Dtype, typer.Option(help="What blocks and floats become.")] = Dtype.FLOAT32,
    names: _Names = None,
    force: _Force = False,
) -> None:
    """Write all tensors as plain numbers, for numpy.load or for safetensors.

    Integers stay what they are.  Memory does not grow with the model.
    """
    if output.suffix == ".npz" and dtype is Dtype.BFLOAT16:
        raise typer.BadParameter("an .npz archive cannot name bfloat16; float32 holds all its values")
    from .. import npz, safetensors

    functions: dict[str, Callable[..., None]] = {".npz": npz.save_file, ".safetensors": safetensors.save_file}
    _write(functions, file, output, dtype, names, force, "--output")


def _write(
    functions: dict[str, Callable[..., None]],
    source: str,
    target: Path,
    dtype: Dtype | None,
    names: list[str] | None,
    force: bool,
    hint: str,
) -> None:
    function = functions.get(target.suffix)
    if function is None:
        raise typer.BadParameter(f"{safe(target)}: must end in {' or '.join(functions)}", param_hint=hint)
    if target.exists() and not force:
        raise FileExistsError(None, "is there already; --force replaces it", str(target))
    with progress_bar(target.name) as progress:
        function(source, target, dtype=None if dtype is None else dtype.value, names=names or None, progress=progress)
    print_note(f"wrote {target}: {size_text(os.path.getsize(target))}")
