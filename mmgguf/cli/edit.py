"""``mmgguf edit``: change the metadata of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..edit import Edit, plan_edit, recover
from ..errors import GGUFError
from ..format.keytypes import array_type, scalar_type
from ..format.metadata import Metadata
from ..format.values import TypedValue
from ..types import ValueType
from .printing import is_terminal, print_lines, print_note, print_table, safe, size_text
from .progress import progress_bar, refuse_existing

__all__ = ["edit"]

#: Names that ``key:type=value`` takes, in lower case.
_TYPES: Final[dict[str, ValueType]] = {
    **{type_.name.lower(): type_ for type_ in ValueType if type_ is not ValueType.ARRAY},
    **{f"u{bits}": ValueType[f"UINT{bits}"] for bits in (8, 16, 32, 64)},
    **{f"i{bits}": ValueType[f"INT{bits}"] for bits in (8, 16, 32, 64)},
    **{f"f{bits}": ValueType[f"FLOAT{bits}"] for bits in (32, 64)},
    "str": ValueType.STRING,
}
_FLOATS: Final = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
_BOOLS: Final = {"true": True, "false": False, "1": True, "0": False}


def edit(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A GGUF file; of a split model any shard, and the first is changed.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A new value; KEY:TYPE=VALUE changes the type. Repeatable."),
    ] = None,
    set_file: Annotated[
        list[str] | None,
        typer.Option(
            "--set-file",
            metavar="KEY=FILE",
            help="A new string: what FILE holds, but for a newline at its end. Repeatable.",
        ),
    ] = None,
    delete: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Leave a key out. Repeatable.")] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Give a value another key. Repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change FILE itself.")] = False,
    reserve: Annotated[
        int,
        typer.Option(
            metavar="BYTES", min=0, max=1 << 30, help="Room to leave for later edits, if the file is written anew."
        ),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUTPUT; change a file that a store knows by its digest.")
    ] = False,
    recover_: Annotated[bool, typer.Option("--recover", help="Only settle an edit that was interrupted.")] = False,
) -> None:
    """Change metadata; every type and the order stay, and so do the tensors.

    With --in-place only the header is written where it fits, and a crash leaves the old header or the new one; else the
    file is written anew. It says which of the two it did.

    TYPE is uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64, bool or string, and of arrays
    that of the elements in brackets: --set 'general.tags:[string]=["a", "b"]'. Arrays are JSON. Without TYPE a key
    keeps its type, and a new one gets that of the specification or else of the value.

    On a terminal it shows what will change and asks; into a pipe go the changes, kind, key, before and after separated
    by tabs.
    """
    if recover_:
        typer.echo(f"{safe(file)}: {recover(file)}")
        return
    if (output is None) != in_place and not dry_run:
        raise typer.BadParameter("one of them is needed", param_hint="'--output' / '--in-place'")
    if output is not None and in_place:
        raise typer.BadParameter("only one of them can be given", param_hint="'--output' / '--in-place'")
    if output is not None and not dry_run:  # before a question about what could not be written
        refuse_existing(output, force)
    try:
        plan = _plan(file, set_ or [], set_file or [], delete or [], rename or [], output, reserve, force)
    except GGUFError:
        raise
    except (TypeError, ValueError) as error:  # a value that its type does not hold
        raise typer.BadParameter(safe(error)) from None
    _show(plan)
    if not plan.changes and output is None:
        print_note("nothing changes")
        return
    if dry_run:
        print_note(_way(plan, done=False))
        return
    if is_terminal() and sys.stdin.isatty() and not yes and not typer.confirm(f"{_way(plan, done=False)} Go on?"):
        raise typer.Exit(1)
    with progress_bar(Path(plan.output).name, wanted=not plan.in_place) as progress:
        plan.apply(progress)
    if is_terminal():
        print_note(_way(plan, done=True))
    else:
        typer.echo(_way(plan, done=True), err=True)


def _plan(
    file: str,
    set_: list[str],
    set_file: list[str],
    delete: list[str],
    rename: list[str],
    output: Path | None,
    reserve: int,
    force: bool,
) -> Edit:
    import mmgguf

    recover(file)  # what a crash may have left would not open
    changes: dict[str, Any] = {}
    with mmgguf.open(file) as f:
        renamed = dict(_pair(text, "--rename") for text in rename)
        known = {renamed.get(key, key): key for key in f.metadata}
        for text in set_:
            key, value = _pair(text, "--set")
            key, type_name = _typed_key(key)
            changes[key] = _value(f.metadata, known, key, type_name, value)
        for text in set_file:
            key, name = _pair(text, "--set-file")
            # `show FILE KEY` ends with one, as editors do.
            changes[key] = TypedValue(Path(name).read_bytes().removesuffix(b"\n"), ValueType.STRING)
    return plan_edit(file, changes, remove=delete, rename=renamed, output=output, reserve=reserve, force=force)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{safe(text)!r}: must have the form KEY=VALUE", param_hint=option)
    return key, value


def _typed_key(key: str) -> tuple[str, str | None]:
    name, colon, type_name = key.rpartition(":")
    if not colon:
        return key, None
    plain = type_name.removeprefix("[").removesuffix("]")
    if plain.lower() not in _TYPES:
        raise typer.BadParameter(
            f"{safe(type_name)!r} is not a type; known are {', '.join(_TYPES)}", param_hint="--set"
        )
    return name, type_name


def _value(metadata: Metadata, known: Mapping[str, str], key: str, type_name: str | None, text: str) -> TypedValue:
    """A value from the command line, with the type that it was given, that the key has, or that suits it."""
    if type_name is not None:
        type_ = _TYPES[type_name.removeprefix("[").removesuffix("]").lower()]
        is_array = type_name.startswith("[")
    elif key in known:
        info = metadata.array_info(known[key])
        is_array, type_ = info is not None, info.element_type if info else metadata.type_of(known[key])
    else:
        is_array = text.startswith("[") and (array_type(key) is not None or scalar_type(key) is None)
        found = array_type(key) if is_array else scalar_type(key)
        type_ = _guess(text, is_array) if found is None else found
    if not is_array:
        return TypedValue(_scalar(text, type_, key), type_)
    items = _json(text, key)
    if not isinstance(items, list):
        raise typer.BadParameter(f"{key}: an array is JSON in brackets, got {text!r:.60}", param_hint="--set")
    return TypedValue(items, ValueType.ARRAY, type_)


def _guess(text: str, is_array: bool) -> ValueType:
    """The type of a value that neither the file nor the specification knows."""
    from ..format.values import infer_type

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if is_array and isinstance(value, list) and value:
        element_type = infer_type(value, "--set").element_type
        assert element_type is not None
        return element_type
    if isinstance(value, bool | int | float):
        return infer_type(value, "--set").type
    return ValueType.STRING


def _scalar(text: str, type_: ValueType, key: str) -> Any:
    if type_ is ValueType.STRING:
        return text
    try:
        if type_ is ValueType.BOOL:
            return _BOOLS[text.lower()]
        return float(text) if type_ in _FLOATS else int(text, 0)
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{safe(key)}: {text!r:.60} is no {type_.name}", param_hint="--set") from None


def _json(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{safe(key)}: {error}: {text!r:.60}", param_hint="--set") from None


def _show(plan: Edit) -> None:
    rows = [(change.kind, change.key, change.before, change.after) for change in plan.changes]
    if not is_terminal():
        print_lines(rows)
    elif rows:
        print_table(("change", "key", "before", "after"), rows, flexible="after")


def _way(plan: Edit, *, done: bool) -> str:
    verb, size = "Wrote" if done else "Writes", size_text(plan.nbytes)
    if plan.in_place:
        return f"{verb} the header of {safe(plan.path)} in place: {size}."
    why = " anew, because its header does not fit where it was" if plan.output == plan.path else ""
    return f"{verb} {safe(plan.output)}{why}: {size}."
