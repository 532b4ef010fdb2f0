"""Every trained run of params.yaml tested on every prepared dataset: train on A, test on B, from the same weights.

The last epoch is tested, by the protocol of the dataset that tests. Datasets are named by their folders in `data/`; a
run's own dataset is the diagonal. `--trained` takes other runs than params.yaml's, and weights of other epochs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import datasets
import methods
from core import distributed
from core.checkpoint import weights_name
from core.distributed import ProcessGroup
from core.errors import UserError
from core.files import write_csv, write_text
from core.manifest import Manifest, read_manifest
from core.neighbors import NonFiniteFeatures
from evaluation import metrics
from pipeline import cli
from pipeline.jobs import CACHE, jobs
from pipeline.params import Params
from pipeline.records import NO_SCORES, TrainRecord, data_record
from pipeline.scoring import TestSplit, load_method, read_whole, same_data, shared_people

RUN = ["method", "variant", "backbone", "profile", "trained_on"]
ROW = [*RUN, "selection"]  # of the matrix: epochs are never averaged
SCORES = [*metrics.BY_NAME, "valid_queries"]
COLUMNS = [
    *(*RUN, "trained_fold", "tested_on", "tested_fold", "seed", "selection", "epoch", *SCORES),
    *("headline", "trained_data", "tested_data", "status"),
]
NOTHING = NO_SCORES.model_dump()
NOTE = (
    "The protocol's headline (mAP unless the column names another), mean over seeds and folds. Rows: what was trained, "
    "on what, and which epoch; columns: what it was tested on. A dash: failed, or the method cannot be tested there; "
    "cross_domain.csv says which."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write cross_domain.csv (one row per run, seed and test dataset), matrix.csv and matrix.md."""
    arguments = cli.parser("cross_domain", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was trained")
    cli.add_worlds_argument(arguments)
    other = "folders of `train`, or files of weights/ in them, instead of params.yaml's runs"
    arguments.add_argument("--trained", type=Path, nargs="+", help=other)
    arguments.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared datasets")
    arguments.add_argument("--out", type=Path, default=Path("results/cross_domain"), help="folder to write")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="decoded images")
    cli.add_machine_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    torch.set_num_threads(cli.threads(options, params))
    named = list(dict.fromkeys(options.trained or []))  # a shell's patterns may name a folder twice
    trained, missing = (named, []) if named else trained_folders(params)
    tests = prepared(options.data)
    if not trained or not tests:
        lacking = "trained run of params.yaml" if not trained else f"dataset with query and gallery in {options.data}"
        raise UserError(f"there is no {lacking}; run `python -m pipeline.train` and `pipeline.prepare` first")
    for folder in missing:
        print(f"left out, not trained: {folder}", file=sys.stderr)
    table = cross_domain(trained, tests, distributed.start(options.device), options.cache)
    write_csv(options.out / "cross_domain.csv", table)
    grid = matrix(table)
    write_csv(options.out / "matrix.csv", grid)
    text = markdown(grid)
    write_text(options.out / "matrix.md", text)
    print(text)
    return 0


def trained_folders(params: Params) -> tuple[list[Path], list[Path]]:
    """Folders of the runs of params.yaml: those that were trained, and those that were not."""
    folders = [job.trained for job in jobs(params)]
    there = [folder for folder in folders if (folder / "train.json").is_file()]
    return there, [folder for folder in folders if folder not in there]


def prepared(data: Path) -> dict[str, Manifest]:
    """Prepared datasets that can be tested on, by folder name."""
    found = {file.parent.name: read_manifest(file.parent) for file in sorted(data.glob("*/manifest.csv"))}
    return {name: manifest for name, manifest in found.items() if manifest.has("query") and manifest.has("gallery")}


def cross_domain(trained: Sequence[Path], tests: dict[str, Manifest], group: ProcessGroup, cache: Path) -> pd.DataFrame:
    """One row with COLUMNS per trained folder (or file of its weights) and test dataset; metrics as fractions."""
    rows = []
    for path in tqdm(trained, "cross-domain", leave=False):
        record = read_whole(path.parent.parent if path.suffix == ".pt" else path)
        for name, manifest in tests.items():
            scores, status = score_weights(path, record, manifest, group, cache)
            run = {key: getattr(record.run, key) for key in RUN[:-1]}
            trained_on, tested_on = record.data, data_record(manifest)
            rows.append(
                {
                    **run,
                    "trained_on": record.run.dataset.removesuffix(f"-{trained_on.number}"),
                    "trained_fold": trained_on.number,
                    "tested_on": name.removesuffix(f"-{tested_on.number}"),
                    "tested_fold": tested_on.number,
                    "seed": record.seed,
                    "selection": path.stem if path.suffix == ".pt" else "last",
                    **scores,
                    "headline": datasets.protocol_of(manifest.name).headline,
                    "trained_data": record.data.fingerprint,
                    "tested_data": manifest.fingerprint,
                    "status": status,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def score_weights(
    path: Path, record: TrainRecord, manifest: Manifest, group: ProcessGroup, cache: Path
) -> tuple[dict[str, Any], str]:
    """Scores of a file of weights, or of a run's last epoch, on a dataset, or no scores and why."""
    if record.status != "ok":
        return NOTHING, f"failed: {record.reason}"
    if reason := shared_people(record, manifest):
        return NOTHING, f"not applicable: {reason}"
    run, method = load_method(record)
    if not same_data(record, manifest) and "test" in methods.load(run.trains).needs(run.config).cameras:
        return NOTHING, "not applicable: at test the method needs the cameras that it was trained with"
    weights = path if path.suffix == ".pt" else path / "weights" / weights_name(record.cost.epochs)
    method.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    try:
        scores = TestSplit(manifest, run, record, group, cache).score(method).ranking
    except NonFiniteFeatures as error:
        return NOTHING, f"failed: {error}"
    return {"epoch": int(weights.stem.removeprefix("epoch_")), **scores.summary()}, "ok"


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Mean headline in percent over the seeds and folds that have one: rows are run and training dataset, columns
    test datasets."""
    figures = table.astype({judge.name: float for judge in metrics.JUDGES})
    usual, *others = metrics.JUDGES
    remarks = {usual.name: "", **{judge.name: f" ({judge.title})" for judge in others}}
    values = table.assign(
        value=[metrics.BY_NAME[row["headline"]].scale * row[row["headline"]] for row in figures.to_dict("records")],
        tested_on=table["tested_on"] + table["headline"].map(remarks),
    )
    tests = list(dict.fromkeys(values["tested_on"]))
    means = values.groupby([*ROW, "tested_on"], sort=False)["value"].mean().unstack("tested_on")
    return means.reindex(columns=tests).rename_axis(columns=None).reset_index()


def markdown(grid: pd.DataFrame) -> str:
    """The matrix for people."""
    shown = grid.astype(object)
    for column in grid.columns.difference(ROW):
        shown[column] = ["-" if pd.isna(value) else f"{value:.1f}" for value in grid[column]]
    shown = shown.rename(columns={"trained_on": "trained on"})
    return "\n".join(["# Cross-domain", "", NOTE, "", str(shown.to_markdown(index=False, disable_numparse=True)), ""])


if __name__ == "__main__":
    cli.run_main(main)
