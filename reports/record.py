"""Result folders as `evaluate` writes them, and the checks each must pass before its numbers enter a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from core.files import changed
from evaluation import metrics
from pipeline import records
from pipeline.jobs import Job
from pipeline.records import EpochScores, NotRunRecord, ResultRecord, Selection

TOLERANCE = 1e-6  # fractions: far below what is printed, far above rounding in a text file


@dataclass(frozen=True)
class Result:
    """One run: ``record`` is result.json of ``folder``, ``queries`` the last epoch's table, by query index.

    ``record.status`` is ``ok``, ``failed`` (training gave no result) or ``quarantined`` (the files contradict
    themselves), the last two with a ``reason``. ``queries`` is None unless ``ok``. ``curves`` has a line per epoch. A
    result of the reference has its folder's name only (``reports.reference``).
    """

    record: ResultRecord | NotRunRecord
    queries: pd.DataFrame | None
    folder: Path
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def ok(self) -> bool:
        """Whether the numbers may be used."""
        return self.record.status == "ok"


def side_columns(metric: str) -> list[str]:
    """What queries.csv must hold under a protocol of that ``metric``, for its figures to be computed again."""
    read = [column for entry in metrics.defined(metric) for column in entry.columns(metric)]
    return list(dict.fromkeys(["query", "person_id", *read]))


def read_result(folder: Path) -> Result:
    """Read a result folder; one whose numbers contradict each other comes back quarantined.

    Raises UserError when there is no result.json or when it cannot be read at all.
    """
    record = records.read_result(folder)
    reason = place_fault(record, folder)
    queries: pd.DataFrame | None = None
    if record.status == "ok":
        queries, unread = read_queries(folder / "queries.csv", side_columns(record.protocol.metric))
        reason = reason or unread or figures_fault(record, queries) or changed(folder, record.files)
    curves = read_curves(folder / "curves.csv")
    if reason:
        quarantined = {"status": "quarantined", "reason": f"{folder.name}: {reason}"}
        return Result(record.model_copy(update=quarantined), None, folder, curves)
    return Result(record, queries, folder, curves)


def read_curves(file: Path) -> pd.DataFrame:
    """The curves that evaluation wrote; none where they cannot be read, which the record's hashes tell."""
    try:
        return pd.read_csv(file)
    except (OSError, ValueError):
        return pd.DataFrame()


def figures_fault(record: ResultRecord, queries: pd.DataFrame | None) -> str | None:
    """What is wrong with a record's figures, in themselves or beside the per-query results, or None."""
    metric = record.protocol.metric
    fault = selection_fault(record.selection, metric)
    return fault if fault or queries is None else side_file_fault(record.selection.last, queries, metric)


def place_fault(record: ResultRecord, folder: Path) -> str | None:
    """Which job the record is of when it lies in another job's folder, or None."""
    run, number = record.run, record.world if record.fold is None else record.fold
    places = [run.dataset] if number is None else [f"{run.dataset}-{number}"]
    places += [run.dataset] if record.world is not None else []  # prepared by --world, under no number
    jobs = [Job(run.name, place, run.backbone, record.seed) for place in places]
    lies_as_a_job = folder.parent.name == jobs[0].evaluated.parent.name
    lies_well = folder.name in [job.name for job in jobs]
    return f"its record is of {jobs[0].name}" if lies_as_a_job and not lies_well else None


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


def selection_fault(selection: Selection, metric: str) -> str | None:
    """What is wrong with the figures themselves under a protocol of that ``metric``, or None."""
    last, best, judge = selection.last, selection.best_on_test, metrics.headline(metric)
    for entry in metrics.METRICS:
        value = last.figure(entry.name)
        if metric not in entry.defined_by:
            if value is not None:
                return f"{entry.name} is {value}, but the protocol defines none"
        elif not isinstance(value, int | float) or not entry.low <= value <= entry.high:
            return f"{entry.name} is {value}, not a number from {entry.low:g} to {entry.high:g}"
    cmc = [last.figure(entry.name) for entry in sorted(metrics.CMC, key=lambda entry: entry.rank or 0)]
    if cmc != sorted(cmc):
        return f"rank-k does not rise with k: {', '.join(map(str, cmc))}"
    ends, top = last.figure(judge), best.figure(judge)
    if top is None or metrics.BY_NAME[judge].better(ends, top):
        return f"{judge} of the best epoch on test, {top}, is worse than the last epoch's, {ends}"
    return None


def side_file_fault(last: EpochScores, queries: pd.DataFrame, metric: str) -> str | None:
    """Where figures and per-query results disagree, or None."""
    if len(queries) != last.valid_queries:
        return f"{len(queries)} rows in queries.csv, but valid_queries is {last.valid_queries}"
    if queries["query"].duplicated().any():
        return "queries.csv names a query twice"
    for entry in metrics.defined(metric):
        value = entry.of(queries, metric)
        if abs(value - last.figure(entry.name)) > TOLERANCE:
            return f"{entry.name} is {last.figure(entry.name):.6f}, but queries.csv gives {value:.6f}"
    return None
