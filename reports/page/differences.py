"""The forest plot: each row's difference to its baselines with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from bokeh.models import ColumnDataSource, Span, Whisker

from reports.compare import NOTE
from reports.page.board import known, verdict
from reports.page.drawing import BETTER, OPEN, WORSE, plot
from reports.page.material import Material
from reports.page.panel import Figure, Panel
from reports.table import MAIN
from reports.text import interval, number, signed

HEAD = ["row", "baseline", "difference", "95 % interval", "p (Holm)", "P(better)", "verdict"]
FAMILIES = {"": ["baseline"], ", domain-adaptive": ["adaptation", "adaptation beside"]}  # of `compare`, by title
LOOKS = {"better": (BETTER, "triangle"), "worse": (WORSE, "inverted_triangle")}
HOVER = [
    ("", "@row against @baseline"),
    ("difference", "@difference_text points, 95 % interval @interval"),
    ("p (Holm)", "@p_holm"),
    ("P(better)", "@probability"),
    ("verdict", "@verdict"),
]


class Difference(NamedTuple):
    """A line of a forest: what stands left of it, the two that are compared, and the numbers of `compare`."""

    name: str
    row: str
    baseline: str
    numbers: dict[str, Any]

    @property
    def look(self) -> str:
        """``better``, ``worse`` or ``open``."""
        return self.numbers["verdict"] if self.numbers["verdict"] in LOOKS else "open"

    @property
    def texts(self) -> list[str]:
        """The line of the table, by HEAD."""
        return [
            self.row,
            self.baseline,
            signed(self.numbers["difference"]),
            interval(self.numbers["low"], self.numbers["high"]),
            number(self.numbers["p_holm"], ".4f"),
            number(self.numbers["probability"], ".3f"),
            verdict(self.numbers),
        ]


def panel(material: Material) -> Panel:
    """A forest per setting, over rows that have a baseline."""
    compared = {}
    for setting, rows in material.settings():
        for title, families in FAMILIES.items():
            if part := differences(material.comparison, rows[0].setting, families):
                compared[f"{setting}{title}"] = part
    if not compared:
        return Panel("differences", "Differences", missing="No row has a baseline that was run beside it.")
    return Panel(
        "differences",
        "Differences to the baseline",
        values={"note": NOTE, "head": HEAD, "tables": tables(compared)},
        figures={f"forest-{n}": forest(setting, part) for n, (setting, part) in enumerate(compared.items())},
    )


def tables(compared: dict[str, list[Difference]]) -> dict[str, list[list[str]]]:
    """The differences as text, by title."""
    return {title: [line.texts for line in part] for title, part in compared.items()}


def differences(comparison: pd.DataFrame, setting: tuple[str, str, str], families: Sequence[str]) -> list[Difference]:
    """The planned comparisons of a dataset, profile and backbone; a row's second baseline is named beside it."""
    wanted = dict(zip(("dataset", "profile", "backbone"), setting, strict=True))
    here = (comparison[list(wanted)] == pd.Series(wanted)).all(axis=1)
    planned = comparison[here & comparison["family"].isin(families)]
    found: dict[str, Difference] = {}
    for line in planned.dropna(subset=["difference"]).to_dict("records"):
        row, base = str(line["a"]), str(line["b"])
        name = row if row not in found else f"{row}, against {base}"
        found[name] = Difference(name, row, base, {str(key): value for key, value in line.items()})
    return list(found.values())


def forest(setting: str, lines: Sequence[Difference], above: str = "the baseline") -> Figure:
    """The lines from the top down; ``above``: what their zero is."""
    ordered = list(lines)[::-1]
    drawn = plot(60 + 24 * (len(lines) + 2), HOVER, y_range=[line.name for line in ordered])
    drawn.add_layout(Span(location=0, dimension="height", line_dash="dashed", line_color="#555555"))
    for outcome in ("better", "worse", "open"):
        source = ColumnDataSource(columns([line for line in ordered if line.look == outcome]))
        tint, shape = LOOKS.get(outcome, (OPEN, "circle"))
        drawn.add_layout(
            Whisker(
                source=source, base="name", lower="low", upper="high", dimension="width", line_color=tint, line_width=2
            )
        )
        drawn.scatter("difference", "name", source=source, marker=shape, color=tint, size=11)
    drawn.x_range.start, drawn.x_range.end = ends(lines)
    drawn.xaxis.axis_label = f"points of {MAIN.title} above {above}"
    counts = {outcome: sum(line.look == outcome for line in lines) for outcome in ("better", "worse", "open")}
    told = (
        f"Forest plot, {setting}: of {len(lines)} differences, {counts['better']} are better than {above}, "
        f"{counts['worse']} are worse, and {counts['open']} have no verdict or are not resolved."
    )
    return Figure(drawn, setting, told)


def columns(lines: Sequence[Difference]) -> dict[str, list[Any]]:
    """What a forest draws, and the same as text for its hover; an interval that nothing is known of is not drawn."""
    text = ("row", "baseline", "difference_text", "interval", "p_holm", "probability", "verdict")
    return {
        "name": [line.name for line in lines],
        **{name: [float(line.numbers[name]) for line in lines] for name in ("difference", "low", "high")},
        **{name: [line.texts[place] for line in lines] for place, name in enumerate(text)},
    }


def ends(lines: Sequence[Difference]) -> tuple[float, float]:
    """Ends of the axis: all intervals, zero, and some air."""
    values = [line.numbers[name] for line in lines for name in ("difference", "low", "high")]
    values = [value for value in values if known(value)]
    low, high = min(0.0, *values), max(0.0, *values)
    air = 0.05 * (high - low) or 1.0
    return low - air, high + air
