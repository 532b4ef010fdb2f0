"""Cost against accuracy, with the line of those rows that no cheaper row beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, Whisker

from reports.page.board import facet, known
from reports.page.drawing import colour, marker, plot
from reports.page.material import Material, Row
from reports.page.panel import Figure, Panel
from reports.table import CEILING, MAIN
from reports.text import number

HOVER = [
    ("", "@name, @backbone"),
    (MAIN.title, "@figure{0.0}, sd @sd"),
    ("minutes", "@minutes{0.0}"),
    ("cameras", "@cameras"),
]


def panel(material: Material) -> Panel:
    """A figure per dataset and profile, over the rows that train and have a result."""
    trained = {task: part for task, rows in material.tasks() if (part := [row for row in rows if costs(row)])}
    if not trained:
        return Panel("cost", "Cost", missing="No row that trains has a result.")
    return Panel(
        "cost",
        "Cost against accuracy",
        values={"tables": {task: lines(rows) for task, rows in trained.items()}},
        figures={f"cost-{n}": scatter(task, rows) for n, (task, rows) in enumerate(trained.items())},
    )


def costs(row: Row) -> bool:
    """Whether a row has trained and has the main figure."""
    seen = row.line["images_seen"] or row.line["source_images_seen"]
    return known(row.line[f"{MAIN.name}_mean"]) and bool(row.line["minutes"] and seen)


def scatter(task: str, rows: Sequence[Row]) -> Figure:
    """Minutes against the main figure: the marker is the backbone, the colour where cameras are used."""
    drawn = plot(430, HOVER)
    backbones = list(dict.fromkeys(row.line["backbone"] for row in rows))
    uses = sorted({facet(row, "camera_use") for row in rows})
    best = front(rows)
    drawn.step(*zip(*[point(row) for row in best], strict=True), mode="after", line_color="#555555", line_dash="dashed")
    for use in uses:
        for place, backbone in enumerate(backbones):
            part = [row for row in rows if (row.line["backbone"], facet(row, "camera_use")) == (backbone, use)]
            if not part:
                continue
            source, tint = ColumnDataSource(columns(part)), colour(uses.index(use))
            label = f"cameras: {use}" + (f", {backbone}" if len(backbones) > 1 else "")
            drawn.add_layout(Whisker(source=source, base="minutes", lower="low", upper="high", line_color=tint))
            shape = marker(place)
            drawn.scatter("minutes", "figure", source=source, marker=shape, size=11, color=tint, legend_label=label)
    legend = drawn.legend[0]
    legend.ncols = 2
    drawn.add_layout(legend, "below")
    drawn.xaxis.axis_label = "minutes of a run"
    drawn.yaxis.axis_label = f"{MAIN.title}, last epoch"
    names = ", ".join(row.name for row in best)
    told = f"Scatter, {task}: minutes of a run against {MAIN.title}. No cheaper row beats these: {names}."
    return Figure(drawn, task, told)


def point(row: Row) -> tuple[float, float]:
    """Where a row stands."""
    return float(row.line["minutes"]), float(row.line[f"{MAIN.name}_mean"])


def front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front: no other row is as cheap and better. The bound that trains on labels is no competitor."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (point(row)[0], -point(row)[1])):
        competes = row.line["method"] != CEILING or row.adaptive
        if competes and (not kept or point(row)[1] > point(kept[-1])[1]):
            kept.append(row)
    return kept


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What the figure draws and its hover shows."""
    figures = [point(row)[1] for row in rows]
    spreads = [row.line[f"{MAIN.name}_sd"] for row in rows]
    around = [float(sd) if known(sd) else 0.0 for sd in spreads]
    return {
        "name": [row.name for row in rows],
        "backbone": [row.line["backbone"] for row in rows],
        "cameras": [facet(row, "camera_use") for row in rows],
        "minutes": [point(row)[0] for row in rows],
        "figure": figures,
        "sd": [number(sd, MAIN.form) for sd in spreads],
        "low": [value - sd for value, sd in zip(figures, around, strict=True)],
        "high": [value + sd for value, sd in zip(figures, around, strict=True)],
    }


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The same as text, and the peak of memory."""
    best = front(rows)
    return [
        [
            row.name,
            row.line["backbone"],
            number(point(row)[0]),
            number(point(row)[1], MAIN.form),
            number(row.line["peak_memory_gib"]),
            "yes" if row in best else "no",
        ]
        for row in rows
    ]
