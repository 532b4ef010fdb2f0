"""What papers print beside what this suite measured on the same data."""

from __future__ import annotations

from bokeh.models import ColumnDataSource, Slope

from evaluation import metrics
from reports.page.board import known
from reports.page.drawing import colour, marker, plot
from reports.page.material import Material, Row
from reports.page.panel import Figure, Panel
from reports.published import rows as published_rows
from reports.table import MAIN
from reports.text import NONE, number

RULES = {"last epoch": "{}_mean", "best epoch on test, the papers' habit": "{}_best_on_test_mean"}
NOTE = (
    "Every number that the papers of these methods print, with where it was read. Numbers on different data must not "
    "be compared: a reproduced number stands beside a published one only where this suite ran the same data."
)


def panel(material: Material) -> Panel:
    """The published numbers, and a figure of those that have a reproduced one beside them."""
    lines = published_lines(material)
    if not lines:
        return Panel("published", "Published", missing="No paper of these methods prints a number that is known.")
    both = [row for row in material.rows if known(row.line[f"published_{MAIN.name}"]) and row.usable]
    alone = "" if both else "None of them is on data that these results hold, so there is no figure."
    figures = {"published": scatter(both)} if both else {}
    return Panel("published", "Published against reproduced", {"note": NOTE, "alone": alone, "lines": lines}, figures)


def published_lines(material: Material) -> list[list[str]]:
    """Method, dataset, backbone, published judges, reproduced main figure by both rules, and the source."""
    ran = {
        (row.line["method"], row.line["variant"], row.line["backbone"], row.line["dataset"]): row
        for row in material.rows
    }
    lines = []
    for method in dict.fromkeys(row.line["method"] for row in material.rows):
        for paper in published_rows(method):
            row = ran.get((method, paper.variant, paper.backbone, paper.dataset))
            figures = [number(paper.figure(judge.name), judge.form) for judge in metrics.JUDGES]
            ours = [number(row.line[rule.format(MAIN.name)], MAIN.form) if row else NONE for rule in RULES.values()]
            if figures != [NONE] * len(figures) or row:
                lines.append(
                    [f"{method}:{paper.variant}", paper.dataset, paper.backbone, *figures, *ours, paper.source]
                )
    return lines


def scatter(rows: list[Row]) -> Figure:
    """Published across, reproduced up, under both rules; on the line they agree."""
    drawn = plot(380, [("", "@name"), ("published", "@published{0.0}"), ("reproduced", "@reproduced{0.0}")])
    drawn.add_layout(Slope(gradient=1, y_intercept=0, line_dash="dashed", line_color="#555555"))
    for place, (rule, column) in enumerate(RULES.items()):
        source = ColumnDataSource(
            {
                "name": [f"{row.name}, {row.line['dataset']}" for row in rows],
                "published": [row.line[f"published_{MAIN.name}"] for row in rows],
                "reproduced": [row.line[column.format(MAIN.name)] for row in rows],
            }
        )
        style = {"marker": marker(place), "color": colour(place), "size": 10, "legend_label": rule}
        drawn.scatter("published", "reproduced", source=source, **style)
    drawn.add_layout(drawn.legend[0], "below")
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = f"published {MAIN.title}", f"reproduced {MAIN.title}"
    told = f"Scatter of published against reproduced {MAIN.title} of {len(rows)} rows; the table holds the numbers."
    return Figure(drawn, "Published against reproduced", told)
