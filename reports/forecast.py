"""Whether what a method gains hangs on how hard a world is: lines of earlier worlds foretell later ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from reports.cells import SETTING, Cell, by_setting, shared_replicates, world_differences, world_levels
from reports.compare import baselines
from reports.record import Result
from reports.resolution import FEWEST, comparable
from reports.table import FLOOR
from reports.text import markdown_table, number

FITTED = (0, 1, 2, 3, 4, 5)  # the worlds in which the dependence was first seen
COLUMNS = ["a", "b", *SETTING, "slope", "worlds", "error_of_mean", "error_of_line"]
NOTE = (
    "Slope: points of A - B per point of mAP of the world's warm start, in worlds {fitted}. Errors: root mean square, "
    "in points, of what their mean and their line foretell of A - B in the worlds after them."
)


def forecasts(results: Sequence[Result], fitted: Collection[int] = FITTED) -> pd.DataFrame:
    """One row with COLUMNS for each method and its first baseline, in points: the line of A - B over the warm start.

    It is fitted in the worlds ``fitted``, FEWEST at least, and foretells all others.
    """
    rows = []
    for together in by_setting(results):
        floor = next((cell for cell in together if cell.run.method == FLOOR), None)
        for cell in together:
            base = next(iter(baselines(cell, together)), None)
            if floor and base and cell.in_worlds and not cell.bounds and comparable(cell, base):
                rows += forecast(cell, base, floor, fitted)
    return pd.DataFrame(rows, columns=COLUMNS)


def forecast(cell: Cell, base: Cell, floor: Cell, fitted: Collection[int]) -> list[dict[str, object]]:
    """The row of one pair; none where too few worlds are fitted or none is foretold."""
    shared = [world for world in shared_replicates(cell, base) if world in floor.replicates]
    known = np.isin(shared, list(fitted))
    if known.sum() < FEWEST or known.all():
        return []
    differences, starts = 100 * world_differences(cell, base, shared), 100 * world_levels(floor, shared)
    slope, at_zero = np.polyfit(starts[known], differences[known], 1)
    line = at_zero + slope * starts
    errors = {"error_of_mean": differences - differences[known].mean(), "error_of_line": differences - line}
    row = {"a": cell.name, "b": base.name, **dict(zip(SETTING, cell.setting, strict=True)), "slope": slope}
    row |= {"worlds": int((~known).sum())}
    return [{**row, **{name: root_mean_square(values[~known]) for name, values in errors.items()}}]


def root_mean_square(errors: np.ndarray) -> float:
    """sqrt(mean of squares)."""
    return float(np.sqrt((errors**2).mean()))


def markdown(table: pd.DataFrame, fitted: Sequence[int] = FITTED) -> str:
    """The rows as text, and of how many the line foretold more than the mean."""
    if table.empty:
        return "No world after these yet."
    better = int((table["error_of_line"] < table["error_of_mean"]).sum())
    shown = {
        "A": table["a"],
        "B": table["b"],
        "backbone": table["backbone"],
        "slope": [number(value, "+.2f") for value in table["slope"]],
        "worlds foretold": [number(value, ".0f") for value in table["worlds"]],
        "error of the mean": [number(value) for value in table["error_of_mean"]],
        "error of the line": [number(value) for value in table["error_of_line"]],
    }
    told = f"The line foretold {better} of {len(table)} pairs better than the mean did."
    return f"{told} {NOTE.format(fitted=f'{fitted[0]} to {fitted[-1]}')}\n\n{markdown_table(shown)}"
