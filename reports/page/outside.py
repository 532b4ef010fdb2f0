"""Systems from outside the suite: their figures, and their difference to every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports import external
from reports.external import Outside
from reports.page.differences import HEAD, Difference, forest, tables
from reports.page.panel import Panel
from reports.record import Result

NONE_LISTED = (
    "No system from outside the suite is among these results. docs/external.md says how to add one by its features."
)


def panel(outside: Outside, results: Sequence[Result]) -> Panel:
    """A table of figures per dataset, and a forest per system and dataset."""
    if not outside.cells:
        return Panel("outside", "Systems from outside", missing=" ".join([NONE_LISTED, *outside.faults]))
    compared: dict[str, list[Difference]] = {}
    for line in external.compare(outside, results).dropna(subset=["difference"]).to_dict("records"):
        row = f"{line['b']}, {line['backbone']}"
        numbers = {str(key): value for key, value in line.items()}
        compared.setdefault(f"{line['a']} on {line['dataset']}", []).append(Difference(row, line["a"], row, numbers))
    return Panel(
        "outside",
        "Systems from outside",
        values={
            "note": external.NOTE,
            "faults": outside.faults,
            "systems": systems(outside),
            "head": ["system", *HEAD[1:]],
            "tables": tables(compared),
        },
        figures={f"outside-{n}": forest(title, lines, "the row") for n, (title, lines) in enumerate(compared.items())},
    )


def systems(outside: Outside) -> dict[str, dict[str, list[Any]]]:
    """``head`` and ``lines`` of a table of figures per dataset, by its title."""
    found: dict[str, dict[str, list[Any]]] = {}
    for cell in outside.cells:
        figures = external.figures(cell)
        table = found.setdefault(f"Systems from outside on {cell.run.dataset}", {"head": list(figures), "lines": []})
        table["lines"].append(list(figures.values()))
    return found
