"""Systems from outside the suite beside its own rows: their figures, and their difference to every row with intervals.

They stand in a table of their own, since nothing is known of their training but what their owners say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from core.files import changed
from evaluation import metrics
from pipeline import cli
from pipeline.jobs import external_folder
from pipeline.params import Params
from pipeline.records import SCORED, ExternalRecord, read_external
from reports.cells import Cell, SharedWeights, cells
from reports.compare import COLUMNS, compare_family
from reports.record import Result, figures_fault, read_queries, side_columns
from reports.table import MAIN, per_replicate
from reports.text import NONE, counts, intervals, markdown_table, number, signed, text_or_dash

FAMILY = "external"
NOTE = (
    "Ranked from features that were made elsewhere, on the same images and under the same protocol. How these systems "
    "were trained is their owners' word. Differences are to each row of this dataset, interval and p as in the other "
    "comparisons; a system has one result for each world or dataset, beside every seed of a row."
)


@dataclass(frozen=True)
class Outside:
    """Systems from outside: a cell for each system and dataset, and what could not be used, for people."""

    cells: list[Cell]
    faults: list[str]


def chosen(options: Any) -> Outside:
    """The systems beside the results of ``reference.chosen``: none beside committed ones."""
    return Outside([], []) if options.source else read(cli.read_params(options))


def read(params: Params) -> Outside:
    """The systems of params.yaml that `external` scored and whose files are those recorded."""
    groups: dict[tuple[str, str], list[Result]] = {}
    faults = []
    for system in params.external:
        folder = external_folder(system.name, system.dataset)
        if not (folder / SCORED).is_file():
            faults.append(f"{system.name} on {system.dataset}: not run; `python -m pipeline external` scores it")
            continue
        record = read_external(folder)
        queries, fault = read_queries(folder / "queries.csv", side_columns(record.protocol.metric))
        fault = fault or figures_fault(record, queries) or changed(folder, record.files)
        if fault:
            faults.append(f"{system.name} on {system.dataset}: {fault}")
        else:
            groups.setdefault((record.run.name, record.run.dataset), []).append(Result(record, queries, folder))
    return Outside([Cell(results[0].record.run, results) for results in groups.values()], faults)


def compare(outside: Outside, results: Sequence[Result]) -> pd.DataFrame:
    """One row with ``compare.COLUMNS`` per system and suite row on the same dataset; ``backbone`` is the row's."""
    rows: list[dict[str, Any]] = []
    own = cells(results)
    for dataset in dict.fromkeys(cell.run.dataset for cell in outside.cells):
        pairs = [
            (beside(cell, row), row)
            for cell in outside.cells
            for row in own
            if cell.run.dataset == row.run.dataset == dataset
        ]
        found = compare_family(FAMILY, pairs, SharedWeights(dataset))
        rows += [{**line, "backbone": row.run.backbone} for line, (_, row) in zip(found, pairs, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"worlds": "Int64"})


def beside(cell: Cell, row: Cell) -> Cell:
    """The system with its one result of each world, or dataset, at every seed of the row."""
    if cell.in_worlds:
        return cell
    seeds = sorted({result.record.seed for result in row.results})
    again = [
        replace(result, record=result.record.model_copy(update={"seed": seed}))
        for seed in seeds
        for result in cell.results
    ]
    return Cell(cell.run, again)


def sections(outside: Outside, comparison: pd.DataFrame) -> dict[str, str]:
    """Markdown by dataset: the systems' figures, and their differences."""
    found = {}
    for dataset in dict.fromkeys(cell.run.dataset for cell in outside.cells):
        listed = [cell for cell in outside.cells if cell.run.dataset == dataset]
        part = comparison[comparison["dataset"] == dataset]
        text = [
            f"### Systems from outside: {dataset}",
            "",
            NOTE,
            "",
            markdown_table([figures(cell) for cell in listed]),
        ]
        text += ["", difference_table(part)] if len(part) else []
        found[dataset] = "\n".join([*text, ""])
    return found


def figures(cell: Cell) -> dict[str, str]:
    """A system's means over worlds, or folds, in percent."""
    records: list[Any] = [result.record for result in cell.results]
    shown = {}
    for metric in (metric for metric in metrics.BOARD if metric.shown):
        values = per_replicate(records, "last", metric.name)
        shown[metric.title] = number(np.mean(values) if values else None, metric.form)
    worlds = {"worlds": str(len(records))} if cell.in_worlds else {}
    first: ExternalRecord = records[0]
    verified = [record.verification.eer for record in records if record.verification]
    eer = number(100 * np.mean(verified) if verified else None)
    return {"system": cell.name, **worlds, **shown, "EER": eer, "as its owner says": first.about or NONE}


def difference_table(part: pd.DataFrame) -> str:
    """Markdown of a dataset's comparisons."""
    return markdown_table(
        {
            "system": part["a"],
            "row": part["b"],
            "backbone": part["backbone"],
            **counts(part),
            f"{MAIN.title}, system - row": [signed(value) for value in part["difference"]],
            "95 % interval": intervals(part),
            "p": [number(value, ".4f") for value in part["p"]],
            "p (Holm)": [number(value, ".4f") for value in part["p_holm"]],
            "verdict": text_or_dash(part["verdict"]),
        }
    )
