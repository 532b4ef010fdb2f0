"""Test a trained run on query and gallery, or rank any system's features under a protocol.

A run is scored at every epoch whose weights it kept: the last one is the headline, the best one on the test split is
reported beside it under that name. `--features FILE.npz --protocol NAME` needs no run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from core import distributed
from core.errors import UserError
from core.files import forget, hashes, write_csv, write_json
from core.lock import locked
from evaluation import metrics
from evaluation.metrics import Metric
from pipeline import cli, needed
from pipeline.jobs import CACHE, Job, data_folder
from pipeline.records import SCORED, ResultRecord, write_record
from pipeline.scoring import read_whole, same_data, score_run
from pipeline.settings import run_backbone


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the metrics are written; a failed run's metrics say ``status: failed``."""
    arguments = cli.parser("evaluate", __doc__ or "")
    arguments.add_argument("--method", help="METHOD or METHOD-VARIANT, as given to train")
    arguments.add_argument("--dataset", help="the dataset it was trained on")
    arguments.add_argument("--seed", type=int, default=0, help="the seed it was trained with")
    arguments.add_argument("--backbone", help="the backbone it was trained with; default: the one of params.yaml")
    arguments.add_argument("--trained", type=Path, help="folder of `train`")
    arguments.add_argument(
        "--data",
        type=Path,
        help="folder of `prepare` to test on; another dataset's for cross-domain",
    )
    arguments.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking as well")
    arguments.add_argument("--protocol", help="with --features: a protocol, market1501 for example")
    arguments.add_argument(
        "--features", type=Path, nargs="+", help="npz with features, ids and cameras; one for each fold of the protocol"
    )
    arguments.add_argument("--normalize", action="store_true", help="L2-normalise --features first")
    arguments.add_argument("--out", type=Path, help="folder, or with --features the JSON file to write")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="decoded images")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    arguments.add_argument("--profile", help="the profile it was trained under; default: params.yaml's")
    cli.add_machine_arguments(arguments)
    options = arguments.parse_args(argv)
    if not options.features and not (options.method and options.dataset):
        arguments.error("give --method and --dataset, or --protocol and --features")
    if ignored := unread(options):
        arguments.error(ignored)
    if options.features:
        return evaluate_features(options)

    params = cli.read_params(options)
    torch.set_num_threads(cli.threads(options, params))
    backbone = run_backbone(options.method, options.dataset, params, options.backbone)
    job = Job(options.method, options.dataset, backbone, options.seed)
    trained = options.trained or job.trained
    data = options.data or data_folder(options.dataset)
    out = options.out or job.evaluated
    manifest = needed.prepared(options.dataset, options.data)
    made_by = {"method": options.method, "dataset": options.dataset, "seed": options.seed, "out": options.trained}
    needed.need(trained / "train.json", "trained run", needed.command("train", **made_by, backbone=options.backbone))
    if options.out is None and not same_data(read_whole(trained), manifest):
        raise UserError(f"{data} is not what {trained} was trained on; pass --out, a folder for these results")
    group = distributed.start(options.device)
    result, per_query, curves = score_run(trained, manifest, group, options.cache, options.rerank)
    write(out, result, per_query, curves)
    print(headline(result))
    for note in result.notes:
        print(f"note: {note}")
    return 0


def unread(options: Any) -> str | None:
    """What was asked for and would not be done, or None: a run and feature files have options of their own."""
    of_runs = ("method", "dataset", "trained", "data", "rerank")
    of_features = ("protocol", "normalize")
    given = [f"--{name}" for name in (of_runs if options.features else of_features) if getattr(options, name)]
    if not given:
        return None
    if options.features:
        return f"{', '.join(given)} does not go with --features, whose files hold all that is ranked"
    return (
        f"{', '.join(given)} goes with --features alone: a run is scored by its dataset's protocol and its own features"
    )


def headline(result: ResultRecord) -> str:
    """One line for the person waiting."""
    tested = result.tested_on
    title = f"{result.run.name} on {tested.title}, seed {result.seed}"
    if result.status == "failed":
        return f"{title}: failed: {result.reason}"
    told = [figure(judge, result.selection.last.figure(judge.name)) for judge in metrics.JUDGES]
    return f"{title}: {', '.join(told)} (last epoch)"


def figure(metric: Metric, value: float | None) -> str:
    """``mAP 82.1``, in the scale of tables."""
    if value is None:
        return f"no {metric.title} under its protocol"
    return f"{metric.title} {format(metric.scale * value, metric.form)}"


def write(out: Path, result: ResultRecord, per_query: pd.DataFrame | None, curves: pd.DataFrame) -> None:
    """``result.json`` (everything), ``metrics.json`` (what `dvc metrics` shows), and the two side files.

    ``result.json`` is written last and holds the hashes of the others.
    """
    with locked(out):
        forget(out / SCORED)
        write_side_files(out, result, per_query, curves)
        files = hashes(out, ["metrics.json", "queries.csv", "curves.csv"])
        write_record(result.model_copy(update={"files": files}), out / SCORED)


def write_side_files(out: Path, result: ResultRecord, per_query: pd.DataFrame | None, curves: pd.DataFrame) -> None:
    """What other programs read beside ``result.json``."""
    last, best = result.selection.last, result.selection.best_on_test
    judges = [judge.name for judge in metrics.JUDGES]
    shown = {
        "status": result.status,
        **{metric.name: last.figure(metric.name) for metric in metrics.BOARD},
        **(result.verification.figures() if result.verification else {}),
        "best_on_test": {key: getattr(best, key) for key in ("epoch", *judges, "chosen_by")},
        "images_seen": result.cost.images_seen,
    }
    write_json(out / "metrics.json", shown)
    columns = ["query", "person_id", "camera_id"]
    table = per_query if per_query is not None else pd.DataFrame(columns=columns)
    write_csv(out / "queries.csv", table)
    write_csv(out / "curves.csv", curves)


def evaluate_features(options: Any) -> int:
    """Rank feature files under a named protocol."""
    from evaluation.protocol import load
    from evaluation.score import evaluate_feature_files

    if not options.protocol or not options.out:
        raise UserError("--features needs --protocol NAME and --out FILE.json")
    if options.out.is_dir():
        raise UserError(f"{options.out} is a folder; with --features, --out names the JSON file to write")
    protocol = load(options.protocol)
    summary, per_query = evaluate_feature_files(protocol, options.features, options.normalize)
    side = options.out.with_suffix(".queries.csv")
    write_csv(side, per_query)
    write_json(options.out, summary)
    print(json.dumps(summary, indent=2))
    print(f"per-query results: {side}")
    if summary["folds"] < protocol.folds:
        print(f"{summary['folds']} of {protocol.folds} folds: give a file for each to get the protocol's number")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
