"""Parts of a file for ``mmgguf show``: what holds a text, rows and blocks of one tensor."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np
import typer

from ..dequant import dequantize
from ..errors import shown
from ..file import GGUFFile
from ..format.strings import StringArray
from .printing import is_terminal, print_json, print_lines, print_table, safe, shorten_end, terminal

__all__ = ["show_found", "show_tensor"]

#: Rows and columns of a tensor that are shown unless others are asked for.
ROWS: Final = 4
COLUMNS: Final = 8
#: Elements of an array that are shown without ``--full``, and matches of ``--find``.
MAX_ELEMENTS: Final = 1000


def show_found(model: GGUFFile, keys: list[str], find: str, full: bool, json: bool) -> None:
    """The elements of some keys' arrays, and strings, that hold a text; without keys those of all."""
    found: list[tuple[str, int | None, Any]] = []
    more = 0
    for key in keys or model.metadata:
        value = model.metadata[key]
        if not isinstance(value, np.ndarray | StringArray):
            if find in str(value) or (not keys and find in key):
                found.append((key, None, value))
            continue
        limit = len(value) if full else MAX_ELEMENTS
        for index, item in enumerate(value if isinstance(value, StringArray) else value.tolist()):
            if find in str(item):
                if limit == 0:
                    more += 1
                    continue
                limit -= 1
                found.append((key, index, item))
    if json:
        print_json([{"key": key, "index": index, "value": value} for key, index, value in found])
        return
    rows = [(key, "" if index is None else index, value) for key, index, value in found]
    if len(keys) == 1:
        rows = [row[1:] for row in rows]  # type: ignore[misc]  # shorter ones
    if not is_terminal():
        print_lines(rows)
    else:
        columns = ("index", "value") if len(keys) == 1 else ("key", "index", "value")
        print_table(columns, rows, right=("index",), flexible="value")
    if more and is_terminal():
        typer.echo(f"… and {more} more; --full shows them")


def show_tensor(model: GGUFFile, name: str, rows: str | None, block: int | None, json: bool) -> None:
    """Numbers of some rows of a tensor, or the fields of one block by name."""
    tensor = model[name]
    if block is not None:
        _show_block(tensor, block, json)
        return
    values = tensor[_rows(rows, len(tensor)) if tensor.ndim else ()]
    array = np.asarray(values)
    flat = array.reshape(math.prod(array.shape[:-1]), array.shape[-1] if array.ndim else 1)
    if json:
        print_json({"name": name, "type": _type_name(tensor), "shape": list(tensor.shape), "values": values.tolist()})
        return
    if not is_terminal():
        print_lines(row.tolist() for row in flat)
        return
    terminal().print(safe(f"{shown(name)}: {_type_name(tensor)} {tensor.shape}"), highlight=False)
    few = flat[:, :COLUMNS]
    columns = tuple(map(str, range(few.shape[1])))
    cells = [
        (number, *(f"{float(x):.5g}" for x in row), "…" if flat.shape[1] > COLUMNS else "")
        for number, row in enumerate(few[:200])
    ]
    print_table(("row", *columns, "more"), cells, right=("row", *columns), flexible="more", least=1)


def _show_block(tensor: Any, number: int, json: bool) -> None:
    data = tensor.data.reshape(-1)
    if not 0 <= number < len(data):
        raise typer.BadParameter(f"{number}: the tensor has {len(data)} blocks", param_hint="--block")
    block = data[number]
    fields = {name: block[name].tolist() for name in block.dtype.names} if block.dtype.names else {"": block.tolist()}
    size = tensor.layout.block_size
    chosen = data[number : number + 1]
    values = (chosen if size == 1 and chosen.dtype.kind in "iu" else dequantize(chosen, tensor.type)).tolist()
    if json:
        print_json({"name": tensor.name, "type": _type_name(tensor), "block": number, **fields, "values": values})
    elif is_terminal():
        rows = [(name or "value", shorten_end(str(value), 4000)) for name, value in fields.items()]
        rows.append(("numbers", " ".join(f"{value:.5g}" for value in values)))
        print_table(("field", "value"), rows, flexible="value")
    else:
        print_lines([*fields.items(), ("values", values)])


def _type_name(tensor: Any) -> str:
    return str(getattr(tensor.type, "name", int(tensor.type)))


def _rows(text: str | None, length: int) -> slice:
    if text is None:
        return slice(0, min(ROWS, length))
    match = re.fullmatch(r"(-?[0-9]*)(:?)(-?[0-9]*)", text)
    if match is None or text in ("", "-"):
        raise typer.BadParameter(f"{text!r:.40}: must be a number, or a range such as 0:2", param_hint="--rows")
    try:
        start = int(match[1]) if match[1] else None
        stop = int(match[3]) if match[3] else None
    except ValueError:
        raise typer.BadParameter(f"{text!r:.40}: must be a range such as 0:2", param_hint="--rows") from None
    if match[2]:
        return slice(start, stop)
    assert start is not None
    if not -length <= start < length:
        raise typer.BadParameter(f"{start}: the tensor has {length} rows", param_hint="--rows")
    return slice(start % length, start % length + 1)
