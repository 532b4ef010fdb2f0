"""Every run's mAP in its world, and its difference to the baseline there: what means and intervals are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.cells import Cell, NotComparableError, by_setting, check_data, mean_map, shared_replicates
from reports.compare import baselines
from reports.record import Result
from reports.table import KEY, MAIN

COLUMNS = [*KEY, "world", "seed", "fold", MAIN.name, "baseline", "difference"]


def world_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row with COLUMNS per usable result, in percent and points.

    ``difference``: to the mean over seeds of the row's first baseline in the same world; without worlds, to the
    baseline's result of the same seed, averaged over folds. Empty where the baseline has none.
    """
    rows = [row for together in by_setting(results) for cell in together for row in cell_rows(cell, together)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"world": "Int64", "fold": "Int64"})


def cell_rows(cell: Cell, together: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of one leaderboard row."""
    base = next(iter(baselines(cell, together)), None)
    levels = baseline_levels(cell, base) if base else {}
    rows = []
    for replicate, results in cell.replicates.items():
        for result in results:
            record, value = result.record, result.record.selection.last.figure(MAIN.name)
            known = value is not None and replicate in levels
            row = {name: getattr(record.run, name) for name in KEY}
            row |= {"world": record.world, "seed": record.seed, "fold": record.fold}
            row |= {MAIN.name: None if value is None else 100 * value, "baseline": base and base.name}
            rows.append({**row, "difference": 100 * (value - levels[replicate]) if known else None})
    return rows


def baseline_levels(cell: Cell, base: Cell) -> dict[int, float]:
    """mAP of the baseline by replicate, where both were tested on the same data."""
    try:
        check_data(cell, base)
        return {key: mean_map(base.replicates[key]) for key in shared_replicates(cell, base)}
    except NotComparableError:
        return {}
