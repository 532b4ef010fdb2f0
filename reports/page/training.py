"""How runs trained: test mAP, agreement of the pseudo-labels with the truth, clusters, churn and outliers by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from bokeh.models import ColumnDataSource

from reports.page.drawing import line_style, plot
from reports.page.material import Material, Row
from reports.page.panel import Figure, Panel
from reports.record import Result
from reports.table import MAIN

# Columns of curves.csv: title, whether the axis is logarithmic, what multiplies the values.
CURVES = {
    MAIN.name: (f"test {MAIN.title}", False, MAIN.scale),
    "audit_ari": ("adjusted Rand index of the clustered images", False, 1.0),
    "clusters": ("clusters", True, 1.0),
    "audit_churn": ("churn: share of joined pairs that changed", False, 1.0),
    "audit_outlier_share": ("share of images that are outliers", False, 1.0),
}


def panel(material: Material) -> Panel:
    """A figure per quantity with a line per row, the mean over its runs."""
    tables = {row.number: table for row in material.rows if len(table := mean_curves(row.usable))}
    if not tables:
        return Panel("training", "Training", missing="These results hold no training curves.")
    rows = [row for row in material.rows if row.number in tables]
    figures = {
        f"curve-{column}": lines(column, rows, tables)
        for column in CURVES
        if any(column in table for table in tables.values())
    }
    return Panel("training", "Training: what the pseudo-labels do", figures=figures)


def mean_curves(results: Sequence[Result]) -> pd.DataFrame:
    """(epoch, those of CURVES that there are): the mean over runs of each epoch."""
    tables = [result.curves for result in results if len(result.curves)]
    if not tables:
        return pd.DataFrame()
    together = pd.concat(tables, ignore_index=True)
    wanted = [column for column in CURVES if column in together and together[column].notna().any()]
    return together.groupby("epoch")[wanted].mean().reset_index() if wanted else pd.DataFrame()


def lines(column: str, rows: Sequence[Row], tables: dict[int, pd.DataFrame]) -> Figure:
    """A quantity by epoch. Every line is named after its row's number, by which the legend's boxes find it."""
    title, logarithmic, scale = CURVES[column]
    hover = [("", "@name, @backbone"), ("epoch", "@epoch"), (title.partition(":")[0], "@value{0.00}")]
    drawn = plot(300, hover, y_axis_type="log" if logarithmic else "linear")
    drawn.y_range.only_visible = True
    drawn.x_range.only_visible = True
    shown = 0
    for row in rows:
        table = tables[row.number]
        part = table[["epoch", column]].dropna() if column in table else table[:0]
        part = part[part[column] > 0] if logarithmic and len(part) else part
        if part.empty:
            continue
        shown += 1
        values = (scale * part[column]).round(5).tolist()
        names = {"name": [row.name] * len(part), "backbone": [row.line["backbone"]] * len(part)}
        source = ColumnDataSource({"epoch": part["epoch"].tolist(), "value": values, **names})
        drawn.line("epoch", "value", source=source, name=f"row-{row.number}", line_width=2, **line_style(row.number))
        style = {"color": line_style(row.number)["line_color"], "size": 5}
        drawn.scatter("epoch", "value", source=source, name=f"row-{row.number}", **style)
    drawn.xaxis.axis_label = "epoch"
    drawn.xaxis.ticker.min_interval = 1
    return Figure(drawn, title, f"Line chart of {title} by epoch, {shown} rows; the boxes above choose them.")
