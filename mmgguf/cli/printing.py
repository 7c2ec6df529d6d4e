"""Everything that the subcommands share about output: safe text, sizes, tables, JSON and errors.

To a terminal go tables that fit it.  Into a pipe goes one line per item, its fields separated by tabs,
unstyled and uncut, with sizes in bytes.  Names and metadata come from a file that nobody vouches for:
whatever could drive a terminal, or show a text other than the one that is there, is written as an escape
(`safe`).
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import typer
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.text import Text

from ..errors import GGUFError, human_size

__all__ = [
    "ELLIPSIS",
    "UNUSABLE",
    "errors_as_one_line",
    "fold",
    "human_count",
    "is_terminal",
    "print_json",
    "print_lines",
    "print_note",
    "print_sentence",
    "print_table",
    "safe",
    "shape_text",
    "shorten_end",
    "shorten_middle",
    "size_text",
    "style",
    "terminal",
]

ELLIPSIS: Final = "…"


def safe(text: object) -> str:
    r"""The text with everything escaped that a terminal would not show as itself.

    Control characters, C1 and the escape character among them, bidirectional and other invisible marks, line
    separators and unassigned code points become ``\x1b``, ``\u202e`` and the like.  A byte that was not UTF-8
    becomes ``\xff``; the control characters from U+0080 up are written ``\u0080``, so that the two differ.
    A text that has such a backslash of its own looks the same.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return shown.translate({ord(char): _escape(char) for char in set(shown) if not char.isprintable()})


_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT_ESCAPES.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten_middle(text: str, width: int) -> str:
    """The text cut to `width` columns of a terminal, an ellipsis in place of its middle.

    Names of tensors differ at both ends: the layer's number in front, the role behind.
    """
    if _fits(text, width):
        return text
    tail = (width - 1) // 2
    head = width - 1 - tail
    end = ""
    for char in reversed(text[-_MARKS * width :]):
        if cell_len(char + end) > tail:
            break
        end = char + end
    return _start(text, head) + ELLIPSIS + end


def shorten_end(text: str, width: int) -> str:
    """The text cut to `width` columns of a terminal, an ellipsis at its end."""
    return text if _fits(text, width) else _start(text, width - 1) + ELLIPSIS


#: Characters for each column, at most: combining marks take no room, and a name may have a million of them.
_MARKS: Final = 4


def _fits(text: str, width: int) -> bool:
    return len(text) <= _MARKS * max(width, 0) and cell_len(text) <= width


def _start(text: str, width: int) -> str:
    return set_cell_size(text[: max(width, 0)], min(width, cell_len(text[:width]))).rstrip()


def fold(text: str, width: int) -> list[str]:
    """A text in lines no wider than that: between words, as far as they fit."""
    if len(text) > _LONGEST_PROSE or cell_len(text) != len(text):
        return chop_cells(text, width)
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


#: Characters.  What is longer is data, and folding between words takes ten times as long.
_LONGEST_PROSE: Final = 2000


def size_text(size: int | None) -> str:
    """Bytes for people: ``1.5 MiB``; ``?`` where the size is unknown."""
    return "?" if size is None else human_size(size)


def human_count(count: int) -> str:
    """A count for people: ``134.5 M``."""
    if count < 1000:
        return str(count)
    value, units = count / 1000, iter("KMBT")
    unit = next(units)
    while value >= 999.95 and unit != "T":
        value /= 1000
        unit = next(units)
    return f"{value:.1f} {unit}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as one word: ``576x1536``."""
    return "x".join(map(str, shape)) if shape else "scalar"


# ---------------------------------------------------------------- where it goes


def is_terminal() -> bool:
    """Whether people read the standard output, rather than programs."""
    return sys.stdout.isatty()


