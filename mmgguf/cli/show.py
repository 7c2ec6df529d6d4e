"""``mmgguf show``: the metadata of a file, and what it adds up to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

import mmgguf

from ..errors import NameNotFoundError, shown
from ..file import GGUFFile
from ..format.metadata import Metadata
from ..types import FileType, ValueType, layout_of
from .look import show_found, show_tensor
from .ls import nbytes_of, type_name
from .options import File
from .printing import (
    ELLIPSIS,
    fold,
    human_count,
    is_terminal,
    print_json,
    print_lines,
    print_table,
    safe,
    shorten_end,
    size_text,
    terminal,
)

__all__ = ["show"]

#: How much of a string or an array is shown without ``--full``.
MAX_CHARACTERS = 120
MAX_ITEMS = 8
MAX_ITEM_CHARACTERS = 30


def show(
    file: File,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="Only the values of these keys, whole; 'llama.*' matches several."),
    ] = None,
    find: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only what holds TEXT: elements of the keys, or of all.")
    ] = None,
    tensor: Annotated[str | None, typer.Option(metavar="NAME", help="Numbers of a tensor.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="A:B", help="With --tensor: these rows.")] = None,
    block: Annotated[
        int | None, typer.Option(metavar="N", help="With --tensor: the fields of block N by name, and its numbers.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Long strings and arrays uncut.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a summary, the ggml types by share, and the metadata; or the values of some keys.

    Into a pipe: three parts with an empty line between, fields separated by tabs. With KEY only values: a string
    exactly as it is stored, escapes and all, and a newline; of an array each element in a line, strings in it with
    escapes. So 'show FILE tokenizer.chat_template > template.jinja' is the template. With --find and --tensor one line
    per match or row.

    In JSON, arrays of more than 1024 elements are {"type", "length"} unless KEY or --full is given, and numbers that
    JSON lacks are the strings "NaN", "Infinity" and "-Infinity".
    """
    with mmgguf.open(file) as model:
        if tensor is not None:
            show_tensor(model, tensor, rows, block, json)
            return
        if find is not None:
            chosen = _match(model.metadata, keys, os.fsdecode(model.path)) if keys else []
            show_found(model, chosen, find, full, json)
            return
        if keys:
            pairs = [_pair(model.metadata, key) for key in _match(model.metadata, keys, os.fsdecode(model.path))]
            if json:
                print_json({pair.key: pair.value if pair.count is None else _listed(pair.value) for pair in pairs})
            elif is_terminal():
                _print_values_for_people(pairs)
            else:
                _print_values(pairs)
            return
        shares = _shares(model)
        if json:
            print_json(_to_json(model, shares, full))
            return
        pairs = [_pair(model.metadata, key) for key in model.metadata]
        if is_terminal():
            _print_for_people(model, shares, pairs, full)
        else:
            _print_for_programs(model, shares, pairs, full)


def _match(metadata: Metadata, wanted: list[str], path: str) -> list[str]:
    """The keys, in the order in which they were asked for."""
    chosen: dict[str, None] = {}
    for key in wanted:
        fitting = [key] if key in metadata else [known for known in metadata if fnmatchcase(known, key)]
        if not fitting:
            raise NameNotFoundError(f"{path}: no metadata key {shown(key, quoted=True)}", key, metadata)
        chosen.update(dict.fromkeys(fitting))
    return list(chosen)


def _listed(values: Any) -> list[Any]:
    plain: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return plain


def _print_values(pairs: list[_Pair]) -> None:
    """For programs: whatever is in the file, and nothing else."""
    sys.stdout.flush()
    for pair in pairs:
        if pair.count is None:
            # Bytes that are not UTF-8 too, whatever the encoding of the output is.
            sys.stdout.buffer.write(pair.exact().encode("utf-8", "surrogateescape") + b"\n")
        else:
            sys.stdout.buffer.writelines(f"{safe(item)}\n".encode() for item in pair.value)
    sys.stdout.buffer.flush()


def _print_values_for_people(pairs: list[_Pair]) -> None:
    console = terminal()
    for pair in pairs:
        if len(pairs) > 1:
            console.print(Text(safe(pair.key), style="cyan"))
        lines = pair.exact().split("\n") if pair.count is None else [pair.full()]
        for line in lines:
            sys.stdout.write(safe(line) + "\n")  # uncut, so that it can be copied


