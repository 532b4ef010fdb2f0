"""From the result files of single runs to one row per method, variant, backbone, profile and dataset."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

import datasets
import methods
from datasets import split_number
from evaluation import metrics
from evaluation.metrics import Metric
from pipeline.jobs import Job, jobs
from pipeline.layers import profile_notices, variants
from pipeline.params import DRAWN, Params
from pipeline.records import CostRecord, NotRunRecord, ResultRecord, RunRecord, adaptive, needs_record, run_record
from pipeline.settings import resolve_run
from reports.published import REFERENCES, fidelity, row_of
from reports.record import Result, read_result
from reports.text import number

MAIN = metrics.BOARD[0]  # whose spread and gain are shown
PHASES = ("extract", "label", "memories", "train")
KEY = ["method", "variant", "backbone", "profile", "dataset"]
COLUMNS = [
    *KEY,
    "worlds",
    "seeds",
    f"{MAIN.name}_mean",
    f"{MAIN.name}_sd",
    "gain_over_warm_start",
    *(f"{metric.name}_mean" for metric in metrics.BOARD[1:] if metric.board == "front"),
    *(f"published_{judge.name}" for judge in metrics.JUDGES),
    "camera_use",
    "fidelity",
    "initial_weights",
    "selection",
    "images_seen",
    "source_images_seen",
    "pretraining_images_seen",
    "minutes",
    "peak_memory_gib",
    "status",
    *(f"{judge.name}_best_on_test_mean" for judge in metrics.JUDGES),
    "images_per_second",
    *(f"seconds_{phase}" for phase in PHASES),
    "bn_groups",
    "batch",
    *(f"{metric.name}_mean" for metric in metrics.BOARD if metric.board == "end"),
]
# The two rows that frame the others: no training, and training with the labels.
FLOOR, CEILING = REFERENCES
ADAPTIVE = "adaptive"  # a column of tables with domain-adaptive rows: whether a row is one
NOT_RUN = "not run"
LISTED = 8  # jobs without a result that a warning names


def read_results(params: Params) -> list[Result]:
    """Checked results of the jobs that params.yaml asks for; of one without a result, that it was ``not run``."""
    return [
        read_result(job.evaluated) if (job.evaluated / "result.json").is_file() else not_run(job, params)
        for job in jobs(params)
    ]


def not_run(job: Job, params: Params) -> Result:
    """What stands in the place of a job's result until there is one."""
    dataset, number = split_number(job.dataset)
    run = resolve_run(job.run, job.dataset, params.profile, params.overrides, backbone=job.backbone)
    known = run_record(run).model_copy(update={"dataset": dataset})
    fold, world = (None, number) if dataset == DRAWN else (number, None)
    needs = needs_record(methods.load(run.trains).needs(run.config))
    record = NotRunRecord(status=NOT_RUN, reason=None, run=known, needs=needs, fold=fold, world=world, seed=job.seed)
    return Result(record, None, job.evaluated)


def warn_of_unusable(results: Sequence[Result]) -> None:
    """Say on stderr which results contradict themselves, and which jobs have none."""
    for result in results:
        if result.record.status == "quarantined":
            print(f"quarantined: {result.record.reason}", file=sys.stderr)
    missing = [result.folder.name for result in results if result.record.status == NOT_RUN]
    if missing:
        more = f", and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        told = f"{', '.join(missing[:LISTED])}{more}"
        print(f"not run: {len(missing)} of {len(results)} jobs: {told}", file=sys.stderr)


def leaderboard(records: Sequence[ResultRecord | NotRunRecord]) -> pd.DataFrame:
    """One row per KEY with COLUMNS; metrics and published numbers in percent, as papers print them.

    With domain-adaptive rows there is the column ADAPTIVE too.
    """
    groups: dict[tuple[str, ...], list[Any]] = {}
    for record in records:
        groups.setdefault(tuple(getattr(record.run, name) for name in KEY), []).append(record)
    ordered = sorted(groups.values(), key=lambda group: place(group[0]))
    rows = [row(group) for group in ordered]
    floors = {setting(line): group for line, group in zip(rows, ordered, strict=True) if line["method"] == FLOOR}
    for line, group in zip(rows, ordered, strict=True):
        line["gain_over_warm_start"] = gain(group, floors.get(setting(line), []))
    table = pd.DataFrame(rows, columns=[*COLUMNS, ADAPTIVE]).astype({"worlds": "Int64"})
    return table if table[ADAPTIVE].any() else table[COLUMNS]


