"""The leaderboard as a table to sort, search and filter, and to take away as CSV or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from evaluation import metrics
from reports.exports import escape
from reports.page.material import Material, Row, run_name
from reports.page.panel import Panel
from reports.table import MAIN, NOT_RUN
from reports.text import NONE, interval, number, signed

# Columns by which rows are filtered, with their titles; one that has a single value in all rows is left out.
FILTERS = {
    "dataset": "dataset",
    "profile": "profile",
    "backbone": "backbone",
    "group": "group",
    "camera_use": "cameras",
    "fidelity": "fidelity",
    "state": "status",
}
LATEX = [metric for metric in metrics.BOARD if metric.shown]
LATEX_HEAD = [
    r"% needs \usepackage{booktabs}",
    rf"\begin{{tabular}}{{lll{'r' * len(LATEX)}}}",
    r"\toprule",
    " & ".join(["Method", "Variant", "Backbone", *(metric.short for metric in LATEX)]) + r" \\",
    r"\midrule",
]


class Cell(NamedTuple):
    """What is printed, and what it is sorted by: a number, or text in lower case."""

    text: str
    value: Any = ""
    kind: str = "text"


class Tick(NamedTuple):
    """The main figure of one run in percent, and where its tick stands, in percent of the strip's width."""

    name: str
    value: float
    place: float


def panel(material: Material) -> Panel:
    """The table; every row of it is there, those that failed or were not run too."""
    scale = tick_scale(material.rows)
    shown = [
        {
            "number": row.number,
            "cells": cells(row),
            "ticks": ticks(row, scale),
            "filters": {name: facet(row, name) for name in FILTERS},
            "state": state(row),
        }
        for row in material.rows
    ]
    choices = {name: list(dict.fromkeys(entry["filters"][name] for entry in shown)) for name in FILTERS}
    lines = [csv_line(material.table.iloc[[place]]) for place in range(len(material.rows))]
    return Panel(
        anchor="board",
        title="Leaderboard",
        values={
            "rows": shown,
            "columns": list(shown[0]["cells"]) if shown else [],
            "scale": scale,
            "filters": {name: listed for name, listed in choices.items() if len(listed) > 1},
            "titles": FILTERS,
        },
        data={
            "board": {
                "csv_header": csv_line(material.table, header=True),
                "csv": lines,
                "latex": [latex(row) for row in material.rows],
                "latex_head": LATEX_HEAD,
                "latex_foot": [r"\bottomrule", r"\end{tabular}"],
            }
        },
    )


def cells(row: Row) -> dict[str, Cell]:
    """The printed cells of a row by column title, but for the strip of ticks."""
    line = row.line
    return {
        "method": Cell(row.name, row.name.lower()),
        "dataset": Cell(line["dataset"], line["dataset"]),
        "backbone": Cell(line["backbone"], line["backbone"]),
        "runs": Cell(f"{len(row.usable)} of {len(row.results)}", len(row.usable), "number"),
        MAIN.title: figure(line[f"{MAIN.name}_mean"], MAIN.form),
        "sd": figure(line[f"{MAIN.name}_sd"], MAIN.form),
        "to baseline": difference(line),
        "verdict": Cell(verdict(line), verdict(line)),
        "rank": rank(line),
        **{m.title: figure(line[f"{m.name}_mean"], m.form) for m in LATEX if m is not MAIN},
        "cameras": Cell(facet(row, "camera_use"), facet(row, "camera_use")),
        "fidelity": Cell(facet(row, "fidelity"), facet(row, "fidelity")),
        **{f"published {m.title}": figure(line[f"published_{m.name}"], m.form) for m in metrics.JUDGES},
        "target images": figure(line["images_seen"], ".0f"),
        "source images": figure(line["source_images_seen"], ".0f"),
        "minutes": figure(line["minutes"], ".1f"),
        "status": Cell(line["status"], line["status"]),
    }


def known(value: Any) -> bool:
    """Whether a cell of the table holds something."""
    return not pd.isna(value)


def rank(line: dict[str, Any]) -> Cell:
    """The ranks that no resolved pair excludes; sorted by the best of them, then by the worst."""
    if not known(line["rank_low"]):
        return Cell(NONE, "", "number")
    best, worst = int(line["rank_low"]), int(line["rank_high"])
    return Cell(str(best) if best == worst else f"{best} to {worst}", best + worst / 1000, "number")


def difference(line: dict[str, Any]) -> Cell:
    """The difference to the baseline in points, with its interval."""
    if not known(line["difference"]):
        return Cell(NONE, "", "number")
    around = f" {interval(line['low'], line['high'])}" if known(line["low"]) else ""
    text = f"{signed(line['difference'])}{around}"
    return Cell(text, float(line["difference"]), "number")


def figure(value: Any, form: str) -> Cell:
    """A number, to its printed digits and whole."""
    return Cell(number(value, form), float(value) if known(value) else "", "number")


def verdict(line: dict[str, Any]) -> str:
    """The verdict with a sign that needs no colour."""
    if not known(line["verdict"]):
        return NONE
    return {"better": "▲ better", "worse": "▼ worse"}.get(line["verdict"], f"○ {line['verdict']}")


def facet(row: Row, name: str) -> str:
    """What a row is filtered by."""
    if name == "state":
        return state(row)
    if name == "group":
        return "domain-adaptive" if row.adaptive else "target alone"
    value = row.line[name]
    if name == "fidelity" and isinstance(value, str):
        return value.partition(":")[0].partition(" (")[0]
    return value if isinstance(value, str) else NONE


def state(row: Row) -> str:
    """``ok``, ``not run`` or ``incomplete``: some of its runs failed, contradict themselves or are missing."""
    told = row.line["status"]
    return told if told in ("ok", NOT_RUN) else "incomplete"


def tick_scale(rows: Sequence[Row]) -> tuple[float, float]:
    """The ends of all strips: the next tens around every value."""
    values = [value for row in rows for _, value in values_of(row)]
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    return 10.0 * math.floor(low / 10), 10.0 * max(math.ceil(high / 10), math.floor(low / 10) + 1)


def values_of(row: Row) -> list[tuple[str, float]]:
    """The main figure of each usable run, in percent, with what tells the run from its siblings."""
    found = [(run_name(result), result.record.selection.last.figure(MAIN.name)) for result in row.usable]
    return [(name, MAIN.scale * value) for name, value in found if value is not None]


def ticks(row: Row, scale: tuple[float, float]) -> list[Tick]:
    """The strip of a row."""
    low, high = scale
    return [Tick(name, value, 100 * (value - low) / (high - low)) for name, value in values_of(row)]


def csv_line(table: pd.DataFrame, header: bool = False) -> str:
    """A table of one row, or its header alone, as a line of a CSV file."""
    shown = table.iloc[:0] if header else table
    return shown.to_csv(index=False, header=header).rstrip("\r\n")


def latex(row: Row) -> str:
    """A line of a booktabs table; a row without numbers says why in the place of its first."""
    line = row.line
    numbers = [number(line[f"{metric.name}_mean"], metric.form).replace(NONE, "--") for metric in LATEX]
    if known(line[f"{MAIN.name}_sd"]):
        numbers[0] += rf" {{\scriptsize $\pm$ {number(line[f'{MAIN.name}_sd'], MAIN.form)}}}"
    if state(row) != "ok" and all(text == "--" for text in numbers):
        numbers[0] = escape(line["status"].partition(":")[0])
    names = [escape(line[name]) for name in ("method", "variant", "backbone")]
    return " & ".join([*names, *numbers]) + r" \\"
