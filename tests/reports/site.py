"""A working directory with results of every sort, of which a report has every panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.files import write_csv
from core.manifest import Manifest, read_manifest
from pipeline.jobs import Job, data_folder
from pipeline.records import NearestRecord, write_record
from reports.ablation import COLUMNS as ABLATION
from tests.reports.synthetic import write_params, write_result

WORLDS = 3
# mAP of each run; cameras alternate between none and the sampler.
LEVELS = {
    "warm_start": 0.55,
    "supervised": 0.88,
    "cluster_contrast": 0.76,
    "cluster_contrast-no_cam": 0.74,
    "spcl": 0.6,
    "hcl": 0.72,
    "hhcl": 0.79,
    "jcl": 0.83,
}
FAILED, NOT_RUN = "hcl", "pisl"
REASON = "loss is not finite: <nan> in epoch 3 & 4"


def write_site(folder: Path, data: Path) -> Path:
    """Fill the working directory ``folder`` and return its params.yaml; ``data``: a world of tiny people.

    The first world's results are of ``data``; the others are of the same queries, and their images are nowhere.
    """
    data_folder("rendered").parent.mkdir()
    data_folder("rendered").symlink_to(data)
    manifest = read_manifest(data)
    for world in range(WORLDS):
        for place, (name, level) in enumerate(LEVELS.items()):
            write_run(name, level, place, world, manifest)
    write_ablation(folder / "results/ablations/hhcl.csv")
    return write_params(folder, [*LEVELS, NOT_RUN], [0], range(WORLDS))


def write_run(name: str, level: float, place: int, world: int, manifest: Manifest) -> None:
    """One run in one world: the first of FAILED failed, and the first world of every other was ranked."""
    query, gallery = manifest.split("query"), manifest.split("gallery")
    rng = np.random.default_rng([world, place])
    hardness = np.random.default_rng(world).normal(0, 0.1, len(query))
    ap = np.clip(level + hardness + rng.normal(0, 0.05, len(query)), 0.01, 1)
    failed = name == FAILED and world == 0
    write_result(
        name,
        0,
        ap,
        query["person_id"].to_numpy(),
        world=world,
        fingerprint=manifest.fingerprint if world == 0 else f"world {world}",
        cameras=["sampler"] if place % 2 else [],
        failure=REASON if failed else None,
        curves=curves(level, place),
        verification=None if failed else verification(place),
        cost={"images_seen": 9600 if place else 0, "seconds_total": 60.0 + 10 * place * level, "epochs": 4},
    )
    if world == 0 and not failed:
        lists = np.stack([rng.permutation(len(gallery))[:10] for _ in range(len(query))])
        write_record(ranking(lists, manifest.fingerprint, rng), Job(name, "rendered-0", "resnet18_half", 0).nearest)


def ranking(lists: np.ndarray, fingerprint: str, rng: np.random.Generator) -> NearestRecord:
    """Lists as given; rates that rise with the camera's number, none within a camera."""
    rates = np.round(rng.uniform(0.6, 1, (3, 3)), 3)
    return NearestRecord(
        key="none",
        scoring="none",
        fingerprint=fingerprint,
        lists=tuple(map(tuple, lists.tolist())),
        cameras=(1, 2, 3),
        rank1=tuple(tuple(None if i == j else rates[i, j] for j in range(3)) for i in range(3)),
        asked=tuple(tuple(0 if i == j else 7 for j in range(3)) for i in range(3)),
    )


def curves(level: float, place: int) -> pd.DataFrame:
    """Training that settles; test scores exist of every second epoch."""
    epoch = np.arange(1, 5)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "mAP": np.where(epoch % 2 == 0, level - 0.2 * np.exp(-epoch), np.nan),
            "audit_ari": 0.9 - 0.3 * np.exp(-epoch / 2) - 0.01 * place,
            "clusters": (60 + 600 * np.exp(-epoch) + 5 * place).round(),
            "audit_churn": 0.5 * np.exp(-epoch / (3 + place)),
            "audit_outlier_share": 0.3 * np.exp(-epoch / (4 + place)),
        }
    )


def verification(place: int) -> dict[str, Any]:
    """Two humps and thresholds between them; the strictest cannot be measured for the first run."""
    distance = np.arange(100) / 50
    same = np.rint(200 * np.exp(-(((distance - 0.4) / 0.2) ** 2))).astype(int)
    other = np.rint(900 * np.exp(-(((distance - 1.2) / 0.25) ** 2))).astype(int)
    strict = {"tpr": None, "threshold": None} if place == 0 else {"tpr": 0.7, "threshold": 0.5}
    return {
        "same_pairs": int(same.sum()),
        "other_pairs": int(other.sum()),
        "eer": 0.05 + place / 100,
        "eer_threshold": 0.8,
        "at": [{"fpr": 0.01, "tpr": 0.9, "threshold": 0.7}, {"fpr": 0.001, **strict}],
        "panel": {"start": 0.0, "width": 0.02, "same": same.tolist(), "other": other.tolist()},
    }


def write_ablation(file: Path) -> None:
    """The full method and two rows, one of them resolved."""
    shared = {"dataset": "rendered", "backbone": "resnet18_half", "profile": "tiny", "seeds": 3, "status": "ok"}
    rows = [
        {**shared, "row": "full", "changes": ""},
        {**shared, "row": "no_hard", "changes": "settings.w_hard=0.0", "difference": -3.0, "low": -5.0, "high": -1.0},
        {**shared, "row": "no_mean", "changes": "settings.w_mean=0.0", "difference": 0.5, "low": -1.0, "high": 2.0},
    ]
    table = pd.DataFrame(rows, columns=ABLATION)
    table["verdict"] = [None, "worse", "not resolved at 3 seeds"]
    write_csv(file, table.assign(p_holm=[None, 0.01, 0.6]))
