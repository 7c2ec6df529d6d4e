"""The charts of the page, as Bokeh figures: text on a canvas, or in tooltips that Bokeh escapes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from ..errors import MissingExtraError
from ..file import GGUFFile
from ..inspect import TensorStats, ValueComparison
from ..types import GGMLType, layout_of
from .data import METRICS, layer_of, nbytes_of, type_name, visible

__all__ = ["charts"]

#: Colours by rank of a type, apart for most kinds of colour blindness (Okabe and Ito), then repeated lighter.
_COLOURS: Final = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b8a800", "#7f7f7f",
    "#66aad1", "#f0c566", "#66c5ab", "#e69e66", "#9ad2f2", "#e0afca", "#d4cb66", "#b2b2b2",
)  # fmt: skip
_HEADER, _HOLE = "#999999", "#dddddd"
#: Tensors that the map shows one by one, and layers and kinds of the heat maps.
_MAX_QUADS: Final = 8192
_MAX_LAYERS, _MAX_KINDS = 512, 64
#: What Bokeh takes for mathematics in a label.
_MATH: Final = re.compile(r"\$\$|\\\(|\\\[|\\\)|\\\]")


def _bokeh() -> Any:
    try:
        import bokeh.models
        import bokeh.palettes
        import bokeh.plotting
    except ModuleNotFoundError:
        raise MissingExtraError("bokeh", "report") from None
    return bokeh


def _label(text: str) -> str:
    """A text from the file for an axis: cut, and never mathematics."""
    return _MATH.sub(lambda m: "\u200b".join(m[0]), visible(text, 40))


def charts(
    f: GGUFFile, statistics: Mapping[str, TensorStats | None], comparison: ValueComparison | None
) -> dict[str, Any]:
    """Figures by the id of the place where the page shows them."""
    colours = _colours(f)
    found = {"map": _map(f, colours)}
    if len(f):
        found["types"] = _types(f, colours)
    layers = _layers(f)
    if layers:
        found["layers"] = _types_by_layer(layers, colours)
        found["depth"] = _bits_by_layer(layers)
        found["heat"] = _heat(layers, statistics)
    if any(statistics.values()):
        found["histogram"] = _histogram()
    if comparison is not None and comparison.tensors:
        errors = _errors(comparison)
        if errors is not None:
            found["errors"] = errors
    return found


def _figure(**options: Any) -> Any:
    tools = options.pop("tools", "hover")
    figure = _bokeh().plotting.figure(
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above" if "zoom" in tools else None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
        min_border_left=48,
        **options,
    )
    figure.toolbar.logo = None
    if options.get("x_axis_label") == "layer":
        figure.xaxis.ticker = _bokeh().models.BasicTicker(min_interval=1, num_minor_ticks=0)
    return figure


def _binary_ticker() -> Any:
    """Ticks at whole kibibytes and mebibytes."""
    return _bokeh().models.AdaptiveTicker(base=1024, mantissas=[2**i for i in range(10)], num_minor_ticks=0)


def _colours(f: GGUFFile) -> dict[str, str]:
    """By the name of a type, the one with most bytes first."""
    nbytes: dict[str, int] = defaultdict(int)
    for tensor in f.values():
        nbytes[type_name(tensor.type)] += nbytes_of(tensor) or 0
    order = sorted(nbytes, key=lambda name: -nbytes[name])
    return {name: _COLOURS[rank % len(_COLOURS)] for rank, name in enumerate(order)}


def _map(f: GGUFFile, colours: dict[str, str]) -> Any:
    """Each shard as a bar: header, tensors to scale, and bytes that belong to no tensor."""
    columns: dict[str, list[Any]] = {k: [] for k in ("left", "right", "bottom", "top", "color", "name", "what", "size")}

    def add(row: int, start: int, end: int, color: str, name: str, what: str) -> None:
        values = (start, end, row - 0.4, row + 0.4, color, name, what, f"{end - start:,} bytes")
        for key, value in zip(columns, values, strict=True):
            columns[key].append(value)

    count = len(f.shards)
    for number, shard in enumerate(f.shards[:64]):
        row = -number
        header = shard.header
        add(row, 0, header.nbytes, _HEADER, "header", "metadata and tensor infos")
        position = min(header.data_offset, shard.file.size)
        infos = sorted(header.tensors.values(), key=lambda info: info.offset)
        for info in infos[: max(1, _MAX_QUADS // min(count, 64))]:
            start = header.data_offset + info.offset
            if start - position >= header.alignment:
                add(row, position, start, _HOLE, "hole", "belongs to no tensor")
            nbytes = info.nbytes if layout_of(info.type) is not None else 0
            what = f"{type_name(info.type)} {'×'.join(map(str, info.shape))}"
            add(row, start, start + nbytes, colours.get(type_name(info.type), _HEADER), visible(info.name, 100), what)
            position = max(position, start + nbytes)
        if len(infos) <= _MAX_QUADS and shard.file.size - position >= header.alignment:
            add(row, position, shard.file.size, _HOLE, "rest", "behind the last tensor")
    models = _bokeh().models
    figure = _figure(height=90 + 30 * min(count, 12), x_axis_label="byte", tools="hover,xpan,xzoom_in,xzoom_out,reset")
    source = models.ColumnDataSource(columns)
    figure.quad("left", "right", "top", "bottom", fill_color="color", line_color=None, source=source)
    figure.hover.tooltips = [("", "@name"), ("", "@what"), ("from byte", "@left{0,0}"), ("size", "@size")]
    figure.toolbar.autohide = False
    figure.yaxis.visible = False
    figure.xaxis.ticker = _binary_ticker()
    figure.ygrid.visible = False
    figure.xaxis.formatter = models.NumeralTickFormatter(format="0.0b")
    return figure


def _types(f: GGUFFile, colours: dict[str, str]) -> Any:
    nbytes: dict[str, int] = defaultdict(int)
    weights: dict[str, int] = defaultdict(int)
    for tensor in f.values():
        nbytes[type_name(tensor.type)] += nbytes_of(tensor) or 0
        weights[type_name(tensor.type)] += tensor.size
    names = list(colours)[::-1]
    total, total_weights = sum(nbytes.values()) or 1, sum(weights.values()) or 1
    data = {
        "type": names,
        "share": [nbytes[n] / total for n in names],
        "weights": [weights[n] / total_weights for n in names],
        "color": [colours[n] for n in names],
        "bytes": [nbytes[n] for n in names],
    }
    figure = _figure(
        height=60 + 26 * len(names),
        y_range=names,
        x_axis_label="share of the bytes",
    )
    figure.hbar(
        "type", 0.7, "share", fill_color="color", line_color=None, source=_bokeh().models.ColumnDataSource(data)
    )
    shares = [("of the bytes", "@share{0.0%}"), ("of the weights", "@weights{0.0%}")]
    figure.hover.tooltips = [("type", "@type"), *shares, ("bytes", "@bytes{0,0}")]
    figure.xaxis.formatter = _bokeh().models.NumeralTickFormatter(format="0%")
    figure.x_range.start = 0
    figure.ygrid.visible = False
    return figure


def _layers(f: GGUFFile) -> dict[int, dict[str, Any]]:
    """Tensors of layers: by number, then by what they are."""
    layers: dict[int, dict[str, Any]] = {}
    for name, tensor in f.items():
        place = layer_of(name)
        if place is not None:
            layers.setdefault(place[0], {})[place[1]] = tensor
    return dict(sorted(layers.items())[:_MAX_LAYERS])


def _types_by_layer(layers: dict[int, dict[str, Any]], colours: dict[str, str]) -> Any:
    types = [
        name for name in colours if any(type_name(t.type) == name for kinds in layers.values() for t in kinds.values())
    ]
    data: dict[str, list[Any]] = {"layer": list(layers)}
    for number, name in enumerate(types):
        data[f"t{number}"] = [
            sum(nbytes_of(t) or 0 for t in kinds.values() if type_name(t.type) == name) for kinds in layers.values()
        ]
    fields = [f"t{number}" for number in range(len(types))]
    figure = _figure(height=240, x_axis_label="layer", y_axis_label="bytes")
    figure.vbar_stack(
        fields, x="layer", width=0.85, color=[colours[name] for name in types], line_color=None,
        source=_bokeh().models.ColumnDataSource(data), legend_label=types,
    )  # fmt: skip
    figure.hover.tooltips = [("layer", "@layer"), *((name, f"@t{i}{{0.0b}}") for i, name in enumerate(types))]
    figure.yaxis.formatter = _bokeh().models.NumeralTickFormatter(format="0.0b")
    figure.yaxis.ticker = _binary_ticker()
    figure.y_range.start = 0
    figure.xgrid.visible = False
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    legend = figure.legend[0]
    figure.add_layout(legend, "below")
    legend.orientation = "horizontal"
    legend.background_fill_alpha = legend.border_line_alpha = 0


def _bits(tensors: Any) -> float:
    known = [(n, t.size) for t in tensors if (n := nbytes_of(t)) is not None and t.size]
    return 8 * sum(n for n, _ in known) / sum(s for _, s in known) if known else math.nan


def _bits_by_layer(layers: dict[int, dict[str, Any]]) -> Any:
    data = {"layer": list(layers), "bits": [_bits(kinds.values()) for kinds in layers.values()]}
    figure = _figure(height=180, x_axis_label="layer", y_axis_label="bits per weight")
    source = _bokeh().models.ColumnDataSource(data)
    figure.step("layer", "bits", mode="center", line_width=2, color=_COLOURS[0], source=source)
    figure.scatter("layer", "bits", size=6, color=_COLOURS[0], source=source)
    figure.hover.tooltips = [("layer", "@layer"), ("bits per weight", "@bits{0.00}")]
    figure.hover.renderers = [figure.renderers[1]]
    figure.y_range.start = 0
    return figure


def _heat_figure(data: dict[str, list[Any]], kinds: list[str], field: str, name: str, tooltips: Any) -> Any:
    bokeh = _bokeh()
    # Vectors, such as norms, have numbers of their own; the colours are for the matrices, where there are any.
    counts = data.get("matrix", [True] * len(data[field]))
    values = [v for v, c in zip(data[field], counts, strict=True) if c and math.isfinite(v)]
    values = values or [v for v in data[field] if math.isfinite(v)] or [0.0]
    # What is great stands out from the page: dark on light, and light on dark, where the page inverts the chart.
    palette = list(reversed(bokeh.palettes.Viridis256))
    mapper = bokeh.models.LinearColorMapper(
        palette=palette, low=min(values), high=max(values) or 1, nan_color="#00000000", name=f"{name}-mapper"
    )
    figure = _figure(height=90 + 20 * len(kinds), y_range=kinds[::-1], x_axis_label="layer", tools="hover,tap")
    source = bokeh.models.ColumnDataSource(data, name=f"{name}-source")
    glyph = figure.rect(
        "layer", "kind", 1, 1, fill_color={"field": field, "transform": mapper}, line_color=None, source=source,
        name=f"{name}-rects", nonselection_fill_alpha=1.0,
    )  # fmt: skip
    bar = bokeh.models.ColorBar(color_mapper=mapper, width=10, background_fill_alpha=0, label_standoff=6)
    figure.add_layout(bar, "right")
    figure.hover.tooltips = tooltips
    figure.hover.renderers = [glyph]
    figure.grid.visible = False
    figure.x_range.range_padding = 0
    return figure


def _heat(layers: dict[int, dict[str, Any]], statistics: Mapping[str, TensorStats | None]) -> Any:
    kinds = list(dict.fromkeys(kind for tensors in layers.values() for kind in tensors))[:_MAX_KINDS]
    labels = dict(zip(kinds, _unique([_label(kind) for kind in kinds]), strict=True))
    data: dict[str, list[Any]] = {key: [] for key in ("layer", "kind", "name", "type", "matrix", *METRICS)}
    for layer, tensors in layers.items():
        for kind, tensor in tensors.items():
            if kind not in labels:
                continue
            stats = statistics.get(tensor.name)
            layout = layout_of(tensor.type)
            row: dict[str, Any] = {
                "layer": layer,
                "kind": labels[kind],
                "name": visible(tensor.name, 300),
                "type": type_name(tensor.type),
                "matrix": tensor.ndim > 1,
                "bpw": layout.bpw if layout else math.nan,
            }
            if stats is not None:
                row |= {"rms": stats.rms, "std": stats.std, "mean": stats.mean, "zeros": stats.zero_share}
                row["peak"] = max(abs(stats.min), abs(stats.max))
            for key, column in data.items():
                column.append(row.get(key, math.nan))
    has_stats = any(statistics.values())
    field = "rms" if has_stats else "bpw"
    tips = [("", "@name"), ("type", "@type"), ("bits per weight", "@bpw{0.00}")]
    if has_stats:
        shown = (
            ("RMS", "rms", "0.0000"),
            ("std", "std", "0.0000"),
            ("mean", "mean", "0.000000"),
            ("peak", "peak", "0.000"),
        )
        tips += [(label, f"@{key}{{{form}}}") for label, key, form in shown] + [("zeros", "@zeros{0.00%}")]
    return _heat_figure(data, list(labels.values()), field, "heat", tips)


def _unique(labels: list[str]) -> list[str]:
    """Make labels that look alike distinct, so that each keeps its row."""
    seen: dict[str, int] = {}
    result = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        result.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return result


def _histogram() -> Any:
    figure = _figure(height=240, x_axis_label="value", y_axis_label="weights")
    source = _bokeh().models.ColumnDataSource({"left": [], "right": [], "top": []}, name="histogram-source")
    figure.quad("left", "right", "top", 0, fill_color=_COLOURS[0], line_color=None, source=source)
    figure.yaxis.formatter = _bokeh().models.NumeralTickFormatter(format="0.[0]a")
    figure.hover.tooltips = [("from", "@left{0.0000}"), ("to", "@right{0.0000}"), ("weights", "@top{0,0}")]
    figure.y_range.start = 0
    return figure


def _errors(comparison: ValueComparison) -> Any:
    """The NMSE of each layer's tensors, as a power of ten."""
    places = [(t, place) for t in comparison.tensors if (place := layer_of(t.name)) is not None]
    if not places:
        return None
    kinds = list(dict.fromkeys(kind for _, (_, kind) in places))[:_MAX_KINDS]
    labels = dict(zip(kinds, _unique([_label(kind) for kind in kinds]), strict=True))
    data: dict[str, list[Any]] = {key: [] for key in ("layer", "kind", "name", "power", "nmse", "types")}
    for t, (layer, kind) in places:
        if kind in labels and layer < _MAX_LAYERS:
            power = math.log10(t.nmse) if 0 < t.nmse < math.inf else math.nan
            types = f"{GGMLType(t.a_type).name} → {GGMLType(t.b_type).name}"
            values = (layer, labels[kind], visible(t.name, 300), power, t.nmse, types)
            for key, value in zip(data, values, strict=True):
                data[key].append(value)
    tips = [("", "@name"), ("", "@types"), ("NMSE", "@nmse"), ("power of ten", "@power{0.0}")]
    return _heat_figure(data, list(labels.values()), "power", "errors", tips)
