"""``mmgguf estimate``: the memory that models need, and which devices hold it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from ..errors import human_size
from ..estimates import Device, Estimate, Placement
from ..estimates import estimate as estimate_of
from .printing import is_terminal, print_json, print_lines, print_sentence, print_table, safe, shorten_middle, size_text

__all__ = ["estimate"]

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def estimate(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="GGUF files, or any shard of split models.")],
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="TOKENS", help="As 8192 or 8k,32k; what it was trained on by default."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", "-d", metavar="SIZE", help="Memory of a device, such as 24GiB; once for each."),
    ] = None,
    cache_type: Annotated[
        str, typer.Option(metavar="TYPE", help="What keys and values are stored as, as q8_0.")
    ] = "f16",
    cache_type_k: Annotated[str | None, typer.Option(metavar="TYPE", help="Of keys alone.")] = None,
    cache_type_v: Annotated[str | None, typer.Option(metavar="TYPE", help="Of values alone.")] = None,
    sequences: Annotated[int, typer.Option("--sequences", "-n", help="Sequences that are kept at a time.")] = 1,
    unified: Annotated[
        bool, typer.Option(help="One cache for all sequences, or one for each with its part of the context.")
    ] = True,
    flash_attention: Annotated[bool, typer.Option(help="Compute attention without holding its scores.")] = True,
    swa_full: Annotated[bool, typer.Option("--swa-full", help="Sliding layers keep all tokens.")] = False,
    ubatch: Annotated[int, typer.Option(metavar="TOKENS", help="Tokens that are computed together.")] = 512,
    reserve: Annotated[str, typer.Option(metavar="SIZE", help="Memory to leave free on each device.")] = "0",
    split: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="The devices' shares of the layers, such as 3,1; else what fits."),
    ] = None,
    cpu_moe: Annotated[bool, typer.Option("--cpu-moe", help="Experts stay in RAM.")] = False,
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="FILE", help="A projector or adapter to load beside.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything, sizes in bytes.")] = False,
) -> None:
    """Tell how much memory models need in llama.cpp, and what fits.

    Weights, cache, state and output are exact; the compute buffer (~) is an estimate.  Only headers are read.
    Into a pipe: file, context, weights, cache, state, output, compute and total for each file and context; with
    devices: file, context, device, layers, weights, cache with state, compute with output, total and free.
    """
    devices = [_size(text, "--device") for text in device or ()]
    spare = _size(reserve, "--reserve")
    shares = None if split is None else [_share(text) for text in split.split(",")]
    contexts: list[int | None] = [_tokens(part) for text in context or () for part in text.split(",")] or [None]
    options: dict[str, Any] = {
        "sequences": sequences,
        "cache_type_k": cache_type_k or cache_type,
        "cache_type_v": cache_type_v or cache_type,
        "flash_attention": flash_attention,
        "swa_full": swa_full,
        "ubatch": ubatch,
        "unified": unified,
        "add": add or (),
    }
    placing: dict[str, Any] = {"reserve": spare, "split": shares, "experts": not cpu_moe}
    rows: list[_Row] = []
    try:
        for file in files:
            first = estimate_of(file, context=contexts[0], **options)
            most = first.largest_context(devices, **placing) if devices else None
            for tokens in contexts:
                found = first if tokens is None else first.replace(context=tokens)
                placed = found.place(devices, **placing) if devices and found.total is not None else None
                rows.append(_Row(file, found, placed, most))
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise  # an error about a file, which has its own line
        raise typer.BadParameter(safe(error)) from None
    if json:
        print_json([row.to_json() for row in rows])
        return
    for warning in dict.fromkeys(f"{row.file}: {text}" for row in rows for text in row.found.warnings):
        typer.echo(f"mmgguf: warning: {safe(warning)}", err=True)
    (_print_placed if devices else _print_needs)(rows)
    if is_terminal():
        for sentence in _sentences(rows, devices):
            print_sentence(sentence)


class _Row:
    """A file and a context."""

    def __init__(self, file: str, found: Estimate, placed: Placement | None, most: int | None) -> None:
        self.file = file
        self.found = found
        self.placed = placed
        self.most = most

    @property
    def name(self) -> str:
        return os.path.basename(self.file) or self.file

    def to_json(self) -> dict[str, Any]:
        found, placed = self.found, self.placed
        parts = ("weights", "experts", "kv_cache", "recurrent_state", "output", "compute", "total")
        row: dict[str, Any] = {
            "file": self.file,
            "architecture": found.architecture,
            "context": found.context,
            "trained_context": found.trained_context,
            "cells": found.cells,
            **{part: getattr(found, part) for part in parts},
            "exact": sorted(found.exact),
            "warnings": list(found.warnings),
        }
        if placed is not None:
            row |= {
                "complete": placed.complete,
                "gpu_layers": placed.offloaded,
                "tensor_split": None if placed.split is None else list(placed.split),
                "devices": [_device_json(one) for one in placed.devices],
                "host": _device_json(placed.host),
            }
        if self.most is not None:
            row["largest_context"] = self.most
        return row


def _device_json(device: Device) -> dict[str, Any]:
    names = ("weights", "kept", "compute", "total", "capacity", "free")
    layers = {"first": device.layers.start, "count": len(device.layers)}
    return {"layers": layers, **{name: getattr(device, name) for name in names}}


# ---------------------------------------------------------------- what is printed


def _print_needs(rows: Sequence[_Row]) -> None:
    parts = ("weights", "kv_cache", "recurrent_state", "output", "compute", "total")
    if not is_terminal():
        print_lines(
            (row.file, row.found.context, *("?" if (n := getattr(row.found, p)) is None else n for p in parts))
            for row in rows
        )
        return
    heads = {"kv_cache": "KV cache", "recurrent_state": "state", "compute": "compute"}
    # Parts that no model has are not worth a column.
    shown = [p for p in parts if p in ("weights", "kv_cache", "total") or any(getattr(r.found, p) != 0 for r in rows)]
    columns = ["file", "context", *(heads.get(part, part) for part in shown)]
    cells = [[safe(row.name), f"{row.found.context:,}", *(_about(row.found, part) for part in shown)] for row in rows]
    print_table(
        columns,
        cells,
        right=columns[1:],
        flexible="file",
        fit=lambda number, width: shorten_middle(safe(rows[number].name), width),
        least=12,
        labelled=columns[1:],
    )


def _about(found: Estimate, part: str) -> str:
    nbytes = getattr(found, part)
    return ("~" if part in ("compute", "total") and nbytes is not None else "") + size_text(nbytes)


def _print_placed(rows: Sequence[_Row]) -> None:
    placed = [(row, row.placed) for row in rows if row.placed is not None]
    if not placed:
        _print_needs(rows)
        return
    lines: list[tuple[object, ...]] = []
    for row, placement in placed:
        named = [(f"device {number}", one) for number, one in enumerate(placement.devices)]
        for where, one in (*named, ("RAM", placement.host)):
            sizes = (one.weights, one.kept, one.compute, one.total)
            if is_terminal():
                free = "–" if one.free is None else _signed(one.free)
                texts = (*map(human_size, sizes), free)
                lines.append((row.name, where, f"{row.found.context:,}", len(one.layers), *texts))
            else:
                lines.append(
                    (row.file, row.found.context, where, len(one.layers), *sizes, "" if one.free is None else one.free)
                )
    if not is_terminal():
        print_lines(lines)
        return
    columns = ["file", "where", "context", "layers", "weights", "cache", "compute", "total", "free"]
    flexible = "file"
    if len({row.file for row, _ in placed}) == 1:
        columns, lines, flexible = columns[1:], [line[1:] for line in lines], "where"
    print_table(
        columns,
        lines,
        right=[column for column in columns if column not in ("file", "where")],
        flexible=flexible,
        fit=lambda number, width: shorten_middle(safe(lines[number][0]), width),
        least=12,
        labelled=[column for column in columns if column not in ("file", "where")],
    )


def _signed(nbytes: int) -> str:
    return human_size(nbytes) if nbytes >= 0 else f"-{human_size(-nbytes)}"


def _sentences(rows: Sequence[_Row], devices: Sequence[int]) -> list[str]:
    """What a person wants to know, for each file and context; then which of several files is the best that fits."""
    several = len({row.file for row in rows}) > 1
    together = " + ".join(map(human_size, devices))
    found = []
    for row in rows:
        who = f"{row.name}: " if several else ""
        tokens = f"{row.found.context:,}"
        if row.found.model.weights_only:
            found.append(f"{who}It is loaded beside a model (--add); its weights take {human_size(row.found.weights)}.")
        elif row.found.kv_cache is not None and row.found.total is None:
            found.append(f"{who}Its compute buffer is not known; what is takes {human_size(_known(row.found))}.")
        elif row.found.total is None:
            found.append(f"{who}What it keeps is not known; its weights take {human_size(row.found.weights)}.")
        elif row.placed is None:
            found.append(f"{who}With a context of {tokens} it takes about {human_size(row.found.total)}.")
        else:
            found.append(f"{who}{_sentence(row.placed, tokens, together)}{_most(row)}.")
    fitting = [row for row in rows if row.placed is not None and row.placed.complete]
    if several and devices:
        if fitting:
            best = max(fitting, key=lambda row: (row.found.weights, row.found.context))
            found.append(f"The best that fits is {best.name}, with a context of {best.found.context:,}.")
        else:
            found.append(f"None fits in {together} with all its layers.")
    return found


def _known(found: Estimate) -> int:
    """Bytes of the parts that are known."""
    return sum(getattr(found, part) for part in found.exact)


def _sentence(placed: Placement, tokens: str, together: str) -> str:
    if placed.complete:
        spare = sum(one.free or 0 for one in placed.devices)
        split = "" if placed.split is None else f", split {','.join(f'{share:g}' for share in placed.split)}"
        return f"With a context of {tokens} it fits in {together} with {human_size(spare)} to spare{split}"
    host = human_size(placed.host.total)
    if placed.offloaded and placed.fits:
        layers = f"{placed.offloaded} of {placed.count} layers"
        return f"With a context of {tokens}, {layers} fit in {together}, and {host} stay in RAM"
    return f"With a context of {tokens} it does not fit in {together}; all of it takes {host} of RAM"


def _most(row: _Row) -> str:
    if row.most is None:
        return ""
    if row.most == row.found.trained_context:
        return f"; the most context is the {row.most:,} it was trained on"
    return f"; the most context is {row.most:,}" if row.most else "; with no context do all layers fit"


# ---------------------------------------------------------------- what was typed


def _size(text: str, option: str) -> int:
    """Bytes of ``24GiB``, ``24G`` (the same), ``24GB`` (powers of ten) or ``1000``."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(i?b|b?)", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{safe(text)} is not a size such as 24GiB", param_hint=option)
    number, unit, suffix = match.groups()
    units = _UNITS if suffix.lower() == "b" else _BINARY
    return int(float(number) * units[unit.lower()])


def _tokens(text: str) -> int:
    """Tokens of ``8192`` or ``8k``."""
    match = re.fullmatch(r"(\d{1,10})(k?)", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{safe(text)} is not a number of tokens such as 8192 or 8k", param_hint="--context")
    return int(match[1]) * (1024 if match[2] else 1)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{safe(text)} is not a share such as 3", param_hint="--split") from None
