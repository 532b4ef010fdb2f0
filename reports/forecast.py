"""Whether what a method gains hangs on how hard a world is: lines of earlier worlds foretell later ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.files import replacing
from reports.cells import SETTING, shared_replicates, world_differences, world_levels
from reports.record import Result
from reports.resolution import FEWEST, planned_pairs
from reports.text import markdown_table, number

FITTED = (0, 1, 2, 3, 4, 5)  # the worlds in which the dependence was first seen
PAIR = ["a", "b", *SETTING]
COLUMNS = [*PAIR, "slope", "worlds", "error_of_mean", "error_of_line"]
NOTE = (
    "Slope: points of A - B per point of mAP of the world's warm start, in worlds {first} to {last}. Errors: root mean "
    "square, in points, of what the mean and the line of these worlds foretell of A - B in the worlds after them."
)
ACROSS = 5  # panels of the picture in a row


def points(results: Sequence[Result]) -> pd.DataFrame:
    """(PAIR, world, start, difference), in points: A - B of each method and its first baseline in each world.

    ``start`` is the mAP of the world's warm start.
    """
    tables = [pd.DataFrame(columns=[*PAIR, "world", "start", "difference"])]
    for cell, base, floor in planned_pairs(results):
        if floor:
            worlds = [world for world in shared_replicates(cell, base) if world in floor.replicates]
            found = {
                "world": worlds,
                "start": 100 * world_levels(floor, worlds),
                "difference": 100 * world_differences(cell, base, worlds),
            }
            pair = {"a": cell.name, "b": base.name, **dict(zip(SETTING, cell.setting, strict=True))}
            tables.append(pd.DataFrame(found).assign(**pair))
    return pd.concat([table for table in tables if len(table)] or tables)


def line(known: pd.DataFrame) -> np.ndarray:
    """Slope, and value at a start of zero, of the differences over the starts."""
    return np.polyfit(known["start"].astype(float), known["difference"].astype(float), 1)


def forecasts(found: pd.DataFrame, fitted: Collection[int] = FITTED) -> pd.DataFrame:
    """One row with COLUMNS for each pair of ``points``: the line of the worlds ``fitted`` foretells all others.

    A pair is left out if fewer than FEWEST worlds are fitted, or none is foretold.
    """
    rows = []
    for pair, part in found.groupby(PAIR, sort=False):
        known = part["world"].isin(list(fitted))
        if known.sum() < FEWEST or known.all():
            continue
        slope, at_zero = line(part[known])
        later = part[~known]
        by_mean = later["difference"] - part[known]["difference"].mean()
        by_line = later["difference"] - at_zero - slope * later["start"]
        rows.append((*pair, slope, len(later), root_mean_square(by_mean), root_mean_square(by_line)))
    return pd.DataFrame(rows, columns=COLUMNS)


def root_mean_square(errors: pd.Series) -> float:
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
    return f"{told} {NOTE.format(first=fitted[0], last=fitted[-1])}\n\n{markdown_table(shown)}"


def draw(found: pd.DataFrame, file: Path, fitted: Collection[int] = FITTED) -> None:
    """A panel per pair of ``points``: A - B over the warm start, filled where fitted, with the line of these worlds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = [(pair, part) for pair, part in found.groupby(PAIR, sort=False) if len(part) >= FEWEST]
    deep = max(1, -(-len(pairs) // ACROSS))
    size = (2.9 * ACROSS, 2.5 * deep)
    figure, axes = pyplot.subplots(deep, ACROSS, figsize=size, sharex=True, sharey=True, layout="constrained")
    for axis, (pair, part) in zip(axes.flat, pairs, strict=False):
        draw_pair(axis, part, fitted)
        axis.set_title(f"{pair[0]}, {pair[3]}\nless {pair[1]}", fontsize=8)
    for axis in axes.flat[max(0, len(pairs) - ACROSS) : len(pairs)]:
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    figure.supxlabel("mAP of the warm start")
    figure.supylabel("A - B, points of mAP")
    with replacing(file) as picture:
        figure.savefig(picture, format="png", dpi=90)
    pyplot.close(figure)


def draw_pair(axis: Any, part: pd.DataFrame, fitted: Collection[int]) -> None:
    """The points of one pair, and its line over all starts."""
    known = part["world"].isin(list(fitted))
    axis.axhline(0, color="0.8", linewidth=1)
    axis.plot(part[known]["start"], part[known]["difference"], "o", markersize=4, color="tab:blue")
    axis.plot(part[~known]["start"], part[~known]["difference"], "o", markersize=5, color="tab:red", fillstyle="none")
    if known.sum() >= FEWEST:
        ends = part["start"].agg(["min", "max"]).astype(float)
        axis.plot(ends, np.polyval(line(part[known]), ends), color="tab:blue", linewidth=1)
