"""Result folders with chosen numbers, in the form `evaluate` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.validation import read
from evaluation import metrics
from pipeline import evaluate
from pipeline.jobs import Job
from pipeline.records import ResultRecord
from pipeline.settings import resolve_run

PARAMS = """
profile: tiny
backbones: {cnn: resnet18_half}
threads: 1
launch: python
data_root: nowhere
rendered: {size: tiny}
"""


def write_params(folder: Path, runs: list[str], seeds: list[int], worlds: Sequence[int] = ()) -> Path:
    """A params.yaml that lists these runs, in these worlds of `rendered` or in what lies as `rendered`."""
    file = folder / "params.yaml"
    listed = {"datasets": [f"rendered-{world}" for world in worlds] or ["rendered"], "seeds": seeds}
    lines = [f"{key}: {json.dumps(value)}" for key, value in listed.items()]
    file.write_text(PARAMS + f"runs: {{cnn: {json.dumps(runs)}}}\n" + "\n".join(lines) + "\n")
    return file


PEOPLE = np.repeat(np.arange(40), 4)


def aps(level: float, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """APs of PEOPLE around a level: people differ, runs differ by a little."""
    rng = np.random.default_rng(seed + round(1000 * level))
    people = np.random.default_rng(99).normal(0, 0.1, 40)[PEOPLE]
    return np.clip(level + people + rng.normal(0, noise, len(PEOPLE)), 0.01, 1)


def write_runs(levels: dict[str, float], seeds: list[int]) -> None:
    """Results of runs at these levels with each seed."""
    for name, level in levels.items():
        for seed in seeds:
            write_result(name, seed, aps(level, seed), PEOPLE)


def side_file(ap: np.ndarray, people: np.ndarray) -> pd.DataFrame:
    """Per-query results with these APs; a query's first match is where a single match would give its AP."""
    return pd.DataFrame(
        {
            "query": np.arange(len(ap)),
            "person_id": people,
            "camera_id": 0,
            "ap": ap,
            "ap_trapezoid": ap,
            "inp": ap / 2,
            "first_match_rank": np.ceil(1 / np.maximum(ap, 1e-3)).astype(int),
        }
    )


def write_result(
    name: str,
    seed: int,
    ap: np.ndarray,
    people: np.ndarray,
    *,
    fingerprint: str = "data",
    best: float | None = None,
    profile: str = "tiny",
    failure: str | None = None,
    cameras: Sequence[str] = (),
    world: int | None = None,
    size: str = "tiny",
    curves: pd.DataFrame | None = None,
    **more: Any,
) -> Path:
    """Write results/runs/NAME-rendered[-WORLD]-resnet18_half-SEED below the working directory; return the folder.

    ``more`` replaces keys of the record.
    """
    run = resolve_run(name, "rendered", profile, backbone="resnet18_half")
    queries = side_file(ap, people)
    last: dict[str, Any] = {
        "epoch": 2,
        "skipped_queries": 0,
        **{metric.name: metric.of(queries) for metric in metrics.METRICS},
        "valid_queries": len(ap),
    }
    best_on_test = {**last, "mAP": last["mAP"] if best is None else best, "chosen_by": "mAP"}
    if failure:
        last = dict.fromkeys(last)
        best_on_test = {**last, "chosen_by": "mAP"}
    data = {"name": "rendered", "fingerprint": fingerprint, "world": world, "info": {"size": size, "world": world}}
    record = {
        "status": "failed" if failure else "ok",
        "reason": failure,
        "run": run.record(),
        "seed": seed,
        "capacity": 4,
        "files": {},
        "fold": None,
        "world": world,
        "input": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "data": data,
        "evaluated_with": {"commit": None, "device": "none"},
        "needs": {"cameras": list(cameras), "identities": False},
        "protocol": {"name": "rendered", "version": 1, "metric": "cmc_and_map", "headline": "mAP", "folds": 1},
        "tested_on": data,
        "initial": {"source": "chosen", "sha256": None},
        "cost": {"images_seen": 96, "seconds_total": 6.0},
        "code": "none",
        "key": "none",
        "scoring": "none",
        "provenance": {"commit": None, "device": "none"},
        "selection": {"last": last, "best_on_test": best_on_test},
        **more,
    }
    place = "rendered" if world is None else f"rendered-{world}"
    folder = Job(name, place, "resnet18_half", seed).evaluated
    if curves is None:
        curves = pd.DataFrame({"epoch": [1, 2], "mAP": [0.1, 0.2]})
    evaluate.write(folder, read(ResultRecord, record, "the result"), None if failure else queries, curves)
    return folder