def terminal() -> Console:
    """A console on the standard output that takes every text literally: no markup, no emoji codes."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False)


def print_lines(rows: Iterable[Iterable[object]]) -> None:
    """One line per row for programs: safe fields, separated by tabs."""
    write = sys.stdout.write
    for row in rows:
        write("\t".join(map(safe, row)) + "\n")


def print_sentence(text: str) -> None:
    """A sentence: wrapped between words on a terminal, one line into a pipe."""
    if is_terminal():
        terminal().print(Text(safe(text)))
    else:
        sys.stdout.write(safe(text) + "\n")


def print_note(text: str) -> None:
    """A sentence for people, on the terminal only: a program that reads a pipe has no use for it."""
    if is_terminal():
        terminal().print(Text(safe(text), style="dim"))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Iterable[str] = (),
    flexible: str,
    fit: Callable[[int, int], str] | None = None,
    least: int = 20,
    labelled: Container[str] = (),
) -> None:
    """A table for people, as wide as the terminal at most.

    Parameters
    ----------
    columns : sequence of str
        The heads.
    rows : sequence of sequences
        The cells; they are made safe here.
    right : iterable of str
        Columns that are aligned to the right.
    flexible : str
        The column that gives way where the terminal is too narrow for all.
    fit : callable, optional
        How it does: the row's number and a width → a text no wider.  Without it, its cells are folded.
    least : int
        The width that the flexible column needs to stay useful.  Where there is less, each row takes lines of
        its own: the first cell, then the others indented, all uncut.
    """
    # Not rich's Table, which takes a second for a thousand rows; its console still decides on colours and width.
    console, gap = terminal(), 2
    cells = [[safe(cell) for cell in row] for row in rows]
    flex = columns.index(flexible)
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    room = console.width - sum(widths) + widths[flex] - gap * (len(columns) - 1)
    if room < min(least, widths[flex]):
        _print_stacked(console, columns, cells, labelled)
        return
    widths[flex] = min(widths[flex], room)
    to_right = [name in right for name in columns]

    def line(row: Sequence[str], style: tuple[str, str], first: slice) -> str:
        padded = []
        for cell, width, is_right in zip(row, widths, to_right, strict=True):
            padding = " " * (width - cell_len(cell))
            padded.append(padding + cell if is_right else cell + padding)
        start, end = style
        styled = (" " * gap).join(padded[first])
        rest = "".join(" " * gap + cell for cell in padded[first.stop :]) if first.stop else ""
        return f"{start}{styled}{end}{rest}".rstrip() + "\n"

    write = sys.stdout.write
    bold, cyan = style(console, "bold"), style(console, "cyan")
    write(line(columns, bold, slice(None)))
    for number, row in enumerate(cells):
        folded = [row[flex]]
        if cell_len(row[flex]) > room:
            folded = fold(row[flex], room) if fit is None else [fit(number, room)]
        for piece in folded:
            row[flex] = piece
            write(line(row, cyan, slice(1)))
            row = [""] * len(row)


def style(console: Console, style: str) -> tuple[str, str]:
    """What the console writes before and after a text in that style: nothing where it writes no colours."""
    with console.capture() as captured:
        console.print(Text("|", style=style), end="")
    start, end = captured.get().split("|")
    return start, end


def _print_stacked(
    console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]], labelled: Container[str]
) -> None:
    width = max(console.width - 2, 1)
    start, end = style(console, "cyan")
    write = sys.stdout.write
    for first, *others in cells:
        for piece in fold(first, console.width):
            write(f"{start}{piece}{end}\n")
        line = ""
        for name, cell in zip(columns[1:], others, strict=True):
            part = f"{name} {cell}" if name in labelled else cell
            joined = f"{line}  {part}" if line else part
            if line and cell_len(joined) > width and cell_len(part) <= width:
                write(f"  {line}\n")
                joined = part
            line = joined
        for piece in fold(line, width):
            write(f"  {piece}\n")


# ---------------------------------------------------------------- JSON


def print_json(value: Any) -> None:
    """Valid JSON in ASCII, indented; an array of plain values, and each element of an array of others, takes one line.

    Strings keep every character but the bytes that were not UTF-8: JSON has none for them, so they are
    written as the four characters ``\\xff``.  Numbers that JSON lacks become the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``.
    """
    # Line by line: an unbuffered standard output (PYTHONUNBUFFERED) only notices at its next write that a
    # pipe was closed in the middle of one.
    sys.stdout.writelines(_json_lines(value))


def _json_lines(value: Any) -> Iterator[str]:
    yield from _json_parts(value, "\n")
    yield "\n"


def _json_parts(value: Any, newline: str) -> Iterator[str]:
    # By hand: with an indent, `json` takes a microsecond and a line for each number of an array.
    inner = newline + "  "
    if isinstance(value, dict) and value:
        for number, (key, item) in enumerate(zip(_json_keys(value), value.values(), strict=True)):
            start = f"{',' if number else '{'}{inner}{_quoted(key)}: "
            if isinstance(item, dict | list):
                yield start
                yield from _json_parts(item, inner)
            else:
                yield start + _dumps(item)
        yield newline + "}"
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield f"{',' if number else '['}{inner}{_dumps(item)}"
        yield newline + "]"
    else:
        yield _dumps(value)


def _dumps(value: Any) -> str:
    return _quoted(_jsonable(value))


#: `json.dumps` makes such an encoder at each call.
_encode: Final = json.JSONEncoder(allow_nan=False).encode


def _quoted(value: Any) -> str:
    # `json` escapes all controls but DEL, which can only stand inside a string.
    return _encode(value).replace("\x7f", "\\u007f")


def _jsonable(value: Any) -> Any:
    match value:
        case str():
            return value if value.isascii() else _without_surrogates(value)
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {key: _jsonable(item) for key, item in zip(_json_keys(value), value.values(), strict=True)}
        case list() | tuple():
            return [_jsonable(item) for item in value]
    return value


def _json_keys(value: dict[str, Any]) -> list[str]:
    """The keys as `_jsonable` has them, or as they are if one would look like another: no entry may be lost."""
    keys = [_jsonable(key) for key in value]
    return keys if len(set(keys)) == len(keys) else list(value)


def _without_surrogates(text: str) -> str:
    return "".join(_escape(char) if "\ud800" <= char <= "\udfff" else char for char in text)


# ---------------------------------------------------------------- errors


#: The status of an output that could not be written, and of a file that could not be read where 1 has a meaning.
UNUSABLE: Final = 2
#: What the system says of an output that takes no more.  Errors about other files have their names.
_OUTPUT_ERRORS: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EBADF})


@contextmanager
def errors_as_one_line(status: int = 1) -> Iterator[None]:
    """Turn errors of files and pipes into one line on the standard error and an exit status.

    An output that takes no more has the status 2; about a reader that went away, as ``head`` does, nothing is said.  An
    interrupt becomes exit status 130.  Anything else is a bug of ours, and keeps its traceback.
    """
    _buffer_output()
    # Whatever the terminal's encoding lacks must not stop the output.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except typer.Exit:  # after a help text, or with a status of its own
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
            raise _failure(_os_message(error), status) from None
        _drop_output()
        if error.errno == errno.EPIPE:
            raise typer.Exit(UNUSABLE) from None
        raise _failure(f"the output cannot be written: {error.strerror}", UNUSABLE) from None
    except (GGUFError, ImportError) as error:  # a MissingExtraError, or a package that does not load
        raise _failure(str(error), status) from None
    except ValueError as error:
        if not _is_about_a_source(error):
            raise
        raise _failure(str(error), status) from None


def _is_about_a_source(error: ValueError) -> bool:
    """Whether an error is about a URL or name that the user typed: one that the storages raised."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return where is not None and str(where.tb_frame.f_globals.get("__name__")).startswith("mmgguf.storage.")


def _failure(message: str, status: int) -> typer.Exit:
    with suppress(OSError):  # there may be no room for it either
        typer.echo(f"mmgguf: {safe(message)}", err=True)
    return typer.Exit(status)


def _os_message(error: OSError) -> str:
    if error.filename is None:
        return error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _buffer_output() -> None:
    """Have the output written as a whole: with PYTHONUNBUFFERED, what the system does not take at once is forgotten."""
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        whole: Any = io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(whole, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)


def _drop_output() -> None:
    """Point the standard output at nothing: the interpreter flushes it once more at its end, and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
