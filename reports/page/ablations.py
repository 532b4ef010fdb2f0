"""What each part of a method is worth: the difference of every ablation row to the full method."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from bokeh.models import ColumnDataSource, Span, Whisker

from pipeline.settings import FULL
from reports.page.board import known
from reports.page.drawing import BETTER, OPEN, WORSE, plot
from reports.page.panel import Figure, Panel
from reports.table import MAIN
from reports.text import interval, number, signed

HOVER = [
    ("", "@row"),
    ("changes", "@changes"),
    ("row - full", "@difference{+0.0} points, 95 % interval @interval"),
    ("verdict", "@verdict"),
]


def panel(folder: Path) -> Panel:
    """A figure per table that `python -m pipeline ablation` wrote into ``folder``."""
    tables = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}
    compared = {method: rows for method, table in tables.items() if len(rows := table[table["difference"].notna()])}
    if not compared:
        return Panel("ablations", "Ablations", missing=f"{folder.as_posix()} holds no ablation with differences.")
    return Panel(
        "ablations",
        "Ablations: what each part is worth",
        values={"tables": {method: lines(rows) for method, rows in compared.items()}},
        figures={f"ablation-{method}": bars(method, rows) for method, rows in compared.items()},
    )


def bars(method: str, rows: pd.DataFrame) -> Figure:
    """A bar per row from zero, with its interval; a row below zero is a part that helps."""
    rows = rows[rows["row"] != FULL].iloc[::-1]
    drawn = plot(70 + 24 * (len(rows) + 1), HOVER, y_range=rows["row"].tolist())
    shades = {"better": BETTER, "worse": WORSE}
    source = ColumnDataSource(
        {
            **{name: rows[name].tolist() for name in ("row", "difference", "low", "high")},
            "changes": rows["changes"].fillna("").tolist(),
            "verdict": rows["verdict"].fillna("").tolist(),
            "interval": [interval(low, high) for low, high in zip(rows["low"], rows["high"], strict=True)],
            "tint": [shades.get(verdict, OPEN) for verdict in rows["verdict"]],
        }
    )
    drawn.hbar(y="row", right="difference", height=0.6, source=source, color="tint", alpha=0.6)
    drawn.add_layout(Whisker(source=source, base="row", lower="low", upper="high", dimension="width", line_width=2))
    drawn.add_layout(Span(location=0, dimension="height", line_color="#555555"))
    low, high = min(0.0, rows["low"].min()), max(0.0, rows["high"].max())
    air = 0.05 * (high - low) or 1.0
    drawn.x_range.start, drawn.x_range.end = low - air, high + air
    drawn.xaxis.axis_label = f"points of {MAIN.title}, row minus full"
    seeds = int(rows["seeds"].max())
    caption = f"{method}, {rows['backbone'].iloc[0]}, {seeds} seed{'s' * (seeds > 1)}"
    worst = rows.loc[rows["difference"].idxmin()]
    told = f"Bar chart of ablation rows, {caption}. Lowest: {worst['row']}, {signed(worst['difference'])} points."
    return Figure(drawn, caption, told)


def lines(rows: pd.DataFrame) -> list[list[str]]:
    """The same as text."""
    return [
        [
            row["row"],
            row["changes"] if known(row["changes"]) else "",
            signed(row["difference"]),
            interval(row["low"], row["high"]),
            number(row["p_holm"], ".4f"),
            str(row["verdict"]),
        ]
        for _, row in rows.iterrows()
    ]
