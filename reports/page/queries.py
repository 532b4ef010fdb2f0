"""Query by query: the AP of every query under two runs, and the sorted APs of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Slope

from reports.page.drawing import BETTER, line_style, plot
from reports.page.material import Material, Row, run_name
from reports.page.panel import Figure, Panel
from reports.record import Result

STEPS = 51  # points of a sorted line
MOST = 150_000  # APs in the page, about 4 bytes each: rows keep as many of their first runs as that allows
DIGITS = 3  # of an AP in the page: scripts hold it in thousandths
HOVER = [("query", "@query"), ("person", "@person"), ("run", "@run"), ("AP", "@x{0.000} across, @y{0.000} up")]


def panel(material: Material) -> Panel:
    """Both figures; rows without per-query AP (another protocol, no usable run) have none."""
    rows = [row for row in material.rows if with_ap(row)]
    if not rows:
        return Panel("queries", "Queries", missing="These results hold no AP of single queries.")
    sets: dict[tuple[int, ...], int] = {}
    asked: list[dict[str, Any]] = []
    kept = runs_kept(rows)
    held = {row.number: [run_data(result, sets, asked) for result in with_ap(row)[:kept]] for row in rows}
    return Panel(
        "queries",
        "Query by query",
        values={"kept": kept},
        figures={"sorted": sorted_lines(rows), "pairs": pairs()},
        data={"queries": {"sets": asked, "rows": held}},
    )


def with_ap(row: Row) -> list[Result]:
    """The runs of a row that have an AP for each query."""
    return [result for result in row.usable if result.queries is not None and "ap" in result.queries]


def runs_kept(rows: Sequence[Row], most: int = MOST) -> int:
    """How many runs of each row the page has room for: one at the least, and all where they fit."""
    largest = max(len(result.queries) for row in rows for result in with_ap(row))  # type: ignore[arg-type]
    return min(max(1, most // (len(rows) * largest)), max(len(with_ap(row)) for row in rows))


def run_data(result: Result, sets: dict[tuple[int, ...], int], asked: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's APs in thousandths, in the order of its set of queries, which many runs share.

    key: what two runs must share to be paired: the data that they were tested on, and their seed.
    """
    table, record = result.queries, result.record
    assert table is not None
    queries = tuple(table["query"].tolist())
    if queries not in sets:
        sets[queries] = len(asked)
        asked.append({"query": list(queries), "person": table["person_id"].tolist()})
    return {
        "key": f"{record.tested_on.fingerprint}/{record.seed}",
        "name": run_name(result),
        "set": sets[queries],
        "ap": np.rint(10**DIGITS * table["ap"].to_numpy()).astype(int).tolist(),
    }


def sorted_lines(rows: Sequence[Row]) -> Figure:
    """The APs of all queries and runs of a row, from the hardest query to the easiest."""
    drawn = plot(380, [("", "@name, @backbone"), ("share of queries", "@share{0.00}"), ("AP at most", "@ap{0.000}")])
    share = np.linspace(0, 1, STEPS)
    for row in rows:
        values = np.concatenate([result.queries["ap"] for result in with_ap(row)])  # type: ignore[index]
        source = ColumnDataSource(
            {
                "share": share.round(2).tolist(),
                "ap": np.quantile(values, share).round(DIGITS).tolist(),
                "name": [row.name] * STEPS,
                "backbone": [row.line["backbone"]] * STEPS,
            }
        )
        drawn.line("share", "ap", source=source, name=f"row-{row.number}", line_width=2, **line_style(row.number))
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "share of queries", "AP"
    told = f"Line chart of AP against the share of queries that have no more, {len(rows)} rows; boxes choose them."
    return Figure(drawn, "AP of every query, sorted", told)


def pairs() -> Figure:
    """An empty scatter that the page's script fills with the two chosen runs."""
    drawn = plot(380, HOVER, x_range=(-0.02, 1.02), y_range=(-0.02, 1.02))
    drawn.add_layout(Slope(gradient=1, y_intercept=0, line_dash="dashed", line_color="#555555"))
    source = ColumnDataSource({"x": [], "y": [], "query": [], "person": [], "run": []}, name="points")
    drawn.scatter("x", "y", source=source, size=7, color=BETTER, alpha=0.45)
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "AP of A", "AP of B"
    drawn.xaxis.name, drawn.yaxis.name = "x-axis", "y-axis"
    told = "Scatter of each query's AP under run A, across, and run B, up; the sentence above it counts both sides."
    return Figure(drawn, "AP of each query under two runs", told)
