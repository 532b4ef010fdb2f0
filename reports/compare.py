"""Differences between runs with their uncertainty: each run against its baselines, and any two against each other.

Runs are compared on the same data, within one backbone and profile, from the last epoch (the only one that per-query
results are kept of). What a replicate is and which model speaks of a difference: reports/cells.py, docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.files import write_csv, write_text
from pipeline import cli
from pipeline.settings import split_name
from reports import reference
from reports.cells import SETTING, Cell, NotComparableError, SharedWeights, by_setting, estimate, shared_replicates
from reports.published import read_published
from reports.record import Result
from reports.statistics import ALPHA, POWER, holm, rank_intervals
from reports.table import ADAPTIVE, CEILING, FLOOR, KEY
from reports.text import counts, intervals, markdown_table, number, signed, text_or_dash

NO_CAMERA = "no_cam"  # variant of a baseline that trains without cameras
BASELINE = "cluster_contrast"  # of a method whose published.yaml names no other, or none that was run
SOURCE_ALONE = "supervised-source_longer"  # of domain-adaptive rows: not better is nothing learnt of the target
FEWEST_SEEDS = 3  # for a verdict: intervals from two cover down to 91 times in 100
FEWEST_WORLDS = 3  # for a verdict: two leave one degree of freedom, and an interval of 12.7 standard errors
NUMBERS = ["difference", "low", "high", "p", "p_holm", "probability", "difference_sd", "resolvable"]
COLUMNS = ["a", "b", *SETTING, "worlds", "seeds", *NUMBERS, "verdict", "family", "selection"]
TO_BASELINE = ["baseline", *NUMBERS, "verdict"]
RANKS = ["rank_low", "rank_high"]
TO_TARGET_ALONE = [f"target_alone_{name}" for name in ("baseline", "difference", "low", "high", "p_holm", "verdict")]
PLANNED = ("baseline", "adaptation", "adaptation beside")  # families that give a row its baseline, the first its own
RANKED = ("pairs", "adaptation pairs")  # and its ranks
NOTE = (
    "A - B: mAP of A minus mAP of B in points, last epoch. "
    "Drawn people: A and B are compared within each world; interval, p and P(A > B) are of one t model over worlds. "
    "Other datasets: they are of one model of replicates (a warm start and its seed) and of the people asked for. "
    "The interval is of its row alone. p (Holm) is corrected for all methods of its table. "
    f"The verdict is by the corrected p alone: at most {ALPHA}. "
    "The warm start and the supervised bound are no methods and get no verdict. "
    "P(A > B): that A wins in a new world, or in a new replicate on new people. "
    "sd: of A - B between worlds, or replicates. "
    f"Resolvable: the true difference that {100 * POWER:.0f} of 100 such tables find at an uncorrected p of {ALPHA}. "
    "One world or one seed tells trained models apart, not methods: no verdict. Two are too few for one. "
    "Formulas: `docs/statistics.md`."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write comparison.csv and comparison.md, and print the latter."""
    arguments = cli.parser("compare", __doc__ or "")
    reference.add_source_arguments(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results/comparison"), help="folder to write")
    arguments.add_argument(
        "--selection", choices=["last"], default="last", help="per-query results exist of the last epoch only"
    )
    options = arguments.parse_args(argv)
    table = compare(reference.chosen(options))
    write_csv(options.out / "comparison.csv", table)
    text = markdown(table)
    write_text(options.out / "comparison.md", text)
    print(text)
    return 0


def compare(results: Sequence[Result]) -> pd.DataFrame:
    """One row with COLUMNS per pair; differences in points of mAP.

    Family ``baseline`` holds each run against its baselines, the first of them first; family ``pairs`` every two
    methods, of which ranks are made. Holm's correction is over one family of one dataset, backbone and profile:
    looking at all pairs does not weaken the comparisons that were planned. Floor and ceiling are outside both.
    Domain-adaptive rows have families of their own: ``adaptation`` holds each against training on the source alone,
    ``adaptation beside`` against their other baselines, ``adaptation pairs`` every two.
    """
    rows: list[dict[str, Any]] = []
    for together in by_setting(results):
        weights = SharedWeights(together[0].run.dataset)
        plain, adapted = ([cell for cell in together if cell.adaptive is wanted] for wanted in (False, True))
        planned = [(cell, base) for cell in plain for base in baselines(cell, together)]
        rows += compare_family("baseline", planned, weights)
        rows += compare_family("pairs", every_two(plain), weights)
        against = [(cell, base) for cell in adapted for base in baselines(cell, together)]
        alone, beside = ([pair for pair in against if (pair[1].name == SOURCE_ALONE) is yes] for yes in (True, False))
        rows += compare_family("adaptation", alone, weights)
        rows += compare_family("adaptation beside", beside, weights)
        rows += compare_family("adaptation pairs", every_two(adapted), weights)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"worlds": "Int64"})


