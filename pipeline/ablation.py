"""Train the ablation rows of a method, and table each row's difference to the full method.

Rows are the `ablations` of the method's config.yaml; the full method is its headline variant. A row that has a current
result is not trained again, so that the full method is shared with the leaderboard.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.config import ConfigError
from core.results import Result, read_result
from pipeline import cli, sweep
from pipeline.compare import NOTE as COMPARISON_NOTE
from pipeline.compare import Cell, SharedWeights, cells, compare_family, interval_text, signed, small
from pipeline.grid import Job, default_backbone
from pipeline.settings import method_config
from pipeline.table import leaderboard, warn_of_quarantined

COLUMNS = [
    *("row", "changes", "dataset", "backbone", "profile", "seeds", "mAP_mean", "mAP_sd", "rank1_mean"),
    *("difference", "low", "high", "p_holm", "probability", "verdict", "images_per_second", "status"),
    "config_hash",
]
FULL = "full"


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/METHOD.csv and .md, and print the latter."""
    arguments = cli.parser("ablation", __doc__ or "")
    arguments.add_argument("--method", required=True, help="a folder of methods/")
    arguments.add_argument("--dataset", default="rendered", help="name of a dataset")
    arguments.add_argument("--backbone", help="default: the one under which params.yaml lists the method")
    arguments.add_argument("--seeds", type=int, nargs="+", help="default: params.yaml's")
    arguments.add_argument("--rows", nargs="+", help="some rows only; default: all")
    arguments.add_argument("--out", type=Path, default=Path("results/ablations"), help="folder to write")
    sweep.add_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    backbone = options.backbone or default_backbone(options.method, params)
    rows = chosen_rows(options.method, options.rows)
    seeds = options.seeds or params["seeds"]
    wanted = {
        row: [Job(run_name(options.method, row), options.dataset, backbone, seed) for seed in seeds] for row in rows
    }
    try:
        sweep.run_missing([job for row in wanted.values() for job in row], params, sweep.machine(options, params))
    except sweep.JobsFailed as error:  # the other rows are worth a table
        print(f"error: {error}", file=sys.stderr)
    table = ablation(options.method, rows, read_rows(wanted))
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / f"{options.method}.csv", index=False)
    text = markdown(options.method, table)
    (options.out / f"{options.method}.md").write_text(text)
    print(text)
    return int(len(table) < len(rows))


def chosen_rows(method: str, asked: Sequence[str] | None) -> dict[str, Mapping[str, Any]]:
    """Row name -> what it changes, the full method first.

    Raises ConfigError when the method lists no ablations, or not the ones asked for.
    """
    known = method_config(method).get("ablations") or {}
    if not known:
        raise ConfigError(f"methods/{method}/config.yaml lists no `ablations`")
    unknown = sorted(set(asked or ()) - set(known))
    if unknown:
        raise ConfigError(f"{method} has no ablation rows {unknown}; known: {', '.join(known)}")
    return {FULL: {}, **{name: patch or {} for name, patch in known.items() if not asked or name in asked}}


def run_name(method: str, row: str) -> str:
    """The run of a row, as `train --method` takes it."""
    return method if row == FULL else f"{method}-{row}"


def read_rows(wanted: Mapping[str, Sequence[Job]]) -> dict[str, list[Result]]:
    """Checked results of each row's seeds that have one; a row without any is left out."""
    found = {
        row: [read_result(job.evaluated) for job in listed if (job.evaluated / "result.json").is_file()]
        for row, listed in wanted.items()
    }
    warn_of_quarantined([result for results in found.values() for result in results])
    return {row: results for row, results in found.items() if results}


def ablation(method: str, rows: Mapping[str, Mapping[str, Any]], found: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """One row with COLUMNS per ablation row that has results; differences are row minus full, in points of mAP."""
    usable = {row: made[0] for row, results in found.items() if (made := cells(results))}
    compared = {entry["row"]: entry for entry in differences(usable)}
    lines = []
    for row, results in found.items():
        shown = leaderboard([result.record for result in results]).iloc[0].to_dict()
        made_by = {"row": row, "changes": changes(rows[row]), "config_hash": results[0].record["run"]["config_hash"]}
        lines.append({**shown, **compared.get(row, {}), **made_by})
    return pd.DataFrame(lines, columns=COLUMNS)


def differences(usable: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """Each row against the full method, from per-query results; p corrected over the method's rows."""
    others = [row for row in usable if row != FULL]
    if FULL not in usable or not others:
        return []
    weights = SharedWeights(usable[FULL].run["dataset"])
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
            "seeds": table["seeds"],
            "mAP": [small(value, ".1f") for value in table["mAP_mean"]],
            "sd": [small(value, ".1f") for value in table["mAP_sd"]],
            "rank-1": [small(value, ".1f") for value in table["rank1_mean"]],
            "row - full": [signed(value) for value in table["difference"]],
            "95 % interval": [interval_text(low, high) for low, high in zip(table["low"], table["high"], strict=True)],
            "p (Holm)": [small(value, ".4f") for value in table["p_holm"]],
            "verdict": table["verdict"].fillna(""),
            "images/s": [small(value, ".0f") for value in table["images_per_second"]],
            "status": table["status"],
        }
    )
    setting = table.iloc[0] if len(table) else {"dataset": "-", "backbone": "-", "profile": "-"}
    title = f"# Ablation of {method}: {setting['dataset']}, {setting['backbone']}, profile {setting['profile']}"
    single = len(table) and int(table["seeds"].max()) == 1
    note = "One seed: differences are between trained models, not between methods." if single else ""
    body = str(shown.to_markdown(index=False, disable_numparse=True))
    return "\n\n".join(part for part in (title, note, COMPARISON_NOTE, body) if part) + "\n"


if __name__ == "__main__":
    cli.run_main(main)
