"""A run to explore in a browser, made with Bokeh: any case, and any two contestants in all cases.

Nothing is measured or computed anew: the medians and quartiles are those of the other charts.
"""

from __future__ import annotations

from typing import Any, Final

from bokeh.document import Document
from bokeh.embed import components
from bokeh.events import DocumentReady
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    FactorRange,
    FixedTicker,
    HoverTool,
    Range1d,
    Select,
    Span,
    Whisker,
)
from bokeh.plotting import figure

from .charts import COLOURS, OTHER
from .results import Results
from .words import duration, label, number

__all__ = ["SCRIPTS", "embedded"]

#: What the page needs of the scripts in Bokeh's package, in this order.
SCRIPTS: Final = ("bokeh.min.js", "bokeh-widgets.min.js")
#: Who are compared when the page opens, and the case that is shown.
PAIR: Final = ("mmgguf", "gguf-py")
CASE: Final = "open/vocabulary"
ROW: Final = 24  # pixels

#: What both charts do with their axis: room for the figures at the right, and ticks that a person would choose.
_AXIS: Final = """
plot.x_range.setv({start: low, end: high * (high / low) ** 0.25})
const steps = high / low > 300 ? [1] : [1, 2, 5]
plot.below[0].ticker.ticks = Array.from({length: 18}, (_, i) => steps.map(step => step * 10 ** (i - 9))).flat()
"""
#: Shows a case: sets what the points are, the names beside them, and how high the chart is for them.
_SHOW: Final = """
const rows = cases[select.value]
source.data = rows
plot.y_range.factors = [...rows.who].reverse()
const low = Math.min(...rows.q1) / 1.3, high = Math.max(...rows.q3) * 1.3
plot.height = 45 + step * rows.who.length
"""
#: Compares two contestants in every case in which both took part, the greatest ratio first.
_COMPARE: Final = """
const found = []
for (const [id, rows] of Object.entries(cases)) {
  const a = rows.who.indexOf(one.value), b = rows.who.indexOf(other.value)
  if (a >= 0 && b >= 0 && a != b) found.push([rows.median[a] / rows.median[b], id, rows.text[a], rows.text[b]])
}
found.sort((x, y) => y[0] - x[0])
const ratios = found.map(x => x[0])
const low = Math.min(1, ...ratios) / 1.3, high = Math.max(1, ...ratios) * 1.3
source.data = {
  ratio: ratios, id: found.map(x => x[1]), first: found.map(x => x[2]), second: found.map(x => x[3]),
  text: ratios.map(x => x < 9.95 ? x.toPrecision(2) : Number(x.toPrecision(2)).toLocaleString("en")),
  left: ratios.map(() => low),
}
plot.y_range.factors = found.map(x => x[1]).reverse()
plot.height = 65 + step * found.length
plot.title.text = found.length ? "" : one.value === other.value ? "Choose two of them." : "Nothing was done by both."
"""
_SECONDS: Final = """
const [scale, unit] = tick >= 1 ? [1, "s"] : tick >= 1e-3 ? [1e3, "ms"] : tick >= 1e-6 ? [1e6, "µs"] : [1e9, "ns"]
return `${Number((tick * scale).toPrecision(2))} ${unit}`
"""
_PLAIN: Final = 'return tick.toLocaleString("en", {maximumSignificantDigits: 2})'


def _cases(results: Results) -> dict[str, dict[str, list[Any]]]:
    """Every case in columns, the fastest contestant first."""
    cases = {}
    for room in dict.fromkeys(bench["group"].partition("/")[0] for bench in results.data["benchmarks"]):
        for case in results.cases(room):
            times = sorted(results.times(case).items(), key=lambda one: one[1].median)
            if not times:
                continue
            fastest = times[0][1].median
            cases[case] = {
                "who": [label(name) for name, _ in times],
                "colour": [COLOURS.get(name, OTHER) for name, _ in times],
                "median": [time.median for _, time in times],
                "q1": [time.q1 for _, time in times],
                "q3": [time.q3 for _, time in times],
                "text": [duration(time.median) for _, time in times],
                "quartiles": [f"{duration(time.q1)} to {duration(time.q3)}" for _, time in times],
                "rounds": [time.rounds for _, time in times],
                "times": [number(time.median / fastest) for _, time in times],
            }
    return cases


