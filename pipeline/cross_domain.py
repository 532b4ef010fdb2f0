"""Every trained run of params.yaml tested on every prepared dataset: train on A, test on B, from the same weights.

The last epoch is tested. Datasets are named by their folders in `data/`; a run's own dataset is the diagonal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import methods
from core import distributed
from core.distributed import World
from core.manifest import Manifest, read_manifest
from pipeline import cli, paths
from pipeline.scoring import NO_SCORES, TestSplit, load_method

RUN = ["method", "variant", "backbone", "profile", "trained_on"]
SCORES = ["mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10", "valid_queries"]
COLUMNS = [*RUN, "tested_on", "seed", "selection", "epoch", *SCORES, "trained_data", "tested_data", "status"]
NOTE = (
    "mAP in percent, last epoch, mean over seeds. Rows: what was trained, on what; columns: what it was tested on. "
    "A dash: failed, or the method cannot be tested there; cross_domain.csv says which."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write cross_domain.csv (one row per run, seed and test dataset), matrix.csv and matrix.md."""
    arguments = cli.parser("cross_domain", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was trained")
    arguments.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared datasets")
    arguments.add_argument("--out", type=Path, default=Path("results/cross_domain"), help="folder to write")
    arguments.add_argument("--cache", type=Path, default=paths.CACHE, help="decoded images")
    cli.add_machine_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_yaml(options.params)
    torch.set_num_threads(options.threads or params["threads"])
    trained, missing = trained_folders(params)
    tests = prepared(options.data)
    if not trained or not tests:
        lacking = "trained run of params.yaml" if not trained else f"dataset with query and gallery in {options.data}"
        raise FileNotFoundError(f"there is no {lacking}; run `python -m pipeline.train` and `pipeline.prepare` first")
    for folder in missing:
        print(f"left out, not trained: {folder}", file=sys.stderr)
    table = cross_domain(trained, tests, distributed.start(options.device), options.cache)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "cross_domain.csv", index=False)
    grid = matrix(table)
    grid.to_csv(options.out / "matrix.csv", index=False)
    text = markdown(grid)
    (options.out / "matrix.md").write_text(text)
    print(text)
    return 0


def trained_folders(params: dict[str, Any]) -> tuple[list[Path], list[Path]]:
    """Folders of the runs of params.yaml: those that were trained, and those that were not."""
    cells = [(run, data, seed) for data in params["datasets"] for run in params["runs"] for seed in params["seeds"]]
    folders = [paths.trained(*cell) for cell in cells]
    there = [folder for folder in folders if (folder / "train.json").is_file()]
    return there, [folder for folder in folders if folder not in there]


def prepared(data: Path) -> dict[str, Manifest]:
    """Prepared datasets that can be tested on, by folder name."""
    found = {file.parent.name: read_manifest(file.parent) for file in sorted(data.glob("*/manifest.csv"))}
    return {name: manifest for name, manifest in found.items() if manifest.has("query") and manifest.has("gallery")}


def cross_domain(trained: Sequence[Path], tests: dict[str, Manifest], world: World, cache: Path) -> pd.DataFrame:
    """One row with COLUMNS per trained folder and test dataset; metrics as fractions."""
    rows = []
    for folder in tqdm(trained, "cross-domain", leave=False):
        record = json.loads((folder / "train.json").read_text())
        for name, manifest in tests.items():
            scores, status = score_last(folder, record, manifest, world, cache)
            run = {key: record["run"][key] for key in RUN[:-1]}
            rows.append(
                {
                    **run,
                    "trained_on": record["run"]["dataset"],
                    "tested_on": name,
                    "seed": record["seed"],
                    "selection": "last",
                    **scores,
                    "trained_data": record["data"]["fingerprint"],
                    "tested_data": manifest.fingerprint,
                    "status": status,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def score_last(
    folder: Path, record: dict[str, Any], manifest: Manifest, world: World, cache: Path
) -> tuple[dict[str, Any], str]:
    """Scores of the last epoch on a dataset, or no scores and why."""
    if record["status"] != "ok":
        return NO_SCORES, f"failed: {record['reason']}"
    run, method = load_method(record)
    elsewhere = manifest.fingerprint != record["data"]["fingerprint"]
    if elsewhere and "test" in methods.load(run.method).needs(run.config).cameras:
        return NO_SCORES, "not applicable: at test the method needs the cameras that it was trained with"
    last = max((folder / "weights").glob("epoch_*.pt"))
    method.load_state_dict(torch.load(last, map_location="cpu", weights_only=True))
    scores = TestSplit(manifest, run, record, world, cache).score(method)
    return {"epoch": int(last.stem.removeprefix("epoch_")), **scores.summary()}, "ok"


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Mean mAP in percent over the seeds that have one: rows are run and training dataset, columns test datasets."""
    tests = list(dict.fromkeys(table["tested_on"]))
    values = table.assign(mAP=100 * table["mAP"].astype(float))
    means = values.groupby([*RUN, "tested_on"], sort=False)["mAP"].mean().unstack("tested_on")
    return means.reindex(columns=tests).rename_axis(columns=None).reset_index()


def markdown(grid: pd.DataFrame) -> str:
    """The matrix for people."""
    shown = grid.astype(object)
    for column in grid.columns.difference(RUN):
        shown[column] = ["-" if pd.isna(value) else f"{value:.1f}" for value in grid[column]]
    shown = shown.rename(columns={"trained_on": "trained on"})
    return "\n".join(["# Cross-domain", "", NOTE, "", str(shown.to_markdown(index=False, disable_numparse=True)), ""])


if __name__ == "__main__":
    cli.run_main(main)
