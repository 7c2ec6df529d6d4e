"""``mmgguf convert``: GGUF to safetensors and back, or GGUF of the other byte order."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Dtype, Force, Names, function_for
from .progress import writing

__all__ = ["convert"]


class ByteOrder(StrEnum):
    """What ``--byte-order`` takes."""

    LITTLE = "little"
    BIG = "big"


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A GGUF file (any shard of a split model), or a safetensors file."),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The file to write: *.safetensors, or *.gguf.")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="What blocks and floats become; else blocks float32, floats as they are.")
    ] = None,
    names: Names = None,
    byte_order: Annotated[
        ByteOrder | None, typer.Option(help="GGUF to GGUF of that byte order; blocks stay blocks.")
    ] = None,
    force: Force = False,
) -> None:
    """Convert GGUF to safetensors, dequantizing blocks, safetensors to GGUF of plain types, or GGUF's byte order.

    The target's suffix tells the direction. Metadata goes along; memory does not grow with the model. TARGET is written
    beside its place under a hidden name (.mmgguf-*.tmp) and renamed when it is whole; should the process be killed on
    the way, the next one that writes TARGET removes that file.
    """
    if byte_order is not None:
        if dtype is not None or names:
            raise typer.BadParameter("takes neither --dtype nor --names", param_hint="--byte-order")
        from ..edit import convert_byte_order

        with writing(target, force) as progress:
            convert_byte_order(source, target, byte_order=byte_order.value, force=force, progress=progress)
        return
    if Path(source).suffix == target.suffix:
        raise typer.BadParameter(
            f"both files are {target.suffix[1:]}: there is nothing to convert", param_hint="TARGET"
        )
    from .. import safetensors

    function = function_for(target, {".safetensors": safetensors.save_file, ".gguf": safetensors.to_gguf}, "TARGET")
    with writing(target, force, dequantizes=target.suffix != ".gguf") as progress:
        function(source, target, dtype=dtype and dtype.value, names=names or None, progress=progress)