def every_two(group: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """The later against the earlier of every two methods."""
    return [(b, a) for a, b in combinations([cell for cell in group if not cell.bounds], 2)]


def baselines(cell: Cell, others: Sequence[Cell]) -> list[Cell]:
    """What ``cell`` is measured against: what its published.yaml lists, or the usual baseline where none was run.

    A domain-adaptive row has SOURCE_ALONE before these and the usual baseline, images of the target alone, after them.

    None for the baseline itself. A method that uses no cameras in training, neither in sampler nor in loss nor in
    clustering, is measured against the baseline without them, where that was run. Cameras at the test alone change no
    training, so they do not count.
    """
    published = read_published(cell.run.method)
    listed = published.baseline if published else ()
    if cell.adaptive:
        listed = (SOURCE_ALONE, *listed, BASELINE)
    found = [run_of(name, cell, others) for name in listed]
    if not any(found):
        found = [run_of(BASELINE, cell, others)]
    return list({other.name: other for other in found if other}.values())


def run_of(baseline: str, cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The run among ``others`` that stands for ``baseline`` beside ``cell``; None where it was not run."""
    method, variant = split_name(baseline)
    compares_like = cell.run.method not in (method, FLOOR, CEILING)
    blind = compares_like and not set(cell.results[0].record.needs.cameras) - {"test"}
    known = {(other.run.method, other.run.variant): other for other in others if other is not cell}
    wanted = [NO_CAMERA, variant] if blind else [variant]
    return next((known[method, name] for name in wanted if (method, name) in known), None)


def compare_family(family: str, pairs: Sequence[tuple[Cell, Cell]], weights: SharedWeights) -> list[dict[str, Any]]:
    """Rows of the pairs, the p values of methods corrected together."""
    rows = [compare_pair(a, b, weights) for a, b in pairs]
    tested = [
        row
        for row, (a, b) in zip(rows, pairs, strict=True)
        if not (a.bounds or b.bounds or has_few_worlds(row)) and not np.isnan(row.get("p", np.nan))
    ]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = float(corrected)
    told = [row["verdict"] if "verdict" in row else verdict(row) for row in rows]
    return [
        {**row, "verdict": text, "family": family, "selection": "last"} for row, text in zip(rows, told, strict=True)
    ]


def compare_pair(a: Cell, b: Cell, weights: SharedWeights) -> dict[str, Any]:
    """One row but for the correction; a pair that cannot be compared has a verdict that says why and no numbers."""
    shared = shared_replicates(a, b)
    seeds = [{result.record.seed for key in shared for result in cell.replicates[key]} for cell in (a, b)]
    row: dict[str, Any] = {"a": a.name, "b": b.name, **dict(zip(SETTING, a.setting, strict=True))}
    row |= {"worlds": len(shared) if a.in_worlds else None, "seeds": min(map(len, seeds))}
    try:
        found = estimate(a, b, weights)
    except NotComparableError as error:
        return {**row, "verdict": f"not comparable: {error}"}
    return {
        **row,
        **{name: 100 * getattr(found, name) for name in ("difference", "low", "high", "resolvable")},
        "difference_sd": 100 * found.sd,
        "p": found.p,
        "probability": found.probability,
    }


def has_few_worlds(row: dict[str, Any]) -> bool:
    """Whether the pair shares fewer worlds than a verdict takes; decided before any difference is known."""
    return row["worlds"] is not None and row["worlds"] < FEWEST_WORLDS


def verdict(row: dict[str, Any]) -> str | None:
    """``better`` or ``worse`` by the corrected p alone, or why there is neither; None outside the family."""
    worlds, seeds = row["worlds"], row["seeds"]
    if has_few_worlds(row):
        return "one world" if worlds == 1 else f"{worlds} worlds are too few"
    if worlds is None and seeds < FEWEST_SEEDS:
        return "one seed: of the trained models only" if seeds == 1 else f"{seeds} seeds are too few"
    if "p_holm" not in row:
        return None
    if row["p_holm"] <= ALPHA:
        return "better" if row["difference"] > 0 else "worse"
    return f"not resolved at {f'{seeds} seeds' if worlds is None else f'{worlds} worlds'}"


def to_baseline(table: pd.DataFrame, comparison: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with TO_BASELINE (the first that was run) and RANKS appended; empty in rows that have none.

    With domain-adaptive rows, TO_TARGET_ALONE too.
    """
    planned = with_key(comparison[comparison["family"].isin(PLANNED)], "a").rename(columns={"b": "baseline"})
    wide = table.merge(planned.drop_duplicates(KEY)[[*KEY, *TO_BASELINE]], how="left", on=KEY)
    wide = wide.merge(ranks(comparison), how="left", on=KEY).astype(dict.fromkeys(RANKS, "Int64"))
    return wide.merge(to_target_alone(comparison), how="left", on=KEY) if ADAPTIVE in table else wide


def to_target_alone(comparison: pd.DataFrame) -> pd.DataFrame:
    """KEY and TO_TARGET_ALONE of every domain-adaptive row that was compared with the usual baseline."""
    of_group = comparison["family"].isin(["adaptation", "adaptation beside"])
    usual = [split_name(name)[0] == BASELINE for name in comparison["b"]]
    found = with_key(comparison[of_group & np.array(usual, dtype=bool)], "a").rename(columns={"b": "baseline"})
    renamed = {name.removeprefix("target_alone_"): name for name in TO_TARGET_ALONE}
    return found.rename(columns=renamed)[[*KEY, *TO_TARGET_ALONE]]


def with_key(table: pd.DataFrame, named: str) -> pd.DataFrame:
    """Rows of a comparison with method and variant of the run that the column names."""
    names = [split_name(name) for name in table[named]]
    return table.assign(method=[method for method, _ in names], variant=[variant for _, variant in names])


def ranks(comparison: pd.DataFrame) -> pd.DataFrame:
    """KEY and RANKS of every method: the best and the worst rank that no resolved pair of its backbone excludes.

    None where no pair could be tested: too few worlds or seeds, or one method.
    """
    pairs = comparison[comparison["family"].isin(RANKED)]
    rows = []
    for (*setting, _), part in pairs.groupby([*SETTING, "family"], sort=False):
        part = part[part["p_holm"].notna()]
        if part.empty:
            continue
        names = list(dict.fromkeys([*part["a"], *part["b"]]))
        better = np.zeros((len(names), len(names)), dtype=bool)
        for pair in part.itertuples():
            a, b = names.index(pair.a), names.index(pair.b)
            better[a, b], better[b, a] = pair.verdict == "better", pair.verdict == "worse"
        found = rank_intervals(better).tolist()
        where = dict(zip(SETTING, setting, strict=True))
        rows += [
            {"a": name, **where, **dict(zip(RANKS, rank, strict=True))} for name, rank in zip(names, found, strict=True)
        ]
    return with_key(pd.DataFrame(rows, columns=["a", *SETTING, *RANKS]), "a")[[*KEY, *RANKS]]


def markdown(table: pd.DataFrame) -> str:
    """All families of every dataset, backbone and profile."""
    sections = ["# Comparison", "", NOTE, ""]
    titles = {
        "baseline": "against the baseline",
        "pairs": "every two methods",
        "adaptation": "domain-adaptive, against the source alone",
        "adaptation beside": "domain-adaptive, against other baselines",
        "adaptation pairs": "domain-adaptive, every two",
    }
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
            **counts(part),
            "A - B": [signed(value) for value in part["difference"]],
            "95 % interval": intervals(part),
            "p": [number(value, ".4f") for value in part["p"]],
            "p (Holm)": [number(value, ".4f") for value in part["p_holm"]],
            "P(A > B)": [number(value, ".3f") for value in part["probability"]],
            "sd": [number(value) for value in part["difference_sd"]],
            "resolvable": [number(value) for value in part["resolvable"]],
            "verdict": text_or_dash(part["verdict"]),
        }
    )
    return markdown_table(shown)
