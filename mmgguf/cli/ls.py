"""``mmgguf ls``: the tensors of a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

import mmgguf

from ..selection import select
from ..tensor import Tensor
from ..types import GGMLType, layout_of
from .options import File
from .printing import (
    is_terminal,
    print_json,
    print_lines,
    print_note,
    print_table,
    safe,
    shape_text,
    shorten_middle,
    size_text,
)

__all__ = ["ls", "nbytes_of", "print_tensors", "type_name"]


class SortKey(StrEnum):
    """What ``--sort`` takes."""

    NAME = "name"
    TYPE = "type"
    SHAPE = "shape"
    SIZE = "size"
    OFFSET = "offset"


def ls(
    file: File,
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="PATTERN", help="Only these names; 'blk.0.*' matches several.")
    ] = None,
    sort: Annotated[
        SortKey | None,
        typer.Option(help="Sort, names by the numbers in them, shapes by elements; else in the file's order."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", "-t", metavar="TYPE", help="Only this ggml type, by name or number; repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON array, one line per tensor.")] = False,
) -> None:
    """List the tensors: name, type, shape, size, offset.

    The offset is the byte in the file where the data begins. Into a pipe: one line per tensor, these five fields
    separated by tabs, the size in bytes.
    """
    types = {_parse_type(text) for text in type_ or ()}
    with mmgguf.open(file) as model:
        chosen = map(model.__getitem__, select(model, patterns or None))
        tensors = [tensor for tensor in chosen if not types or int(tensor.type) in types]
        if sort is not None:
            tensors.sort(key=_SORT_KEYS[sort])
        if reverse:
            tensors.reverse()
        if json:
            several = len(model.shards) > 1
            print_json([_to_json(tensor, several) for tensor in tensors])
            return
        print_tensors(tensors)
        known = sum(nbytes_of(tensor) or 0 for tensor in tensors)
        of_all = "" if len(tensors) == len(model) else f" of {len(model)}"
        print_note(f"{len(tensors)}{of_all} tensors, {size_text(known)}")


def type_name(type_: int) -> str:
    """The ggml type's name; ``unknown(99)`` for a type without one."""
    return type_.name if isinstance(type_, GGMLType) else f"unknown({int(type_)})"


def nbytes_of(tensor: Tensor) -> int | None:
    """The bytes of a tensor's data, None for an unknown type."""
    return None if layout_of(tensor.type) is None else tensor.nbytes


def print_tensors(tensors: Sequence[Tensor]) -> None:
    """The list of tensors: a table on a terminal, else lines."""
    if not is_terminal():
        print_lines(
            (t.name, type_name(t.type), shape_text(t.shape), "?" if (n := nbytes_of(t)) is None else n, t.file_offset)
            for t in tensors
        )
        return
    names = [safe(tensor.name) for tensor in tensors]
    print_table(
        ("name", "type", "shape", "size", "offset"),
        [
            (name, type_name(t.type), shape_text(t.shape), size_text(nbytes_of(t)), t.file_offset)
            for name, t in zip(names, tensors, strict=True)
        ],
        right=("shape", "size", "offset"),
        flexible="name",
        labelled=("offset",),
        fit=lambda number, width: shorten_middle(names[number], width),
    )


def _parse_type(text: str) -> int:
    if text.isdecimal() and len(text) <= len(str(1 << 32)):
        return int(text)
    try:
        return GGMLType[text.upper()]
    except KeyError:
        names = ", ".join(type_.name for type_ in GGMLType)
        raise typer.BadParameter(f"no ggml type {text!r}; there are {names}", param_hint="--type") from None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts blk.2 before blk.10.

    Numbers are compared as texts, by length first: a name may have more digits than `int` takes.
    """
    parts = re.split(r"([0-9]+)", name, maxsplit=64)
    # Every second part is a number.
    numbers = [part.lstrip("0") for part in parts]
    return [
        (0, len(number), number) if i % 2 else (1, 0, part)
        for i, (part, number) in enumerate(zip(parts, numbers, strict=True))
    ]


_SORT_KEYS: dict[SortKey, Callable[[Tensor], Any]] = {
    SortKey.NAME: lambda tensor: _natural(tensor.name),
    SortKey.TYPE: lambda tensor: type_name(tensor.type),
    SortKey.SHAPE: lambda tensor: (tensor.size, tensor.shape),
    SortKey.SIZE: lambda tensor: nbytes_of(tensor) or 0,
    SortKey.OFFSET: lambda tensor: (tensor.path, tensor.offset),
}


def _to_json(tensor: Tensor, with_path: bool) -> dict[str, Any]:
    known = isinstance(tensor.type, GGMLType)
    return {
        "name": tensor.name,
        "type": type_name(tensor.type) if known else None,
        "type_id": int(tensor.type),
        "shape": tensor.shape,
        "nbytes": nbytes_of(tensor),
        "offset": tensor.offset,
        "file_offset": tensor.file_offset,
    } | ({"path": tensor.path} if with_path else {})
