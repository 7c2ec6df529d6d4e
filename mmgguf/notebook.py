"""What notebooks show of files, and pictures by matplotlib.

Small tables that fold up, made from headers alone: no data is touched for them.  Everything from a file is escaped,
for the eye too: what would not show as itself is written as an escape.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from .errors import MissingExtraError, human_size
from .types import GGMLType, layout_of

__all__ = ["hist", "plot", "records_html", "table_html", "visible"]

#: Rows of a table, and characters of a cell.
MAX_ROWS: Final = 500
MAX_CELL: Final = 200
#: Numbers of a tensor that are looked at together.
CHUNK: Final = 1 << 22
_LAYER: Final = re.compile(r"(?:.*\.)?blk\.([0-9]{1,6})\..+", re.DOTALL)


class _Tensor(Protocol):
    """What a picture needs of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...


def visible(text: object, limit: int, lines: bool = False) -> str:
    r"""A text with everything escaped that would not show as itself, cut to a limit.

    Controls, bidirectional and other invisible marks become ``\u202e`` and the like, bytes that are not UTF-8
    ``\xff``; with `lines`, newlines and tabs stay.
    """
    whole = str(text)
    cut = whole[:limit]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() or (lines and c in "\n\t") else _escape(c) for c in cut)
    return cut if len(whole) <= limit else f"{cut}… ({len(whole):,} characters)"


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table_html(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], count: int, opened: bool = False
) -> str:
    """A table that folds up, with at most 500 of its rows."""
    cells = "".join(f"<th style='text-align:left'>{_safe(cell)}</th>" for cell in head)
    body = []
    for number, row in enumerate(rows):
        if number == MAX_ROWS:
            body.append(f"<tr><td colspan='{len(head)}'>… and {count - MAX_ROWS:,} more</td></tr>")
            break
        body.append("<tr>" + "".join(f"<td style='text-align:left'>{_safe(cell)}</td>" for cell in row) + "</tr>")
    return (
        f"<details{' open' if opened else ''}><summary>{_safe(title)}</summary>"
        "<div style='max-height:24em;overflow:auto'>"
        f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


def records_html(title: str, records: Sequence[Any], fields: Sequence[str]) -> str:
    """Records as a table of some of their fields."""
    rows = ([getattr(record, field) for field in fields] for record in records)
    return table_html(title, fields, rows, len(records), opened=True)


def _safe(value: object) -> str:
    return html.escape(visible("" if value is None else value, MAX_CELL))


# Of files and tensors.


def file_html(title: str, summary: Iterable[tuple[str, object]], tensors: Mapping[str, Any], metadata: str) -> str:
    """A file: what it adds up to, its tensors and its metadata, folded up."""
    facts = table_html(title, ("", ""), summary, 0, opened=True)
    rows = ((t.name, type_name(t.type), _shape(t), _size(t)) for t in tensors.values())
    count = len(tensors)
    return facts + table_html(f"{count:,} tensors", ("name", "type", "shape", "size"), rows, count) + metadata


def metadata_html(metadata: Any) -> str:
    """Metadata: keys in their order, arrays by their type and length alone."""

    def rows() -> Iterator[tuple[object, ...]]:
        for key in metadata:
            info = metadata.array_info(key)
            if info is None:
                yield key, metadata.type_of(key).name, metadata[key]
            else:
                yield key, f"{info.element_type.name}[{info.count:,}]", "…"

    return table_html(f"{len(metadata):,} metadata keys", ("key", "type", "value"), rows(), len(metadata))


def tensor_html(tensor: _Tensor) -> str:
    """A tensor, by its header."""
    layout = layout_of(tensor.type)
    rows: list[tuple[str, object]] = [
        ("type", type_name(tensor.type)),
        ("shape", _shape(tensor)),
        ("weights", f"{tensor.size:,}"),
        ("size", _size(tensor)),
    ]
    if layout is not None:
        rows.append(("bits per weight", f"{layout.bpw:.4g}"))
        if not layout.is_plain:
            rows.append(("fields of a block", ", ".join(layout.dtype.names or ())))
    return table_html(tensor.name, ("", ""), rows, len(rows), opened=True)


def type_name(type_: int) -> str:
    """The name of a ggml type, or that it is unknown."""
    return type_.name if isinstance(type_, GGMLType) else f"unknown {int(type_)}"


def _shape(tensor: _Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _nbytes(tensor: _Tensor) -> int | None:
    layout = layout_of(tensor.type)
    return None if layout is None else tensor.size // layout.block_size * layout.type_size


def _size(tensor: _Tensor) -> str:
    nbytes = _nbytes(tensor)
    return "?" if nbytes is None else human_size(nbytes)


# Pictures.


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "report") from None
    return pyplot.subplots(figsize=(8, 3), layout="constrained")[1]


def hist(title: str, pieces: Callable[[], Iterator[npt.NDArray[Any]]], bins: int | Sequence[float], ax: Any) -> Any:
    """A histogram of numbers that come in pieces, twice; see `Tensor.hist`."""
    axes = _axes(ax)
    if isinstance(bins, int):
        low, high = np.inf, -np.inf
        for piece in pieces():
            finite = piece[np.isfinite(piece)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if not low <= high:
            low, high = 0.0, 1.0
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    else:
        edges = np.asarray(bins, np.float64)
    counts = np.zeros(len(edges) - 1, np.int64)
    for piece in pieces():
        counts += np.histogram(piece[np.isfinite(piece)].astype(np.float64), edges)[0]
    axes.stairs(counts, edges, fill=True)
    axes.set_xlabel("value")
    axes.set_ylabel("weights")
    axes.set_title(_plain(title), fontsize="medium")
    return axes


def plot(title: str, tensors: Mapping[str, Any], ax: Any) -> Any:
    """Bytes of each layer by ggml type; see `GGUFFile.plot`."""
    axes = _axes(ax)
    layers: dict[int, dict[str, int]] = {}
    total: dict[str, int] = {}
    for name, tensor in tensors.items():
        match, nbytes, type_ = _LAYER.fullmatch(name), _nbytes(tensor) or 0, type_name(tensor.type)
        total[type_] = total.get(type_, 0) + nbytes
        layer = layers.setdefault(int(match[1]) if match else -1, {})
        layer[type_] = layer.get(type_, 0) + nbytes
    numbers = sorted(layers)
    bottom = np.zeros(len(numbers))
    for type_ in sorted(total, key=lambda one: -total[one]):
        sizes = np.array([layers[n].get(type_, 0) for n in numbers]) / (1 << 20)
        axes.bar(range(len(numbers)), sizes, bottom=bottom, label=type_)
        bottom += sizes
    shown = range(0, len(numbers), max(1, len(numbers) // 12))
    axes.set_xticks(list(shown), ["others" if numbers[i] < 0 else str(numbers[i]) for i in shown])
    axes.set_xlabel("layer")
    axes.set_ylabel("MiB")
    if total:
        axes.legend(fontsize="small")
    axes.set_title(_plain(title), fontsize="medium")
    return axes


def _plain(title: str) -> str:
    """Escape dollar signs: matplotlib reads what is between two as mathematics."""
    return visible(title, 80).replace("$", r"\$")
