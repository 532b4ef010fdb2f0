"""Differences between runs with their uncertainty: each run against its baseline, and any two against each other.

Runs are compared on the same queries of the same dataset, within one backbone and profile, from the per-query AP of
the last epoch (the only epoch that per-query results are kept of). Seeds are an axis: they are resampled, not chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from core.files import write_csv, write_text
from core.rng import Streams
from pipeline import cli
from pipeline.records import RunRecord
from pipeline.settings import split_name
from reports.published import read_published
from reports.record import Result
from reports.statistics import DRAWS, holm, identity_weights, paired_bootstrap, sign_flip_p
from reports.table import CEILING, FLOOR, KEY, place, read_results, warn_of_unusable
from reports.text import intervals, markdown_table, number, signed

NO_CAMERA = "no_cam"  # variant of a baseline that trains without cameras
BASELINE = "cluster_contrast"  # of a method whose published.yaml names no other
ALPHA = 0.05
SETTING = ["dataset", "backbone", "profile"]
COLUMNS = [
    *("a", "b", *SETTING, "seeds", "difference", "low", "high", "p", "p_holm", "probability", "verdict"),
    *("family", "selection", "seeds_resampled", "queries", "identities"),
]
TO_BASELINE = ["baseline", "difference", "low", "high", "p_holm", "probability", "verdict"]
NOTE = (
    "Difference: mAP of A minus mAP of B in points, last epoch, with its 95 % interval from a bootstrap over seeds and "
    "query identities. p: sign flips over query identities of the seed-averaged AP differences, Holm-corrected within "
    "its table. P(A > B): share of bootstrap draws in which A wins. A verdict needs an interval that leaves out zero, "
    f"a corrected p of at most {ALPHA}, and at least two seeds of both: one seed says how two trained models differ, "
    "not how two methods do."
)


class NotComparableError(ValueError):
    """Two runs whose per-query results are not of the same queries."""


@dataclass(frozen=True)
class Cell:
    """One row of the leaderboard: the usable results of its seeds."""

    run: RunRecord
    results: list[Result]

    @property
    def name(self) -> str:
        """As in params.yaml: METHOD or METHOD-VARIANT."""
        return str(self.run.name)

    @property
    def setting(self) -> tuple[str, ...]:
        """What two comparable runs share."""
        return tuple(getattr(self.run, key) for key in SETTING)


def main(argv: Sequence[str] | None = None) -> int:
    """Write comparison.csv and comparison.md, and print the latter."""
    arguments = cli.parser("compare", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was run")
    cli.add_worlds_argument(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results/comparison"), help="folder to write")
    arguments.add_argument(
        "--selection", choices=["last"], default="last", help="per-query results exist of the last epoch only"
    )
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    results = read_results(params)
    warn_of_unusable(results)
    table = compare(results)
    write_csv(options.out / "comparison.csv", table)
    text = markdown(table)
    write_text(options.out / "comparison.md", text)
    print(text)
    return 0


def compare(results: Sequence[Result], every_pair: bool = True) -> pd.DataFrame:
    """One row with COLUMNS per pair; differences in points of mAP.

    Family ``baseline`` holds each run against its baseline, family ``pairs`` the other pairs (``every_pair``), and
    Holm's correction is over one family of one dataset, backbone and profile: looking at all pairs does not weaken
    the comparisons that were planned.
    """
    rows: list[dict[str, Any]] = []
    settings: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells(results):
        settings.setdefault(cell.setting, []).append(cell)
    for together in settings.values():
        planned = [(cell, base) for cell in together if (base := find_baseline(cell, together))]
        known = {frozenset((a.name, b.name)) for a, b in planned}
        others = [(b, a) for a, b in combinations(together, 2) if {a.name, b.name} not in known]
        weights = SharedWeights(together[0].run.dataset)
        rows += compare_family("baseline", planned, weights)
        rows += compare_family("pairs", others if every_pair else [], weights)
    return pd.DataFrame(rows, columns=COLUMNS)


def cells(results: Sequence[Result]) -> list[Cell]:
    """Usable results by leaderboard row, in its order; a row without any is left out.

    Raises UserError when a row holds a seed twice, which would count as evidence twice.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.ok:
            groups.setdefault(tuple(getattr(result.record.run, key) for key in KEY), []).append(result)
    made = [Cell(group[0].record.run, group) for group in groups.values()]
    for cell in made:
        seeds = [(result.record.world, result.record.seed, result.record.fold) for result in cell.results]
        if len(set(seeds)) < len(seeds):
            names = sorted({result.record.run.name for result in cell.results})
            raise UserError(f"the same seed of the same run is listed twice in params.yaml: {names}, seeds {seeds}")
    return sorted(made, key=lambda cell: place(cell.run))


