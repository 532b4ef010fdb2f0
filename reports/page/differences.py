"""The forest plot: each row's difference to its baseline with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, Span, Whisker

from reports.compare import NOTE
from reports.page.board import known, verdict
from reports.page.drawing import BETTER, OPEN, WORSE, plot
from reports.page.material import Material, Row
from reports.page.panel import Figure, Panel
from reports.table import MAIN
from reports.text import interval, number, signed

LOOKS = {"better": (BETTER, "triangle"), "worse": (WORSE, "inverted_triangle")}
HOVER = [
    ("", "@name against @baseline"),
    ("difference", "@difference_text points, 95 % interval @interval"),
    ("p (Holm)", "@p_holm"),
    ("P(better)", "@probability"),
    ("verdict", "@verdict"),
]


def panel(material: Material) -> Panel:
    """A forest per setting, over rows that have a baseline."""
    compared = {}
    for setting, rows in material.settings():
        if part := [row for row in rows if known(row.line["difference"])]:
            compared[setting] = part
    if not compared:
        return Panel("differences", "Differences", missing="No row has a baseline that was run beside it.")
    return Panel(
        "differences",
        "Differences to the baseline",
        values={"note": NOTE, "tables": {setting: lines(rows) for setting, rows in compared.items()}},
        figures={f"forest-{n}": forest(setting, rows) for n, (setting, rows) in enumerate(compared.items())},
    )


def forest(setting: str, rows: Sequence[Row]) -> Figure:
    """A setting's rows from the top down, in the order of the table."""
    ordered = list(rows)[::-1]
    drawn = plot(60 + 24 * (len(rows) + 2), HOVER, y_range=[row.name for row in ordered])
    drawn.add_layout(Span(location=0, dimension="height", line_dash="dashed", line_color="#555555"))
    for outcome in ("better", "worse", "open"):
        source = ColumnDataSource(columns([row for row in ordered if look(row) == outcome]))
        tint, shape = LOOKS.get(outcome, (OPEN, "circle"))
        drawn.add_layout(
            Whisker(
                source=source, base="name", lower="low", upper="high", dimension="width", line_color=tint, line_width=2
            )
        )
        drawn.scatter("difference", "name", source=source, marker=shape, color=tint, size=11)
    drawn.x_range.start, drawn.x_range.end = ends(rows)
    drawn.xaxis.axis_label = f"points of {MAIN.title} above the baseline"
    counts = {outcome: sum(look(row) == outcome for row in rows) for outcome in ("better", "worse", "open")}
    told = (
        f"Forest plot, {setting}: of {len(rows)} rows, {counts['better']} are better than their baseline, "
        f"{counts['worse']} are worse, and {counts['open']} have no verdict or are not resolved."
    )
    return Figure(drawn, setting, told)


def look(row: Row) -> str:
    """``better``, ``worse`` or ``open``."""
    return row.line["verdict"] if row.line["verdict"] in LOOKS else "open"


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What a forest draws, and the same as text for its hover; an interval that nothing is known of is not drawn."""
    text = ("baseline", "difference_text", "interval", "p_holm", "probability", "verdict")
    told = [lines([row])[0][1:] for row in rows]
    return {
        "name": [row.name for row in rows],
        **{name: [float(row.line[name]) for row in rows] for name in ("difference", "low", "high")},
        **{name: [line[place] for line in told] for place, name in enumerate(text)},
    }


def ends(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis: all intervals, zero, and some air."""
    values = [row.line[name] for row in rows for name in ("difference", "low", "high") if known(row.line[name])]
    low, high = min(0.0, *values), max(0.0, *values)
    air = 0.05 * (high - low) or 1.0
    return low - air, high + air


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The same as text: row, baseline, difference, interval, p, probability of superiority, verdict."""
    return [
        [
            row.name,
            row.line["baseline"],
            signed(row.line["difference"]),
            interval(row.line["low"], row.line["high"]),
            number(row.line["p_holm"], ".4f"),
            number(row.line["probability"], ".3f"),
            verdict(row.line),
        ]
        for row in rows
    ]
