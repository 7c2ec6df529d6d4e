"""``mmgguf models``: what the stores of this machine have."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

import mmgguf

from ..errors import GGUFError
from ..storage.stores import StoredModel, list_stores
from ..types import FileType
from .printing import (
    human_count,
    is_terminal,
    print_json,
    print_lines,
    print_note,
    print_table,
    safe,
    shorten_middle,
    size_text,
)

__all__ = ["models"]


class Store(StrEnum):
    """What ``--store`` takes."""

    OLLAMA = "ollama"
    HF = "hf"
    LLAMACPP = "llama.cpp"
    LMSTUDIO = "lmstudio"


@dataclass(slots=True)
class _Row:
    """A model with what its header says."""

    model: StoredModel
    digest: str | None
    size: int | None = None
    architecture: str | None = None
    parameters: int | None = None
    file_type: str | None = None
    problem: str | None = None
    copies: int = 1
    file: tuple[int, int] | None = None


def models(
    store: Annotated[
        list[Store] | None,
        typer.Option(metavar="STORE", help="Only ollama, hf, llama.cpp or lmstudio; repeatable."),
    ] = None,
    hash_: Annotated[
        bool, typer.Option("--hash", help="Read files of the same size for their digests where the store has none.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON array, one line per model.")] = False,
) -> None:
    """List the models in the stores of this machine: ollama, Hugging Face, llama.cpp, LM Studio.

    Name, architecture, parameters, file type, size, how many copies there are, and where.  Into a pipe: one line per
    model, these fields separated by tabs, the size in bytes.  A file that cannot be opened is a line with the reason.
    The names can be opened as they are.
    """
    rows = [_row(model) for model in list_stores(None if store is None else [one.value for one in store])]
    if hash_:
        _hash(rows)
    _count(rows)
    if json:
        print_json([_to_json(row) for row in rows])
    elif not is_terminal():
        print_lines(_cells(row, size="?" if row.size is None else str(row.size)) for row in rows)
    elif not rows:
        print_note("no models in the stores of this machine")
    else:
        names = [safe(row.model.name) for row in rows]
        print_table(
            ("name", "architecture", "parameters", "type", "size", "copies", "where"),
            [_cells(row, size=size_text(row.size)) for row in rows],
            right=("parameters", "size", "copies"),
            flexible="name",
            labelled=("copies",),
            fit=lambda number, width: shorten_middle(names[number], width),
        )
        known = {row.file: row.size or 0 for row in rows if row.file is not None}
        print_note(f"{len(rows)} models, {size_text(sum(known.values()))}")


def _row(model: StoredModel) -> _Row:
    row = _Row(model, model.digest, problem=model.problem)
    if model.path is None:
        return row
    try:
        status = os.stat(model.path)
        row.size, row.file = status.st_size, (status.st_dev, status.st_ino)
        header = mmgguf.read_header(model.path)
        row.architecture = header.metadata.get_str("general.architecture", None)
        number = header.metadata.get_int("general.file_type", None)
        if number is not None:
            row.file_type = FileType(number).name if number in list(FileType) else f"unknown({number})"
        row.parameters = sum(info.n_elements for info in header.tensors.values())
    except OSError as error:
        row.problem = error.strerror or str(error)
    except GGUFError as error:
        row.problem = str(error).removeprefix(f"{model.path}: ")
    return row


def _hash(rows: list[_Row]) -> None:
    """Digests of files that have none, where another one has the same size: only those may be duplicates."""
    sizes = Counter(size for size in {row.file: row.size for row in rows if row.file}.values())
    for row in rows:
        if row.digest is None and row.file is not None and sizes[row.size] > 1 and row.model.path is not None:
            with open(row.model.path, "rb") as file:
                row.digest = hashlib.file_digest(file, "sha256").hexdigest()


def _count(rows: list[_Row]) -> None:
    """How many files have the content of each; links to one file are one."""
    files: dict[str, set[Any]] = {}
    for row in rows:
        if row.digest is not None and row.file is not None:
            files.setdefault(row.digest, set()).add(row.file)
    for row in rows:
        if row.digest is not None:
            row.copies = max(1, len(files.get(row.digest, ())))


def _cells(row: _Row, size: str) -> tuple[object, ...]:
    if row.problem is not None:
        return (row.model.name, "?", "?", "?", size, row.copies, row.problem)
    parameters = "?" if row.parameters is None else human_count(row.parameters) if is_terminal() else row.parameters
    where = row.model.path or "?"
    return (row.model.name, row.architecture or "?", parameters, row.file_type or "?", size, row.copies, where)


def _to_json(row: _Row) -> dict[str, Any]:
    return {
        "store": row.model.store,
        "name": row.model.name,
        "architecture": row.architecture,
        "parameters": row.parameters,
        "file_type": row.file_type,
        "nbytes": row.size,
        "path": row.model.path,
        "digest": row.digest,
        "copies": row.copies,
        "problem": row.problem,
    }
