"""The table of a method's ablation rows: each row's difference to the full method, its headline variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.files import write_csv, write_text
from evaluation import metrics
from pipeline.jobs import Job
from pipeline.settings import FULL
from reports.cells import Cell, SharedWeights, cells
from reports.compare import NOTE as COMPARISON_NOTE
from reports.compare import NUMBERS, compare_family
from reports.record import Result, read_result
from reports.table import MAIN, figures, leaderboard, mean_and_sd, warn_of_unusable
from reports.text import counts, intervals, markdown_table, number, signed, text_or_dash

COLUMNS = [
    *("row", "changes", "dataset", "backbone", "profile", "worlds", "seeds", f"{MAIN.name}_mean", f"{MAIN.name}_sd"),
    *(f"{judge.name}_mean" for judge in metrics.JUDGES if judge != MAIN),
    *(*NUMBERS, "verdict", "images_per_second", "status", "config_hash"),
]


def write(
    method: str, rows: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Sequence[Job]], out: Path
) -> pd.DataFrame:
    """Write OUT/METHOD.csv and .md of the jobs that have results, print the latter, and return the table."""
    table = ablation(method, rows, read_rows(wanted))
    write_csv(out / f"{method}.csv", table)
    text = markdown(method, table)
    write_text(out / f"{method}.md", text)
    print(text)
    return table


def read_rows(wanted: Mapping[str, Sequence[Job]]) -> dict[str, list[Result]]:
    """Checked results of each row's seeds that have one; a row without any is left out."""
    found = {
        row: [read_result(job.evaluated) for job in listed if (job.evaluated / "result.json").is_file()]
        for row, listed in wanted.items()
    }
    warn_of_unusable([result for results in found.values() for result in results])
    return {row: results for row, results in found.items() if results}


def ablation(method: str, rows: Mapping[str, Mapping[str, Any]], found: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """One row with COLUMNS per ablation row that has results; differences are row minus full, in points of mAP."""
    usable = {row: made[0] for row, results in found.items() if (made := cells(results))}
    compared = {entry["row"]: entry for entry in differences(usable)}
    lines = []
    for row, results in found.items():
        shown = leaderboard([result.record for result in results]).iloc[0].to_dict()
        made_by = {"row": row, "changes": changes(rows[row]), "config_hash": results[0].record.run.config_hash}
        lines.append({**shown, **compared.get(row, {}), **made_by})
    return pd.DataFrame(lines, columns=COLUMNS)


def differences(usable: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """Each row against the full method, from per-query results; p corrected over the method's rows."""
    others = [row for row in usable if row != FULL]
    if FULL not in usable or not others:
        return []
    weights = SharedWeights(usable[FULL].run.dataset)
    made = compare_family("ablation", [(usable[row], usable[FULL]) for row in others], weights)
    return [{**entry, "row": row} for row, entry in zip(others, made, strict=True)]


def changes(patch: Mapping[str, Any], prefix: str = "") -> str:
    """``settings.w_hard=0.0, ...`` of a row's patch."""
    told = []
    for key, value in patch.items():
        nested = isinstance(value, Mapping)
        told.append(changes(value, f"{prefix}{key}.") if nested else f"{prefix}{key}={value}")
    return ", ".join(told)


def markdown(method: str, table: pd.DataFrame) -> str:
    """The table for people, with what a difference means."""
    shown = pd.DataFrame(
        {
            "row": table["row"],
            "changes": table["changes"],
            **counts(table),
            **mean_and_sd(table),
            **{judge.title: figures(table, judge) for judge in metrics.JUDGES if judge != MAIN},
            "row - full": [signed(value) for value in table["difference"]],
            "95 % interval": intervals(table),
            "p (Holm)": [number(value, ".4f") for value in table["p_holm"]],
            "verdict": text_or_dash(table["verdict"]),
            "images/s": [number(value, ".0f") for value in table["images_per_second"]],
            "status": table["status"],
        }
    )
    setting = table.iloc[0] if len(table) else {"dataset": "-", "backbone": "-", "profile": "-"}
    title = f"# Ablation of {method}: {setting['dataset']}, {setting['backbone']}, profile {setting['profile']}"
    return "\n\n".join((title, COMPARISON_NOTE, markdown_table(shown))) + "\n"
