"""Regression gate: stored results against the committed reference and against the published numbers.

The reference is `results/reference/runs/*.json`, one file per leaderboard row with its seeds' metrics, and
`leaderboard.csv` / `.md` beside them; `--update` writes it from the present results. Exit status 1 when anything is
`below`, 0 otherwise: `above` is shown, for it may be progress or a bug, but does not fail. A published number that its
authors' own sources do not show (`verified` in published.yaml) never fails either: a run below it is `unverified`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import datasets
import methods
from core.errors import UserError
from core.files import write_csv, write_text
from core.validation import Record, read_json
from evaluation import metrics
from pipeline import cli
from pipeline.jobs import jobs
from pipeline.params import Params
from pipeline.records import ResultRecord, write_record
from reports import leaderboard
from reports.published import Row
from reports.published import rows as published_rows
from reports.record import Result, read_result
from reports.table import KEY, per_seed, setting, warn_of_unusable
from reports.text import markdown_table, number

TOLERANCE = 1.0  # points of mAP, at the least: what identical seeds of published code differ by
STANDARD_ERRORS = 3  # a gate asks about every row at once: at 2 it would fail unchanged code every few times
PUBLISHED_PROFILE = "published"
STATES = ("match", "above", "below", "unverified", "not run")
COLUMNS = ["expected_by", *KEY, "selection", "expected", "tolerance", "measured", "seeds", "state", "note"]
Key = tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of states; exit status 1 when one is ``below``."""
    arguments = cli.parser("verify", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was run")
    cli.add_worlds_argument(arguments)
    arguments.add_argument("--reference", type=Path, default=Path("results/reference"), help="the committed reference")
    arguments.add_argument("--update", action="store_true", help="write the reference from the present results")
    options = arguments.parse_args(argv)
    results = present_results(cli.read_params(options))
    warn_of_unusable(results)
    if options.update:
        for file in update(results, options.reference):
            print(f"wrote {file}")
        return 0
    table = verify(results, read_reference(options.reference))
    print(markdown(table))
    states = table["state"].value_counts()
    print(", ".join(f"{states.get(state, 0)} {state}" for state in STATES))
    return int((table["state"] == "below").any())


def present_results(params: Params) -> list[Result]:
    """Checked results of those runs of params.yaml that were evaluated."""
    folders = [job.evaluated for job in jobs(params)]
    return [read_result(folder) for folder in folders if (folder / "result.json").is_file()]


class Spread(Record):
    """A metric over the seeds of a row, in percent."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


class ReferenceRow(Record):
    """A file of the reference: a leaderboard row's metrics, and what they were measured on and by."""

    method: str
    variant: str
    backbone: str
    profile: str
    dataset: str
    selection: str
    seeds: tuple[int, ...]
    metrics: dict[str, Spread]
    tested_on: str | list[str]
    config_hash: str
    code: str
    commit: str | None
    device: str

    @property
    def setting(self) -> tuple[str, str, str]:
        """What a row shares with the rows that train alike."""
        return self.dataset, self.profile, self.backbone


def read_reference(folder: Path) -> list[ReferenceRow]:
    """The reference rows; none where there is no reference yet."""
    return [read_json(ReferenceRow, file) for file in sorted((folder / "runs").glob("*.json"))]


def update(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the reference; rows that were not run now (other datasets, another machine) keep their files.

    Raises UserError when there is nothing to write or a result is quarantined or failed: a reference is made of
    results that hold.
    """
    bad = [result.record for result in results if not result.ok]
    if bad or not results:
        reason = f"{bad[0].run.name}, seed {bad[0].seed}: {bad[0].reason}" if bad else "no run has results"
        raise UserError(f"the reference was not written: {reason}")
    written = []
    for key, group in groups(results).items():
        written.append(folder / "runs" / f"{'-'.join(key)}.json")
        write_record(reference_row(key, group), written[-1])
    table = leaderboard.compared_table(results)
    write_csv(folder / "leaderboard.csv", table)
    write_text(folder / "leaderboard.md", leaderboard.markdown(table))
    return [*written, folder / "leaderboard.csv", folder / "leaderboard.md"]


def groups(results: Sequence[Result]) -> dict[Key, list[ResultRecord]]:
    """Records by leaderboard row."""
    made: dict[Key, list[ResultRecord]] = {}
    for result in results:
        made.setdefault(tuple(getattr(result.record.run, name) for name in KEY), []).append(result.record)
    return made


def reference_row(key: Key, group: Sequence[ResultRecord]) -> ReferenceRow:
    """A row's metrics over its seeds, in percent, and what they were measured on."""
    first = group[0]
    values = {name: found for name in metrics.BY_NAME if (found := per_seed(group, "last", name))}
    return ReferenceRow(
        **dict(zip(KEY, key, strict=True)),
        selection="last",
        seeds=tuple(dict.fromkeys(record.seed for record in group)),
        metrics={name: Spread(mean=float(np.mean(v)), sd=sd(v), values=tuple(v)) for name, v in values.items()},
        tested_on=tested_on(group),
        config_hash=first.run.config_hash,
        code=first.code,
        commit=first.provenance.commit,
        device=first.provenance.device,
    )


def tested_on(group: Sequence[ResultRecord]) -> str | list[str]:
    """The fingerprint of the data, or those of the folds."""
    found = sorted({record.tested_on.fingerprint for record in group})
    return found[0] if len(found) == 1 else found


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; unknown (None) of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def tolerance(spread: float, here: int, there: int) -> float:
    """Points of mAP by which means over ``here`` and ``there`` seeds may differ, one seed scattering by ``spread``."""
    return max(TOLERANCE, STANDARD_ERRORS * spread * math.sqrt(1 / max(here, 1) + 1 / there))


def pooled_spread(rows: Sequence[Sequence[float]]) -> float:
    """Standard deviation of one seed about its row's mean, over all rows; 0 where no row has two seeds that differ.

    The sd of three seeds lies between a sixth and twice the true one (95 %), so rows that train alike share theirs.
    Rows without any spread (a warm start, the same weights for every seed) are left out: nothing in them is drawn.
    """
    drawn = [values for values in rows if len(values) > 1 and not same(values)]
    freedom = sum(len(values) - 1 for values in drawn)
    return math.sqrt(sum((len(v) - 1) * float(np.var(v, ddof=1)) for v in drawn) / freedom) if drawn else 0.0


def spread_of(values: Sequence[float], alike: Sequence[Sequence[float]]) -> float:
    """What one more seed of a row scatters by: its own sd or that of the rows ``alike``, whichever is larger."""
    return 0.0 if len(values) > 1 and same(values) else max(sd(values) or 0.0, pooled_spread(alike))


def same(values: Sequence[float]) -> bool:
    """Whether all seeds gave one number, but for rounding."""
    return max(values) - min(values) < 1e-9


def verify(results: Sequence[Result], reference: Sequence[ReferenceRow]) -> pd.DataFrame:
    """One row with COLUMNS per reference row and per published number."""
    present = groups(results)
    rows = [against_reference(row, reference, present) for row in reference]
    rows += [against_paper(method, row, present) for method in methods.available() for row in numbers(method)]
    return pd.DataFrame(rows, columns=COLUMNS)


def numbers(method: str) -> list[Row]:
    """The published rows that hold the figure of their dataset's protocol."""
    return [row for row in published_rows(method) if row.figure(figure(row.dataset)) is not None]


def figure(dataset: str) -> str:
    """The headline of the dataset's protocol; of a name that is no dataset, the usual."""
    known = dataset in datasets.available()
    return datasets.protocol_of(dataset).headline if known else metrics.JUDGES[0].name


def against_reference(
    row: ReferenceRow, reference: Sequence[ReferenceRow], present: dict[Key, list[ResultRecord]]
) -> dict[str, Any]:
    """The last epoch against the reference's; results of other data (another size or world) do not count as run."""
    key = tuple(getattr(row, name) for name in KEY)
    by = next(judge.name for judge in metrics.JUDGES if judge.name in row.metrics)
    expected = row.metrics[by]
    group = present.get(key, [])
    alike = [other.metrics[by].values for other in reference if other.setting == row.setting and by in other.metrics]
    spread, seeds = spread_of(expected.values, alike), len(measured(group, "last", by))
    state = {"expected_by": "reference", **dict(zip(KEY, key, strict=True)), "selection": "last"}
    state |= {"expected": expected.mean, "tolerance": tolerance(spread, seeds, len(expected.values))}
    if group and tested_on(group) != row.tested_on:
        return {**state, "state": "not run", "note": "the results are of other data than the reference"}
    changed = any(record.run.config_hash != row.config_hash for record in group)
    return judge(state, group, by, "settings differ from the reference's" if changed else "")


def against_paper(method: str, row: Row, present: dict[Key, list[ResultRecord]]) -> dict[str, Any]:
    """The best epoch on test, the papers' own rule, of a run with the papers' settings.

    A paper prints one number of unknown spread, so the spread is that of our seeds. A run below a number that was not
    read in a source of its authors is ``unverified``: the number may be wrong.
    """
    key = (method, row.variant, row.backbone, PUBLISHED_PROFILE, row.dataset)
    group = present.get(key, [])
    state = {"expected_by": "paper", **dict(zip(KEY, key, strict=True)), "selection": "best_on_test"}
    by = figure(row.dataset)
    values = measured(group, "best_on_test", by)
    others = [other for other in present.values() if other[0].run.setting == setting(state)]
    alike = [measured(other, "best_on_test", by) for other in others]
    state |= {"expected": row.figure(by), "tolerance": tolerance(spread_of(values, alike), len(values), 1)}
    judged = judge(state, group, by)
    doubted = judged["state"] == "below" and not row.first_hand
    return {**judged, "state": "unverified"} if doubted else judged


def measured(group: Sequence[ResultRecord], selection: str, by: str) -> list[float]:
    """The figure ``by`` in percent of the usable seeds."""
    return per_seed([record for record in group if record.status == "ok"], selection, by)


def judge(state: dict[str, Any], group: Sequence[ResultRecord], by: str, note: str = "") -> dict[str, Any]:
    """``state`` completed; a run whose every seed failed or was quarantined is ``below``, not forgotten."""
    values = measured(group, state["selection"], by)
    notes = [note] if note else []
    usual = metrics.JUDGES[0]
    notes += [f"{metrics.BY_NAME[by].title}: its protocol has no {usual.title}"] if by != usual.name else []
    notes += [f"seed {record.seed} {record.status}" for record in group if record.status != "ok"]
    state = {**state, "seeds": len(values), "note": "; ".join(notes)}
    if not values:
        return {**state, "state": "below" if group else "not run"}
    mean = float(np.mean(values))
    gap = mean - state["expected"]
    outcome = "match" if abs(gap) <= state["tolerance"] else "above" if gap > 0 else "below"
    return {**state, "measured": mean, "state": outcome}


def markdown(table: pd.DataFrame) -> str:
    """The table as printed."""
    shown = table.drop(columns="seeds").rename(columns={"expected_by": "expected by"})
    for column in ("expected", "tolerance", "measured"):
        shown[column] = [number(value) for value in shown[column]]
    return markdown_table(shown.fillna(""))