@dataclass(slots=True)
class _Share:
    """What the tensors of one ggml type add up to; no bytes for an unknown type."""

    type: int
    tensors: int = 0
    elements: int = 0
    nbytes: int | None = 0


def _shares(model: GGUFFile) -> list[_Share]:
    """By ggml type, the one with most elements first."""
    shares: dict[int, _Share] = {}
    for tensor in model.values():
        share = shares.setdefault(int(tensor.type), _Share(tensor.type))
        nbytes = nbytes_of(tensor)
        share.tensors += 1
        share.elements += tensor.size
        share.nbytes = None if nbytes is None or share.nbytes is None else share.nbytes + nbytes
    return sorted(shares.values(), key=lambda share: -share.elements)


def _bits_per_weight(shares: list[_Share]) -> float | None:
    """Over all tensors whose size is known."""
    known = [(share.nbytes, share.elements) for share in shares if share.nbytes is not None]
    elements = sum(count for _, count in known)
    return 8 * sum(nbytes for nbytes, _ in known) / elements if elements else None


def _text_of(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _file_type(metadata: Metadata) -> str | None:
    # Not `GGUFFile.file_type`, which rightly raises on a value that is no integer: here the rest is still of
    # interest.
    value = metadata.get("general.file_type")
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return FileType(value).name
    except ValueError:
        return f"unknown({value})"


# ---------------------------------------------------------------- metadata as text


@dataclass(frozen=True, slots=True)
class _Pair:
    """A metadata pair, ready to be shown."""

    key: str
    type: str
    value: Any
    count: int | None

    def full(self) -> str:
        """The whole value."""
        if self.count is not None:
            return _items(self.value)
        return safe(self.exact())

    def brief(self, width: int | None = None) -> str:
        """The beginning, of a long string also its length; no wider than `width`, if that is given."""
        if self.count is not None:
            text = _items(self.value[:MAX_ITEMS], brief=True, more=self.count > MAX_ITEMS)
            return text if width is None else shorten_end(text, width)
        whole, limit = self.exact(), MAX_CHARACTERS if width is None else width
        # Only what may be shown is made safe: a value may have many megabytes.
        text = safe(whole[: limit + 1])
        note = f" ({len(whole):,} characters)" if len(whole) > max(2 * limit, MAX_CHARACTERS) else ""
        if limit < len(note) + 8:
            note = ""
        return shorten_end(text, limit - len(note)) + note

    def exact(self) -> str:
        """A value that is no array, as it is."""
        # The shortest text that is this number in its own precision: 1e-05, not 9.999999747378752e-06.
        return str(np.float32(self.value)) if self.type == ValueType.FLOAT32.name else str(self.value)


def _items(values: Any, *, brief: bool = False, more: bool = False) -> str:
    # Some at a time: the texts of a megabyte of small numbers would take fifty.
    starts = range(0, len(values), 4096)
    shown = [", ".join([_item(item, brief) for item in values[start : start + 4096]]) for start in starts]
    return f"[{', '.join(shown + [ELLIPSIS] * more)}]"


def _item(item: Any, brief: bool) -> str:
    if not isinstance(item, str):
        return str(item)  # a numpy scalar: the shortest text in its own precision
    cut = brief and len(item) > MAX_ITEM_CHARACTERS
    return f'"{safe(item[:MAX_ITEM_CHARACTERS])}{ELLIPSIS}"' if cut else f'"{safe(item)}"'


def _pair(metadata: Metadata, key: str) -> _Pair:
    info = metadata.array_info(key)
    if info is not None:
        return _Pair(key, f"{info.element_type.name}[{info.count}]", metadata[key], info.count)
    return _Pair(key, metadata.type_of(key).name, metadata[key], None)


# ---------------------------------------------------------------- output


def _summary(model: GGUFFile, shares: list[_Share]) -> Iterator[tuple[str, str]]:
    """For people and in pipes: labels and values."""
    bits = _bits_per_weight(shares)
    architecture = _text_of(model.metadata, "general.architecture")
    name = _text_of(model.metadata, "general.name")
    file_type = _file_type(model.metadata)
    yield "file", os.fsdecode(model.path)
    yield "format", f"GGUF {model.version}, {model.byte_order}-endian, alignment {model.alignment}"
    yield "architecture", "?" if architecture is None else architecture
    if name is not None:
        yield "name", name
    if file_type is not None:
        yield "file type", file_type
    yield "parameters", f"{human_count(model.parameter_count)} ({model.parameter_count:,})"
    if bits is not None:
        yield "bits per weight", f"{bits:.2f}"
    yield "size", f"{size_text(model.nbytes)} ({model.nbytes:,} bytes)"
    yield "tensors", str(len(model))
    if len(model.shards) > 1:
        for number, shard in enumerate(model.shards, 1):
            label = f"shard {number} of {len(model.shards)}"
            yield label, f"{os.path.basename(shard.path)}, {size_text(shard.file.size)}"


def _print_for_people(model: GGUFFile, shares: list[_Share], pairs: list[_Pair], full: bool) -> None:
    console = terminal()
    rows = list(_summary(model, shares))
    indent = max(len(label) for label, _ in rows) + 2
    width = max(console.width - indent, 8)
    for label, value in rows:
        # A name may be of any length, all else fits into a few lines.
        for number, line in enumerate(fold(shorten_end(safe(value), 4 * width), width)):
            text = Text(("" if number else label).ljust(indent), style="bold")
            console.print(text.append(line, style="not bold"))
    if shares:
        console.print()
        total = sum(share.elements for share in shares)
        print_table(
            ("type", "tensors", "parameters", "share", "size", "bits"),
            [
                (
                    type_name(share.type),
                    share.tensors,
                    human_count(share.elements),
                    f"{share.elements / total:.1%}" if total else "",
                    size_text(share.nbytes),
                    f"{layout.bpw:.4g}" if (layout := layout_of(share.type)) else "?",
                )
                for share in shares
            ],
            right=("tensors", "parameters", "share", "size", "bits"),
            flexible="type",
            labelled=("tensors", "parameters", "share", "size", "bits"),
        )
    if pairs:
        console.print()
        print_table(
            ("key", "value type", "value"),
            [(pair.key, pair.type, pair.full() if full else pair.brief()) for pair in pairs],
            flexible="value",
            fit=None if full else lambda number, width: pairs[number].brief(width),
        )


def _print_for_programs(model: GGUFFile, shares: list[_Share], pairs: list[_Pair], full: bool) -> None:
    print_lines(_summary(model, shares))
    print_lines([()])
    print_lines(
        (type_name(share.type), share.tensors, share.elements, "?" if share.nbytes is None else share.nbytes)
        for share in shares
    )
    print_lines([()])
    print_lines((pair.key, pair.type, pair.full() if full else pair.brief()) for pair in pairs)


def _to_json(model: GGUFFile, shares: list[_Share], full: bool) -> dict[str, Any]:
    total = model.parameter_count
    return {
        "path": model.path,
        "version": model.version,
        "byte_order": model.byte_order,
        "alignment": model.alignment,
        "nbytes": model.nbytes,
        "architecture": _text_of(model.metadata, "general.architecture"),
        "name": _text_of(model.metadata, "general.name"),
        "file_type": _file_type(model.metadata),
        "parameters": total,
        "bits_per_weight": _bits_per_weight(shares),
        "tensors": len(model),
        "types": [
            {
                "type": type_name(share.type),
                "type_id": int(share.type),
                "tensors": share.tensors,
                "parameters": share.elements,
                "nbytes": share.nbytes,
                "share": share.elements / total if total else None,
            }
            for share in shares
        ],
        "shards": [
            {"path": shard.path, "nbytes": shard.file.size, "tensors": len(shard.header.tensors)}
            for shard in model.shards
        ],
        "value_types": {key: _value_type(model.metadata, key) for key in model.metadata},
        "metadata": model.metadata.to_dict(None if full else 1024),
    }


def _value_type(metadata: Metadata, key: str) -> str:
    info = metadata.array_info(key)
    return metadata.type_of(key).name if info is None else f"{ValueType.ARRAY.name}[{info.element_type.name}]"
