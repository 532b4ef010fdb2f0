"""How small a difference the worlds of a table resolve, how many more it would take, and what makes worlds differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from reports.cells import (
    SETTING,
    Cell,
    NotComparableError,
    by_setting,
    check_data,
    shared_replicates,
    world_differences,
    world_levels,
)
from reports.compare import baselines
from reports.record import Result
from reports.statistics import ALPHA, over_worlds
from reports.table import FLOOR, MAIN
from reports.text import markdown_table, number, signed

GOAL = 2.0  # points: the half-width that a table should have
FEWEST = 4  # worlds, for a slope and its spread
NUMBERS = ["difference", "sd", "half_width", "worlds_needed", "correlation", "half_width_equal_starts"]
COLUMNS = ["a", "b", *SETTING, "worlds", *NUMBERS]
NOTE = (
    "Half-width: of the 95 % interval of A - B, in points of mAP. Worlds for {goal}: as many as bring it there, if the "
    "spread stays. Correlation: of A - B with the mAP of the world's warm start. Equal starts: the half-width that is "
    "left when a line over the warm starts is taken out, with n - 2 degrees of freedom. It speaks of A - B in worlds "
    "whose start is the mean of these, and decides nothing."
)


def resolution(results: Sequence[Result]) -> pd.DataFrame:
    """One row with COLUMNS for each method and its first baseline that share two worlds or more, in points."""
    rows = [
        {"a": cell.name, "b": base.name, **resolved(cell, base, floor)} for cell, base, floor in planned_pairs(results)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def planned_pairs(results: Sequence[Result]) -> Iterator[tuple[Cell, Cell, Cell | None]]:
    """Each method of drawn worlds with its first baseline, where they share two worlds or more, and the warm start."""
    for together in by_setting(results):
        floor = next((cell for cell in together if cell.run.method == FLOOR), None)
        for cell in together:
            base = next(iter(baselines(cell, together)), None)
            if base and cell.in_worlds and not cell.bounds and comparable(cell, base):
                yield cell, base, floor


def comparable(cell: Cell, base: Cell) -> bool:
    """Whether two rows share two worlds or more, and were tested on the same data in each."""
    try:
        check_data(cell, base)
    except NotComparableError:
        return False
    return len(shared_replicates(cell, base)) > 1


def resolved(cell: Cell, base: Cell, floor: Cell | None) -> dict[str, object]:
    """The numbers of one pair; those that need the warm start are NaN where it lacks a world."""
    shared = shared_replicates(cell, base)
    differences = 100 * world_differences(cell, base, shared)
    found = over_worlds(differences)
    correlation = half = float("nan")
    if floor and set(shared) <= floor.replicates.keys() and len(shared) >= FEWEST:
        starts = 100 * world_levels(floor, shared)
        correlation, half = float(np.corrcoef(differences, starts)[0, 1]), at_equal_starts(differences, starts)
    return {
        **dict(zip(SETTING, cell.setting, strict=True)),
        "worlds": len(shared),
        "difference": float(found.difference),
        "sd": float(found.sd),
        "half_width": float(found.high - found.low) / 2,
        "worlds_needed": worlds_needed(float(found.sd)),
        "correlation": correlation,
        "half_width_equal_starts": half,
    }


def at_equal_starts(differences: np.ndarray, starts: np.ndarray) -> float:
    """Half-width of the mean of ``differences`` (n,) at the mean of ``starts`` (n,), by a line of one on the other."""
    above = starts - starts.mean()
    slope = above @ differences / (above @ above)
    rest = differences - differences.mean() - slope * above
    freedom = len(rest) - 2
    return float(stdtrit(freedom, 1 - ALPHA / 2) * np.sqrt(rest @ rest / freedom / len(rest)))


def worlds_needed(sd: float, goal: float = GOAL) -> int:
    """The fewest worlds whose half-width is at most ``goal`` when differences vary by ``sd`` between worlds."""
    return next(n for n in count(2) if stdtrit(n - 1, 1 - ALPHA / 2) * sd <= goal * np.sqrt(n))


def markdown(table: pd.DataFrame) -> str:
    """The rows as text, and how many of them reach the goal."""
    reached = [int((table[name] <= GOAL).sum()) for name in ("half_width", "half_width_equal_starts")]
    told = (
        f"Of {len(table)} pairs, {reached[0]} have a half-width of at most {GOAL} points of {MAIN.title}; "
        f"at equal starts, {reached[1]}."
    )
    shown = {
        "A": table["a"],
        "B": table["b"],
        "backbone": table["backbone"],
        "worlds": [number(value, ".0f") for value in table["worlds"]],
        "A - B": [signed(value) for value in table["difference"]],
        "sd": [number(value) for value in table["sd"]],
        "half-width": [number(value) for value in table["half_width"]],
        f"worlds for {GOAL}": [number(value, ".0f") for value in table["worlds_needed"]],
        "correlation": [number(value, "+.2f") for value in table["correlation"]],
        "equal starts": [number(value) for value in table["half_width_equal_starts"]],
    }
    return f"{told} {NOTE.format(goal=GOAL)}\n\n{markdown_table(shown)}"
