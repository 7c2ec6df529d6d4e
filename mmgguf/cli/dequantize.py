"""``mmgguf dequantize``: GGUF to plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Dtype, File, Force, Names, function_for
from .progress import writing

__all__ = ["dequantize"]


def dequantize(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: *.npz, or *.safetensors.")],
    dtype: Annotated[Dtype, typer.Option(help="What blocks and floats become.")] = Dtype.FLOAT32,
    names: Names = None,
    force: Force = False,
) -> None:
    """Write all tensors as plain numbers, for numpy.load or for safetensors.

    Integers stay what they are. Memory does not grow with the model.
    """
    if output.suffix == ".npz" and dtype is Dtype.BFLOAT16:
        raise typer.BadParameter("an .npz archive cannot name bfloat16; float32 holds all its values")
    from .. import npz, safetensors

    function = function_for(output, {".npz": npz.save_file, ".safetensors": safetensors.save_file}, "--output")
    with writing(output, force, dequantizes=True) as progress:
        function(file, output, dtype=dtype.value, names=names or None, progress=progress)