def adaptive_rows(table: pd.DataFrame) -> pd.Series:
    """Which rows of a leaderboard are domain-adaptive."""
    return table[ADAPTIVE].astype(bool) if ADAPTIVE in table else pd.Series(False, index=table.index)


def notices(dataset: str, profile: str) -> list[str]:
    """What a table of numbers on the dataset under the profile must say: the dataset's notices, then the profile's."""
    return [*datasets.notices(dataset), *profile_notices(profile)]


def setting(line: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row shares with its warm start and with the rows it is compared with."""
    return tuple(line[name] for name in ("dataset", "profile", "backbone"))


def place(record: ResultRecord | NotRunRecord) -> tuple[Any, ...]:
    """Order of rows: warm start first, supervised bound last, a method's default variant before its others.

    Domain-adaptive rows follow, training on the source alone first.
    """
    run, adapts = record.run, adaptive(record)
    rank = {FLOOR: 0, CEILING: 0 if adapts else 2}.get(run.method, 1)
    names = variants(run.method)
    variant = names.index(run.variant) if run.variant in names else len(names)
    return (
        run.dataset,
        run.profile,
        run.backbone,
        adapts,
        rank,
        run.method,
        variant,
        run.variant,
    )


def row(group: Sequence[Any]) -> dict[str, Any]:
    """The row of one group of seeds; means and sd are over the worlds, or seeds, that finished."""
    made = [record for record in group if record.status != NOT_RUN]
    found = result_row(made, len(group)) if made else empty_row(group[0].run)
    return {**found, ADAPTIVE: adaptive(group[0])}


def empty_row(run: RunRecord) -> dict[str, Any]:
    """The row of a run of which no seed has a result: what is known of it beforehand."""
    published = row_of(run.method, run.variant, run.backbone, run.dataset)
    return {
        **dict.fromkeys(COLUMNS),
        **{name: getattr(run, name) for name in KEY},
        "worlds": None if run.dataset != DRAWN else 0,
        "seeds": 0,
        **{f"published_{judge.name}": published and published.figure(judge.name) for judge in metrics.JUDGES},
        "fidelity": fidelity(run.method, run.variant),
        "selection": "last",
        "status": NOT_RUN,
    }


def result_row(group: Sequence[ResultRecord], wanted: int) -> dict[str, Any]:
    """The row of the results that there are, of so many ``wanted``."""
    first = group[0]
    run, config = first.run, first.run.config
    done = [record for record in group if record.status == "ok"]
    last = {metric.name: per_replicate(done, "last", metric.name) for metric in metrics.BOARD}
    best = {judge.name: per_replicate(done, "best_on_test", judge.name) for judge in metrics.JUDGES}
    published = row_of(run.method, run.variant, run.backbone, run.dataset)
    trains = first.cost.all_images_seen > 0
    return {
        **{name: getattr(run, name) for name in KEY},
        "worlds": len({record.world for record in group}) if first.world is not None else None,
        "seeds": len({record.seed for record in group}),
        **{f"{name}_mean": mean(values) for name, values in last.items()},
        f"{MAIN.name}_sd": float(np.std(last[MAIN.name], ddof=1)) if len(last[MAIN.name]) > 1 else None,
        **{f"published_{name}": published and published.figure(name) for name in best},
        "camera_use": "+".join(first.needs.cameras) or "none",
        "fidelity": fidelity(run.method, run.variant),
        "initial_weights": first.initial.source,
        "selection": "last",
        "images_seen": mean([record.cost.images_seen for record in group]),
        "source_images_seen": mean([record.cost.source_images_seen for record in group]),
        "pretraining_images_seen": mean([record.initial.images_seen for record in group]),
        "minutes": mean([record.cost.seconds_total / 60 for record in group]),
        "peak_memory_gib": peak([record.cost for record in group]),
        "status": status(group, wanted),
        **{f"{name}_best_on_test_mean": mean(values) for name, values in best.items()},
        "images_per_second": mean([throughput(record) for record in group]) if trains else None,
        **{f"seconds_{phase}": mean([seconds(record, phase) for record in group]) for phase in PHASES if trains},
        "bn_groups": config["backbone"]["bn_groups"],
        "batch": config["sampler"]["identities"] * config["sampler"]["instances"] if trains else None,
    }


def gain(group: Sequence[Any], floor: Sequence[Any]) -> float | None:
    """Points of the main figure above the warm start, over the worlds or seeds that finished of both."""
    ours, starts = (
        by_replicate([record for record in records if record.status == "ok"], "last", MAIN.name)
        for records in (group, floor)
    )
    return mean([ours[key] - starts[key] for key in ours if key in starts])


def per_replicate(records: Sequence[ResultRecord], selection: str, name: str) -> list[float]:
    """The values of ``by_replicate``."""
    return list(by_replicate(records, selection, name).values())


def by_replicate(records: Sequence[ResultRecord], selection: str, name: str) -> dict[int, float]:
    """A figure of each replicate in percent, by its number; empty where the protocol has no such figure.

    A world's is the mean over its seeds; without worlds, a seed's is the mean over the folds of its dataset.
    """
    scale = metrics.BY_NAME[name].scale
    replicates: dict[int, list[float]] = {}
    for record in records:
        value = record.selection.figure(selection, name)
        if value is not None:
            replicate = record.seed if record.world is None else record.world
            replicates.setdefault(replicate, []).append(scale * value)
    return {replicate: float(np.mean(values)) for replicate, values in replicates.items()}


def missing_folds(group: Sequence[ResultRecord]) -> str | None:
    """What the row lacks of its protocol's folds, all of which make up the protocol's number."""
    wanted = group[0].protocol.folds
    found = len({record.fold for record in group})
    return f"{found} of {wanted} folds" if found < wanted else None


def mean(values: Sequence[float]) -> float | None:
    """Mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def throughput(record: ResultRecord) -> float:
    """Images seen per second of the whole run, labelling included."""
    return record.cost.all_images_seen / max(record.cost.seconds_total, 1e-9)


def seconds(record: ResultRecord, phase: str) -> float:
    """Seconds of a phase over the whole run; ``label`` is everything that no other phase has."""
    spent = record.cost.seconds
    if phase != "label":
        return float(spent.get(phase, 0.0))
    return float(sum(value for name, value in spent.items() if name not in PHASES))


def peak(costs: Sequence[CostRecord]) -> float | None:
    """Largest peak of host (CPU runs) or device memory over the runs, in GiB; None for a run of no epoch."""
    peaks = [cost.peak_host_bytes if cost.peak_device_bytes is None else cost.peak_device_bytes for cost in costs]
    known = [value for value in peaks if value is not None]
    return max(known) / 2**30 if known else None


def status(group: Sequence[ResultRecord], wanted: int) -> str:
    """``ok``, or how many seeds or runs failed or were quarantined, why the first was, and how many were not run."""
    told = []
    unit = "seeds" if group[0].fold is None and group[0].world is None else "runs"
    for state in ("failed", "quarantined"):
        bad = [record for record in group if record.status == state]
        if bad:
            told.append(f"{state} ({len(bad)} of {len(group)} {unit}): {bad[0].reason}")
    if len(group) < wanted:
        told.append(f"{NOT_RUN} ({wanted - len(group)} of {wanted} {unit})")
    return "; ".join([*told, *filter(None, [missing_folds(group)])]) or "ok"


def figures(table: pd.DataFrame, metric: Metric) -> list[str]:
    """A metric's means of leaderboard rows as text."""
    return [number(value, metric.form) for value in table[f"{metric.name}_mean"]]


def mean_and_sd(table: pd.DataFrame) -> dict[str, list[str]]:
    """The main metric of leaderboard rows and its sd over replicates, as columns of text by title."""
    return {MAIN.title: figures(table, MAIN), "sd": [number(value, MAIN.form) for value in table[f"{MAIN.name}_sd"]]}
