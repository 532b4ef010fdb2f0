"""Distances of images of one person and of different people, and the thresholds between them."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource, Span

from reports.page.drawing import BETTER, WORSE, plot
from reports.page.material import Material, run_name
from reports.page.panel import Figure, Panel
from reports.record import Result
from reports.text import NONE, number

# The lines of the figure: where the two errors are equal, and where a share of other people's pairs passes.
THRESHOLDS = {"eer": "solid", "fpr-0.01": "dashed", "fpr-0.001": "dotted"}
RATES = (0.01, 0.001)


def panel(material: Material) -> Panel:
    """A histogram of the run that the reader chooses, and the figures of every row."""
    held = {
        row.number: [run_data(result) for result in row.usable if result.record.verification] for row in material.rows
    }
    held = {number: runs for number, runs in held.items() if runs}
    if not held:
        return Panel("distances", "Distances", missing="These results hold no verification figures.")
    rows = [row for row in material.rows if row.number in held]
    lines = [[row.name, row.line["backbone"], run["name"], *told(run)] for row in rows for run in held[row.number]]
    return Panel(
        "distances",
        "Distances: which one means the same person",
        values={"lines": lines},
        figures={"distance-bins": histogram()},
        data={"distances": held},
    )


def run_data(result: Result) -> dict[str, Any]:
    """A run's counts of pairs, and its thresholds by the names of THRESHOLDS."""
    found = result.record.verification
    points = {point.fpr: point for point in found.at}
    picture = found.panel
    return {
        "name": run_name(result),
        "start": picture.start,
        "width": picture.width,
        "same": list(picture.same),
        "other": list(picture.other),
        "eer": found.eer,
        "thresholds": {
            "eer": found.eer_threshold,
            **{f"fpr-{rate:g}": points[rate].threshold for rate in RATES if rate in points},
        },
        "tpr": {f"fpr-{rate:g}": points[rate].tpr for rate in RATES if rate in points},
    }


def told(run: dict[str, Any]) -> list[str]:
    """The equal error rate in percent and its distance, then the true-match rate and distance at each of RATES."""
    cells = [number(100 * run["eer"]), number(run["thresholds"]["eer"], ".3f")]
    for rate in RATES:
        share, distance = (run[what].get(f"fpr-{rate:g}") for what in ("tpr", "thresholds"))
        cells += [NONE if share is None else number(100 * share), number(distance, ".3f")]
    return cells


def histogram() -> Figure:
    """Two empty histograms and the lines of the thresholds, which the page's script fills with the chosen run."""
    hover = [("distance", "@left{0.00} to @right{0.00}"), ("one person", "@same{0.00}"), ("different", "@other{0.00}")]
    drawn = plot(360, hover, x_range=(0, 2), y_range=(0, 1))
    source = ColumnDataSource({name: [] for name in ("left", "right", "same", "other")}, name="bins")
    style = {"left": "left", "right": "right", "bottom": 0, "source": source, "line_color": None}
    drawn.quad(top="same", color=BETTER, alpha=0.55, legend_label="one person", **style)
    drawn.quad(
        top="other",
        color=WORSE,
        alpha=0.45,
        hatch_pattern="/",
        hatch_alpha=0.3,
        legend_label="different people",
        **style,
    )
    for name, dash in THRESHOLDS.items():
        drawn.add_layout(Span(location=0, dimension="height", line_dash=dash, line_width=2, name=name, visible=False))
    drawn.add_layout(drawn.legend[0], "below")
    drawn.legend[0].orientation = "horizontal"
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "distance", "density of pairs"
    words = "Histogram of the distances of pairs that show one person, and of pairs that show different people. "
    lines = "Lines: equal error rate (solid), 1 % false matches (dashed), 0.1 % (dotted)."
    return Figure(drawn, lines, words + lines)