def _plot(tooltips: list[tuple[str, str]], ticks: str) -> Any:
    plot = figure(
        x_axis_type="log",
        x_range=Range1d(1, 2),
        y_range=FactorRange(),
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools=[HoverTool(tooltips=tooltips, mode="hline", point_policy="snap_to_data")],
    )
    plot.outline_line_color = None
    plot.ygrid.grid_line_color = None
    plot.yaxis.major_tick_line_color = None
    plot.yaxis.axis_line_color = None
    plot.axis.major_label_text_font_size = "12px"
    plot.xaxis.ticker = FixedTicker()
    plot.xaxis.formatter = CustomJSTickFormatter(code=ticks)
    plot.xaxis.minor_tick_line_color = None
    return plot


def _one_case(cases: dict[str, Any]) -> Any:
    rooms: dict[str, list[str]] = {}
    for case in cases:
        rooms.setdefault(case.partition("/")[0], []).append(case)
    select = Select(title="What was done", value=CASE, options=rooms, sizing_mode="stretch_width")
    source = ColumnDataSource(cases[CASE])
    tooltips = {"who": "", "text": "median", "quartiles": "quartiles", "rounds": "rounds", "times": "times the fastest"}
    plot = _plot([(what, f"@{field}") for field, what in tooltips.items()], _SECONDS)
    plot.add_layout(Whisker(source=source, base="who", lower="q1", upper="q3", dimension="width", line_color="colour",
                            upper_head=None, lower_head=None, line_width=3, line_alpha=0.5))  # fmt: skip
    plot.scatter("median", "who", source=source, size=10, color="colour")
    plot.text("median", "who", "text", source=source, x_offset=10, anchor="center_left", text_font_size="12px")
    show = CustomJS(
        args={"cases": cases, "select": select, "source": source, "plot": plot, "step": ROW}, code=_SHOW + _AXIS
    )
    select.js_on_change("value", show)
    return column(select, plot, sizing_mode="stretch_width"), show


def _pair(cases: dict[str, Any]) -> Any:
    names = sorted({name for rows in cases.values() for name in rows["who"]}, key=str.lower)
    one, other = (
        Select(title=title, value=value, options=names, sizing_mode="stretch_width")
        for title, value in (("Time of", PAIR[1]), ("divided by the time of", PAIR[0]))
    )
    source = ColumnDataSource({field: [] for field in ("ratio", "id", "left", "first", "second", "text")})
    plot = _plot([("", "@id"), ("one", "@first"), ("the other", "@second"), ("ratio", "@text")], _PLAIN)
    # Names are long: above their points, they leave these the whole width.
    plot.yaxis.visible = False
    plot.text(
        "left",
        "id",
        "id",
        source=source,
        y_offset=-13,
        anchor="center_left",
        text_font_size="12px",
        text_color="#444444",
    )
    plot.add_layout(Span(location=1, dimension="height", line_dash="dotted", line_color="#1f2328"))
    plot.scatter("ratio", "id", source=source, size=10, color=COLOURS["mmgguf"])
    plot.text("ratio", "id", "text", source=source, x_offset=10, anchor="center_left", text_font_size="12px")
    args = {"cases": cases, "one": one, "other": other, "source": source, "plot": plot, "step": 1.5 * ROW}
    compare = CustomJS(args=args, code=_COMPARE + _AXIS)
    one.js_on_change("value", compare)
    other.js_on_change("value", compare)
    return column(row(one, other, sizing_mode="stretch_width"), plot, sizing_mode="stretch_width"), compare


def embedded(results: Results) -> tuple[str, tuple[str, str]]:
    """HTML for a page that has `SCRIPTS` already.

    Returns
    -------
    script : str
        What fills both places.
    places : tuple of str
        All contestants of one case, and two contestants in all cases.
    """
    cases = _cases(results)
    document = Document()
    for layout, fill in (_one_case(cases), _pair(cases)):
        document.add_root(layout)
        document.js_on_event(DocumentReady, fill)
    script, (case, pair) = components(document.roots)
    return script, (case, pair)
