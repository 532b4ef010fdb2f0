"""Regression gate: results here against the committed reference and against the published numbers.

Each row's mean over worlds is held against the reference's by a prediction interval (``reports.gate``); the worlds may
be the reference's or others. `--update` writes the rows that were run here into the reference. Exit status 1 when
anything is `below`, 0 otherwise: `above` is shown, for it may be progress or a bug, but does not fail. A published
number that its authors' own sources do not show (`verified` in published.yaml) never fails either: a run below it is
`unverified`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import datasets
import methods
from evaluation import metrics
from pipeline import cli
from pipeline.jobs import jobs
from pipeline.params import Params
from pipeline.records import DataRecord, ResultRecord
from reports import gate, leaderboard, reference
from reports.published import Row
from reports.published import rows as published_rows
from reports.record import Result, read_result
from reports.table import KEY, setting, warn_of_unusable
from reports.text import NONE, markdown_table, number, signed

TOLERANCE = 1.0  # points of mAP beside a paper's number, at the least: what seeds of published code differ by
STANDARD_ERRORS = 3  # beside a paper's number, whose own spread is unknown
PUBLISHED_PROFILE = "published"
WHOLE = "(all rows)"
STATES = ("match", "above", "below", "unverified", "not run")
COLUMNS = [
    *("expected_by", *KEY, "selection", "worlds", "expected", "measured"),
    *("difference", "tolerance", "caught", "state", "note"),
]
NOTE = (
    "Points of mAP at the last epoch, mean over worlds (over seeds where a dataset has none). `difference`: measured "
    "minus expected, less what the row follows of the table's common move; `(all rows)` is that move. "
    f"`match`: within the tolerance, which unchanged code leaves in at most {gate.FALSE_ALARMS:.0%} of whole tables. "
    f"`caught`: the loss that would be seen with a probability of {gate.POWER:.0%}."
)
Key = tuple[str, ...]
Records = Sequence[ResultRecord]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of states; exit status 1 when one is ``below``."""
    arguments = cli.parser("verify", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was run")
    cli.add_worlds_argument(arguments)
    arguments.add_argument("--reference", type=Path, default=Path("results/reference"), help="the committed reference")
    arguments.add_argument("--update", action="store_true", help="write the rows that were run here into the reference")
    options = arguments.parse_args(argv)
    results = present_results(cli.read_params(options))
    warn_of_unusable(results)
    if options.update:
        for file in update(results, options.reference):
            print(f"wrote {file}")
        return 0
    table = verify(results, reference.read(options.reference))
    print(markdown(table))
    states = table["state"].value_counts()
    print(", ".join(f"{states.get(state, 0)} {state}" for state in STATES))
    return int((table["state"] == "below").any())


def present_results(params: Params) -> list[Result]:
    """Checked results of those runs of params.yaml that were evaluated."""
    folders = [job.evaluated for job in jobs(params)]
    return [read_result(folder) for folder in folders if (folder / "result.json").is_file()]


def update(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the rows of ``results``, and the table of all rows that the reference then has."""
    written = reference.write(results, folder)
    leaderboard.write_table(reference.read(folder), folder)
    return [*written, folder / "leaderboard.csv", folder / "leaderboard.md"]


def verify(results: Sequence[Result], expected: Sequence[Result]) -> pd.DataFrame:
    """One line with COLUMNS per row of the reference, per table of it, and per published number."""
    present, known = records_by_row(results), records_by_row(expected)
    lines = against_reference(known, present)
    lines += [against_paper(method, row, present) for method in methods.available() for row in numbers(method)]
    return pd.DataFrame(lines, columns=COLUMNS)


def records_by_row(results: Iterable[Result]) -> dict[Key, list[ResultRecord]]:
    """Records by leaderboard row."""
    return {key: [result.record for result in group] for key, group in reference.by_row(results).items()}


def values(records: Records, selection: str, by: str) -> dict[int, float]:
    """The figure ``by`` in percent of the usable runs: by world, or by seed where a dataset has none; mean over folds.

    Several seeds in one world are one replicate: what a world does to a method is in all of them.
    """
    found: dict[int, list[float]] = {}
    for record in records:
        value = record.selection.figure(selection, by) if record.status == "ok" else None
        if value is not None:
            unit = record.seed if record.world is None else record.world
            found.setdefault(unit, []).append(metrics.BY_NAME[by].scale * value)
    return {unit: float(np.mean(listed)) for unit, listed in found.items()}


@dataclass(frozen=True)
class Table:
    """Rows that are judged together: of one setting, by one figure, over the same worlds of the reference.

    expected: a row's values by world; measured: those here, without rows of which nothing comparable was run.
    """

    by: str
    expected: dict[Key, dict[int, float]]
    measured: dict[Key, dict[int, float]]

    @property
    def judged(self) -> list[Key]:
        """The rows for which there is an interval: one world tells no spread."""
        return [key for key, row in self.expected.items() if key in self.measured and len(row) > 1]

    def worlds(self, side: Mapping[Key, Mapping[int, float]]) -> list[int]:
        """The worlds in which a ``side`` has any of the judged rows."""
        return sorted({world for key in self.judged for world in side[key]})

    def array(self, side: Mapping[Key, Mapping[int, float]]) -> np.ndarray:
        """(rows, worlds) of a ``side``; NaN where a run is not there."""
        worlds = self.worlds(side)
        return np.array([[side[key].get(world, math.nan) for world in worlds] for key in self.judged])


def against_reference(known: Mapping[Key, Records], present: Mapping[Key, Records]) -> list[dict[str, Any]]:
    """A line per row of the reference, and one for each table with rows enough to have a common part."""
    tables = together(known, present)
    many = {id(table) for table in tables if table.judged and gate.follow(*table.array(table.expected).shape)}
    rows = sum(len(table.judged) for table in tables)
    lines: dict[Key, dict[str, Any]] = {key: unjudged(key, known[key], present.get(key, [])) for key in known}
    common = []
    for table in tables:
        if not table.judged:
            continue
        sides = table.array(table.expected), table.array(table.measured)
        found = gate.predict(*sides)
        for row, key in enumerate(table.judged):
            interval = [float(part[row]) for part in interval_of(found, gate.ROWS / rows)]
            lines[key] |= judged(lines[key], *interval)
        if id(table) in many:
            theirs, ours = table.worlds(table.expected), table.worlds(table.measured)
            pairs = [(theirs.index(world), ours.index(world)) for world in ours if world in theirs]
            whole = interval_of(gate.shift(*sides, pairs), gate.TABLES / len(many))
            common.append(judged(whole_line(table), *map(float, whole)))
    return [*lines.values(), *common]


def together(known: Mapping[Key, Records], present: Mapping[Key, Records]) -> list[Table]:
    """The rows of the reference by setting, figure and worlds, with what was run of them here."""
    tables: dict[Any, Table] = {}
    for key, records in known.items():
        by = judge_of(records)
        expected, here = values(records, "last", by), present.get(key, [])
        table = tables.setdefault((records[0].run.setting, by, *sorted(expected)), Table(by, {}, {}))
        table.expected[key] = expected
        if (measured := values(here, "last", by)) and not other_data(here, records):
            table.measured[key] = measured
    return list(tables.values())


def judge_of(records: Records) -> str:
    """The figure that rows are judged by: the first that their protocol has."""
    scores = records[0].selection.last
    return next(judge.name for judge in metrics.JUDGES if scores.figure(judge.name) is not None)


def other_data(here: Records, there: Records) -> bool:
    """Whether results are of another size, renderer or edition than the reference's; another world alone is not."""
    if there[0].world is None:
        return {record.tested_on.fingerprint for record in here} != {record.tested_on.fingerprint for record in there}
    known = {record.world: record.tested_on for record in there}
    return any(not alike(record.tested_on, known.get(record.world), there[0].tested_on) for record in here)


def alike(tested: DataRecord, same_world: DataRecord | None, another: DataRecord) -> bool:
    """Whether a world is the reference's own of that number or, where it has none, was drawn like ``another``."""
    if same_world is not None:
        return tested.fingerprint == same_world.fingerprint
    drawn = [{name: fact for name, fact in data.info.items() if name != "world"} for data in (tested, another)]
    return drawn[0] == drawn[1]


def interval_of(found: gate.Prediction, false_alarms: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference, tolerance and the loss that is caught."""
    return found.difference, found.tolerance(false_alarms), found.caught(false_alarms)


def judged(line: dict[str, Any], difference: float, tolerance: float, caught: float) -> dict[str, Any]:
    """``line`` with its state; a row whose worlds hold too few others is not judged."""
    if math.isnan(difference):
        return {**line, "state": "not run", "note": "no world here holds enough other rows"}
    state = "match" if abs(difference) <= tolerance else "above" if difference > 0 else "below"
    return {**line, "difference": round(difference, 9) + 0.0, "tolerance": tolerance, "caught": caught, "state": state}


def unjudged(key: Key, records: Records, here: Records) -> dict[str, Any]:
    """The line of a row before its interval is known; a run of which no seed gave a result is ``below``."""
    by = judge_of(records)
    expected = values(records, "last", by)
    line = {"expected_by": "reference", **dict(zip(KEY, key, strict=True)), "selection": "last"}
    line |= {"expected": float(np.mean(list(expected.values())))}
    if here and other_data(here, records):
        return {**line, "state": "not run", "note": "the results are of other data than the reference"}
    notes = ["one world in the reference tells no spread"] * (len(expected) < 2)
    if any(record.run.config_hash != records[0].run.config_hash for record in here):
        notes.append("settings differ from the reference's")
    return {**line, **here_of(here, "last", by, notes)}


def whole_line(table: Table) -> dict[str, Any]:
    """The line of a table's common part."""
    key = dict(zip(KEY, table.judged[0], strict=True)) | {"method": WHOLE, "variant": ""}
    worlds = len(table.worlds(table.measured))
    return {"expected_by": "reference", **key, "selection": "last", "worlds": worlds, "note": ""}


def here_of(group: Records, selection: str, by: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What was measured here, and what is to be said of it; runs that all failed or are quarantined are ``below``."""
    found = values(group, selection, by)
    usual = metrics.JUDGES[0]
    told = [*notes, *([f"{metrics.BY_NAME[by].title}: its protocol has no {usual.title}"] if by != usual.name else [])]
    told += [f"{title(record)} {record.status}" for record in group if record.status != "ok"]
    state = "not run" if found or not group else "below"
    measured = float(np.mean(list(found.values()))) if found else None
    return {"worlds": len(found), "measured": measured, "state": state, "note": "; ".join(told)}


def title(record: ResultRecord) -> str:
    """``world 2, seed 0``."""
    world = [] if record.world is None else [f"world {record.world}"]
    return ", ".join([*world, f"seed {record.seed}"])


def numbers(method: str) -> list[Row]:
    """The published rows that hold the figure of their dataset's protocol."""
    return [row for row in published_rows(method) if row.figure(figure(row.dataset)) is not None]


def figure(dataset: str) -> str:
    """The headline of the dataset's protocol; of a name that is no dataset, the usual."""
    known = dataset in datasets.available()
    return datasets.protocol_of(dataset).headline if known else metrics.JUDGES[0].name


def against_paper(method: str, row: Row, present: Mapping[Key, Records]) -> dict[str, Any]:
    """The best epoch on test, the papers' own rule, of a run with the papers' settings.

    A paper prints one number of unknown spread, so the spread is that of our seeds. A run below a number that was not
    read in a source of its authors is ``unverified``: the number may be wrong.
    """
    key = (method, row.variant, row.backbone, PUBLISHED_PROFILE, row.dataset)
    group, by = present.get(key, []), figure(row.dataset)
    line = {"expected_by": "paper", **dict(zip(KEY, key, strict=True)), "selection": "best_on_test"}
    line |= {"expected": row.figure(by), **here_of(group, "best_on_test", by)}
    seeds = list(values(group, "best_on_test", by).values())
    if seeds:
        others = [other for other in present.values() if other[0].run.setting == setting(line)]
        alike = [list(values(other, "best_on_test", by).values()) for other in others]
        margin = tolerance(spread_of(alike), len(seeds))
        line = judged(line, line["measured"] - line["expected"], margin, math.nan)
    doubted = line["state"] == "below" and not row.first_hand
    return {**line, "state": "unverified"} if doubted else line


def tolerance(spread: float, seeds: int) -> float:
    """Points by which a mean over ``seeds`` may differ from one run of a paper, one run scattering by ``spread``."""
    return max(TOLERANCE, STANDARD_ERRORS * spread * math.sqrt(1 / seeds + 1))


def spread_of(rows: Sequence[Sequence[float]]) -> float:
    """Standard deviation of one seed about its row's mean, pooled over rows; 0 where no row has seeds that differ."""
    drawn = [np.asarray(row) for row in rows if len(row) > 1 and np.ptp(row) > 1e-9]  # a warm start is not drawn
    freedom = sum(len(row) - 1 for row in drawn)
    return math.sqrt(sum((len(row) - 1) * row.var(ddof=1) for row in drawn) / freedom) if drawn else 0.0


def markdown(table: pd.DataFrame) -> str:
    """The table as printed, with what its columns mean."""
    shown = table.rename(columns={"expected_by": "expected by"})
    shown["difference"] = [signed(value) for value in shown["difference"]]
    for column in ("expected", "measured", "tolerance", "caught"):
        shown[column] = [number(value) for value in shown[column]]
    shown["worlds"] = [number(value, ".0f") for value in shown["worlds"]]
    return f"{NOTE}\n\n{markdown_table(shown.fillna(NONE))}\n"