def find_baseline(cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """What ``cell`` is measured against: what its published.yaml names, or the usual baseline where that was not run.

    None for the baseline itself, and where neither was run. A method that uses no cameras in training, neither in
    sampler nor in loss nor in clustering, is measured against the baseline without them, where that was run. Cameras at
    the test alone change no training, so they do not count.
    """
    published = read_published(cell.run.method)
    named = [published.baseline] if published and published.baseline else []
    found = (run_of(name, cell, others) for name in [*named, BASELINE])
    return next((other for other in found if other), None)


def run_of(baseline: str, cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The run among ``others`` that stands for ``baseline`` beside ``cell``; None where it was not run."""
    method, variant = split_name(baseline)
    compares_like = cell.run.method not in (method, FLOOR, CEILING)
    blind = compares_like and not set(cell.results[0].record.needs.cameras) - {"test"}
    known = {(other.run.method, other.run.variant): other for other in others if other is not cell}
    wanted = [NO_CAMERA, variant] if blind else [variant]
    return next((known[method, name] for name in wanted if (method, name) in known), None)


class SharedWeights:
    """Draws of query identities, made once for all pairs on the same people."""

    def __init__(self, dataset: str, draws: int = DRAWS) -> None:
        self.dataset, self.draws = dataset, draws
        self.made: dict[int, np.ndarray] = {}

    def of(self, identities: int) -> np.ndarray:
        """(draws, identities); a function of dataset and count, whichever runs are compared."""
        if identities not in self.made:
            stream = Streams(0).numpy(f"bootstrap identities/{self.dataset}")
            self.made[identities] = identity_weights(identities, stream, self.draws)
        return self.made[identities]


def compare_family(family: str, pairs: Sequence[tuple[Cell, Cell]], weights: SharedWeights) -> list[dict[str, Any]]:
    """Rows of the pairs, their p values corrected together."""
    rows = [compare_pair(a, b, weights) for a, b in pairs]
    compared = [row for row in rows if "p" in row]
    for row, corrected in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p_holm"] = float(corrected)
        row["verdict"] = verdict(row)
    return [{**row, "family": family, "selection": "last"} for row in rows]


def compare_pair(a: Cell, b: Cell, weights: SharedWeights) -> dict[str, Any]:
    """One row but for the correction; a pair that cannot be compared has a verdict that says why and no numbers."""
    row: dict[str, Any] = {"a": a.name, "b": b.name, **dict(zip(SETTING, a.setting, strict=True))}
    row["seeds"] = min(len({result.record.seed for result in cell.results}) for cell in (a, b))
    try:
        ap_a, ap_b, people = paired_ap(a, b)
    except NotComparableError as error:
        return {**row, "verdict": f"not comparable: {error}"}
    identities = len(np.unique(people))
    stream = Streams(0).numpy(f"compare/{'/'.join(a.setting)}/{a.name}/{b.name}")
    interval = paired_bootstrap(ap_a, ap_b, people, stream, weights.of(identities))
    return {
        **row,
        "difference": 100 * interval.difference,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "p": sign_flip_p(ap_a, ap_b, people, stream),
        "probability": interval.probability,
        "seeds_resampled": interval.seeds_resampled,
        "queries": len(people),
        "identities": identities,
    }


def paired_ap(a: Cell, b: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP (Sa, Q) and (Sb, Q) of the same queries, and their person ids (Q,).

    Raises NotComparableError unless all results were tested on the same data and share their valid queries.
    """
    results = [*a.results, *b.results]
    tables = [result.queries for result in results if result.queries is not None]
    assert len(tables) == len(results), "a cell holds usable results only"
    first, expected = results[0].record.tested_on.fingerprint, tables[0]
    if any("ap" not in table for table in tables):
        raise NotComparableError("their protocol gives a query no AP")
    for result, table in zip(results, tables, strict=True):
        record = result.record
        title = f"{record.run.name} seed {record.seed}"
        if record.tested_on.fingerprint != first:
            raise NotComparableError(f"{title} was tested on other data than {a.name}; evaluate both again")
        same = [np.array_equal(table[name], expected[name]) for name in ("query", "person_id")]
        if not all(same):
            raise NotComparableError(f"{title} has other valid queries than {a.name}")
    ap = np.stack([table["ap"].to_numpy(float) for table in tables])
    return ap[: len(a.results)], ap[len(a.results) :], expected["person_id"].to_numpy()


def verdict(row: dict[str, Any]) -> str:
    """``better`` or ``worse`` where interval, corrected p and seeds agree, else at how many seeds it is open."""
    if row["seeds_resampled"] and row["p_holm"] <= ALPHA:
        if row["low"] > 0:
            return "better"
        if row["high"] < 0:
            return "worse"
    return f"not resolved at {row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"


def to_baseline(table: pd.DataFrame, comparison: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with TO_BASELINE appended; empty in rows that have no baseline."""
    planned = comparison[comparison["family"] == "baseline"].rename(columns={"b": "baseline"})
    keys = [split_name(name) for name in planned["a"]]
    planned = planned.assign(method=[method for method, _ in keys], variant=[variant for _, variant in keys])
    return table.merge(planned[[*KEY, *TO_BASELINE]], how="left", on=KEY)


def markdown(table: pd.DataFrame) -> str:
    """Both families of every dataset, backbone and profile."""
    sections = ["# Comparison", "", NOTE, ""]
    titles = {"baseline": "against the baseline", "pairs": "the other pairs"}
    for (dataset, backbone, profile, family), part in table.groupby([*SETTING, "family"], sort=False):
        title = f"## {dataset}, {backbone}, profile {profile}: {titles[family]}"
        sections += [title, "", difference_table(part), ""]
    if table.empty:
        sections += ["Fewer than two runs have results.", ""]
    return "\n".join(sections)


def difference_table(part: pd.DataFrame) -> str:
    """Markdown of one family."""
    shown = pd.DataFrame(
        {
            "A": part["a"],
            "B": part["b"],
            "seeds": part["seeds"],
            "A - B": [signed(value) for value in part["difference"]],
            "95 % interval": intervals(part),
            "p (Holm)": [number(value, ".4f") for value in part["p_holm"]],
            "P(A > B)": [number(value, ".3f") for value in part["probability"]],
            "verdict": part["verdict"],
        }
    )
    return markdown_table(shown)
