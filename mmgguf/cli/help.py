"""Help texts that fit any terminal, without cut or broken words, in colour where there is colour.

Typer's own come in frames whose columns are folded and cut in narrow windows.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any, Final

import typer
from rich.cells import cell_len
from typer.core import TyperCommand, TyperGroup

from .printing import errors_as_one_line, style, terminal

__all__ = ["Command", "Commands"]

#: Prose is read in lines of at most so many characters, and beside its terms in no fewer than so many.
_WIDEST: Final = 100
_NARROWEST: Final = 36


class Command(TyperCommand):
    """A subcommand with such a help text."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_argument, arguments)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_help(self, ctx, []))


class Commands(TyperGroup):
    """The program with such a help text; its errors, and those of its subcommands, become one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:  # prints help texts
        with errors_as_one_line():
            return super().make_context(*args, **kwargs)

    def _main_shell_completion(self, *args: Any, **kwargs: Any) -> None:
        try:
            with errors_as_one_line():
                super()._main_shell_completion(*args, **kwargs)
        except typer.Exit as end:  # which nobody takes yet
            sys.exit(end.exit_code)

    def invoke(self, ctx: Any) -> Any:
        with errors_as_one_line():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, _paragraphs(self.commands[name].help)[0]) for name in self.list_commands(ctx)]
        formatter.write(_help(self, ctx, commands))


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "")]


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"[{name}]..." if parameter.nargs == -1 else name if parameter.required else f"[{name}]"


def _help(command: Any, ctx: Any, commands: list[tuple[str, str]]) -> str:
    console = terminal()
    width = min(console.width, _WIDEST)
    bold, cyan = style(console, "bold"), style(console, "cyan")
    pieces = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    usage = textwrap.fill(pieces, width - 7, **_WHOLE)
    lines = [f"{bold[0]}Usage:{bold[1]} " + usage.replace("\n", "\n       ")]
    lines += ["\n" + textwrap.fill(paragraph, width, **_WHOLE) for paragraph in _paragraphs(command.help)]
    records: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Commands": commands}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is None:
            continue
        if parameter.param_type_name == "argument":
            records["Arguments"].append((_argument(parameter), parameter.help or ""))
        else:
            records["Options"].append(record)
    for head, rows in records.items():
        if rows:
            lines.append(f"\n{bold[0]}{head}:{bold[1]}")
            lines += _definitions(rows, width, cyan)
    return "\n".join(lines) + "\n"


_WHOLE: Final[dict[str, Any]] = {"break_long_words": False, "break_on_hyphens": False}


def _definitions(rows: list[tuple[str, str]], width: int, colour: tuple[str, str]) -> list[str]:
    """Terms with their texts beside them, or where there is no room for that, below."""
    column = 2 + max(cell_len(term) for term, _ in rows) + 2
    beside = width - column >= _NARROWEST
    lines = []
    for term, text in rows:
        indent = " " * (column if beside else 6)
        filled = textwrap.fill(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, **_WHOLE)
        if beside:
            lines.append(f"  {colour[0]}{term}{colour[1]}{filled[2 + cell_len(term) :]}")
        else:
            lines += [f"  {colour[0]}{part}{colour[1]}" for part in textwrap.wrap(term, width - 2, **_WHOLE)] + [filled]
    return lines
