"""Rank-1 between every two cameras."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource
from bokeh.palettes import Cividis256
from bokeh.transform import linear_cmap

from reports.page.drawing import plot
from reports.page.material import Material, Row, nearest_of, run_name
from reports.page.panel import Figure, Panel

HOVER = [("query camera", "@query"), ("gallery camera", "@gallery"), ("rank-1", "@value{0.0} % of @count queries")]
MISSING = "These results hold no ranking: `python -m pipeline nearest` makes them where weights and images are."


def panel(material: Material) -> Panel:
    """A grid of camera pairs for the row that the reader chooses."""
    held = {row.number: found for row in material.rows if (found := row_data(row))}
    if not held:
        return Panel("cameras", "Camera pairs", missing=MISSING)
    return Panel("cameras", "Rank-1 by camera pair", figures={"camera-pairs": grid()}, data={"cameras": held})


def row_data(row: Row) -> dict[str, Any] | None:
    """Cameras, rank-1 in percent and the number of queries of the row's ranked run; None where none was ranked."""
    for result in row.usable:
        if found := nearest_of(result):
            rates = [[None if rate is None else round(100 * rate, 2) for rate in line] for line in found.rank1]
            return {"run": run_name(result), "cameras": found.cameras, "rank1": rates, "queries": found.asked}
    return None


def grid() -> Figure:
    """An empty grid that the page's script fills with the chosen row."""
    drawn = plot(380, HOVER, x_range=["g1"], y_range=["q1"])
    names = ("query", "gallery", "value", "text", "count", "ink")
    source = ColumnDataSource({name: [] for name in names}, name="pairs")
    tint = linear_cmap("value", Cividis256, 50, 100, low_color=Cividis256[0])
    drawn.rect("gallery", "query", 1, 1, source=source, fill_color=tint, line_color="#FFFFFF")
    drawn.text("gallery", "query", "text", source=source, text_align="center", text_baseline="middle", text_color="ink")
    drawn.grid.grid_line_color = None
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "camera of the gallery", "camera of the query"
    words = "Grid of rank-1 in percent by camera of the query, down, and of the gallery, across."
    return Figure(drawn, "Rank-1, percent", words)
