"""The page of all ggml types, made from the library's own table: a directive, ``{ggml-types}``."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mmgguf.types import LAYOUTS, GGMLType, Layout


def _text(text: object) -> nodes.paragraph:
    return nodes.paragraph("", str(text))


def _code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal(text, text))


def _table(header: tuple[str, ...], rows: list[tuple[nodes.Node, ...]]) -> nodes.table:
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    head, body = nodes.thead(), nodes.tbody()
    for cells, part in [(tuple(map(_text, header)), head), *((row, body) for row in rows)]:
        part += nodes.row("", *(nodes.entry("", cell) for cell in cells))
    group += [head, body]
    return nodes.table("", group, classes=["ggml-types"])


def _number_of(dtype: Any) -> str:
    names = {"u1": "uint8", "i1": "int8"}
    return names.get(dtype.str[1:], dtype.name)


def _fields(layout: Layout) -> list[tuple[str, str, int, int, int]]:
    """Name, number type, count, first byte and bytes of each field of a block."""
    found = []
    for name in layout.dtype.names or ():
        dtype, offset = layout.dtype.fields[name][:2]
        count = int(dtype.shape[0]) if dtype.shape else 1
        found.append((name, _number_of(dtype.base), count, offset, dtype.itemsize))
    return found


class GGMLTypes(SphinxDirective):
    """A table of all types, and for each block type a table of its fields."""

    def run(self) -> list[nodes.Node]:
        summary = []
        details: list[nodes.Node] = []
        for type_ in GGMLType:
            layout = LAYOUTS[type_]
            anchor = nodes.make_id(f"ggml-type-{type_.name}")
            name: nodes.Node = nodes.literal(type_.name, type_.name)
            if not layout.is_plain:
                name = nodes.reference("", "", name, refid=anchor, internal=True)
            stored = layout.dtype.name if layout.is_plain else ", ".join(layout.dtype.names or ())
            summary.append(
                (
                    nodes.paragraph("", "", name),
                    _text(int(type_)),
                    _text(layout.block_size),
                    _text(layout.type_size),
                    _text(f"{layout.bpw:.4g}"),
                    _code(stored),
                )
            )
            if layout.is_plain:
                continue
            rows = [
                (_code(field), _code(number), _text(count), _text(offset), _text(nbytes))
                for field, number, count, offset, nbytes in _fields(layout)
            ]
            section = nodes.section(ids=[anchor])
            section += nodes.title(type_.name, type_.name)
            section += nodes.paragraph(
                "",
                f"A block of {layout.type_size} bytes stands for {layout.block_size} elements: "
                f"{layout.bpw:.4g} bits per weight.",
            )
            section += _table(("field", "numbers", "count", "first byte", "bytes"), rows)
            self.state.document.note_explicit_target(section)
            details.append(section)
        header = ("type", "id", "elements per block", "bytes per block", "bits per weight", "stored as")
        return [_table(header, summary), *details]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ggml-types", GGMLTypes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
