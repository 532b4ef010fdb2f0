"""Result folders as `evaluate` writes them, and the checks each must pass before its numbers enter a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError

RANKS = (1, 5, 10)
PRECISIONS = ("mAP", "mINP")  # null under a protocol whose headline is rank1, which judges by the CMC alone
METRICS = (*PRECISIONS, *(f"rank{k}" for k in RANKS))
SIDE_COLUMNS = {
    "mAP": ("query", "person_id", "ap", "first_match_rank"),
    "rank1": ("query", "person_id", *(f"rank{k}" for k in RANKS)),
}
TOLERANCE = 1e-6  # fractions: far below what is printed, far above rounding in a text file


@dataclass(frozen=True)
class Result:
    """One run: ``record`` is result.json of ``folder``, ``queries`` the last epoch's table, by query index.

    ``record["status"]`` is ``ok``, ``failed`` (training gave no result) or ``quarantined`` (the files contradict
    themselves), the last two with a ``reason``. ``queries`` is None unless ``ok``.
    """

    record: dict[str, Any]
    queries: pd.DataFrame | None
    folder: Path

    @property
    def ok(self) -> bool:
        """Whether the numbers may be used."""
        return self.record["status"] == "ok"


def headline(record: Mapping[str, Any]) -> str:
    """The figure that its protocol judges a run by: ``mAP``, or ``rank1`` where that defines no mAP."""
    return str(record.get("protocol", {}).get("headline", "mAP"))


def read_result(folder: Path) -> Result:
    """Read a result folder; one whose numbers contradict each other comes back quarantined.

    Raises UserError when there is no result.json or when it cannot be read at all.
    """
    file = folder / "result.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist; run `python -m pipeline.evaluate` first")
    try:
        record = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON ({error}); run `python -m pipeline.evaluate` again") from error
    if record["status"] != "ok":
        return Result(record, None, folder)
    judged_by = headline(record)
    queries, reason = read_queries(folder / "queries.csv", SIDE_COLUMNS[judged_by])
    reason = reason or selection_fault(record["selection"], judged_by)
    if queries is not None:
        reason = reason or side_file_fault(record["selection"]["last"], queries, judged_by)
    if reason:
        return Result({**record, "status": "quarantined", "reason": f"{folder.name}: {reason}"}, None, folder)
    return Result(record, queries, folder)


def read_queries(file: Path, columns: Sequence[str]) -> tuple[pd.DataFrame | None, str | None]:
    """The side file ordered by query, or None and what is wrong with the file."""
    try:
        queries = pd.read_csv(file)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        return None, f"{file.name} cannot be read ({error})"
    missing = [name for name in columns if name not in queries]
    if missing:
        return None, f"{file.name} lacks the columns {missing}"
    strange = [name for name in columns if not pd.api.types.is_numeric_dtype(queries[name])]
    if strange or queries[list(columns)].isna().any(axis=None):
        return None, f"{file.name} holds cells that are no numbers"
    return queries.sort_values("query").reset_index(drop=True), None


def selection_fault(selection: Mapping[str, Any], judged_by: str) -> str | None:
    """What is wrong with the figures themselves, or None; without a mAP, best on test means ``judged_by``."""
    last, best = selection["last"], selection["best_on_test"]
    for name in METRICS:
        value = last.get(name)
        if judged_by == "rank1" and name in PRECISIONS:
            if value is not None:
                return f"{name} is {value}, but the protocol defines none"
        elif not isinstance(value, int | float) or not 0 <= value <= 1:
            return f"{name} is {value}, not a fraction"
    if not last["rank1"] <= last["rank5"] <= last["rank10"]:
        return f"rank-1, 5 and 10 do not rise: {last['rank1']}, {last['rank5']}, {last['rank10']}"
    if best[judged_by] is None or best[judged_by] < last[judged_by]:
        return f"{judged_by} of the best epoch on test, {best[judged_by]}, is below the last epoch's, {last[judged_by]}"
    return None


def side_file_fault(last: Mapping[str, Any], queries: pd.DataFrame, judged_by: str) -> str | None:
    """Where figures and per-query results disagree, or None."""
    if len(queries) != last["valid_queries"]:
        return f"{len(queries)} rows in queries.csv, but valid_queries is {last['valid_queries']}"
    if queries["query"].duplicated().any():
        return "queries.csv names a query twice"
    if judged_by == "mAP":
        first = queries["first_match_rank"].to_numpy()
        recomputed = {f"rank{k}": float(np.mean(first <= k)) for k in RANKS} | {"mAP": float(queries["ap"].mean())}
    else:  # shares of random galleries
        recomputed = {f"rank{k}": float(queries[f"rank{k}"].mean()) for k in RANKS}
    for name, value in recomputed.items():
        if abs(value - last[name]) > TOLERANCE:
            return f"{name} is {last[name]:.6f}, but queries.csv gives {value:.6f}"
    return None
