"""Whether drawn people order the methods as real people do: each method on both."""

from __future__ import annotations

from itertools import product

from bokeh.models import ColumnDataSource
from scipy.stats import kendalltau

from pipeline.params import DRAWN
from reports.page.board import known
from reports.page.drawing import BETTER, plot
from reports.page.material import Material, Row
from reports.page.panel import Figure, Panel
from reports.table import MAIN

FEWEST = 3  # methods on both, below which an order says nothing


def panel(material: Material) -> Panel:
    """A figure per setting of drawn and setting of real people that share methods."""
    figures = {}
    settings = list(material.settings())
    of_drawn = [pair for pair in settings if pair[1][0].line["dataset"] == DRAWN]
    of_real = [pair for pair in settings if pair[1][0].line["dataset"] != DRAWN]
    for (drawn, ours), (real, theirs) in product(of_drawn, of_real):
        shared = pairs(ours, theirs)
        if len(shared) >= FEWEST:
            figures[f"drawn-{len(figures)}"] = scatter(drawn, real, shared)
    if not figures:
        reason = f"These results do not hold {FEWEST} methods on drawn and on real people both."
        return Panel("drawn", "Drawn against real", missing=reason)
    return Panel("drawn", "Drawn people against real people", figures=figures)


def pairs(drawn: list[Row], real: list[Row]) -> list[tuple[str, float, float]]:
    """(row, main figure on drawn people, on real people) of the rows that have both."""
    column = f"{MAIN.name}_mean"
    there = {row.name: row.line[column] for row in real if known(row.line[column])}
    return [
        (row.name, row.line[column], there[row.name]) for row in drawn if row.name in there and known(row.line[column])
    ]


def scatter(drawn: str, real: str, shared: list[tuple[str, float, float]]) -> Figure:
    """Drawn across, real up, with the rank correlation."""
    names, across, up = (list(values) for values in zip(*shared, strict=True))
    picture = plot(380, [("", "@name"), (drawn, "@x{0.0}"), (real, "@y{0.0}")])
    picture.scatter("x", "y", source=ColumnDataSource({"name": names, "x": across, "y": up}), size=10, color=BETTER)
    picture.xaxis.axis_label, picture.yaxis.axis_label = f"{MAIN.title}, {drawn}", f"{MAIN.title}, {real}"
    tau = float(kendalltau(across, up).statistic)
    caption = f"{real} against {drawn}: Kendall's tau {tau:.2f} over {len(shared)} methods"
    return Figure(picture, caption, f"Scatter of {MAIN.title}: {caption}.")
