"""Resolve every run's configuration into a file of its own.

The files are what the train stages depend on: a stage reruns when its own resolved configuration or the code of its
method changes, and not when another method's does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.files import write_json
from datasets import protocol_of, split_number
from pipeline import cli
from pipeline.jobs import runs
from pipeline.params import Params
from pipeline.pretrain import METHOD as WARM_START
from pipeline.settings import Run, choose_backbone, code_hash, explain_run, resolve_run, scoring_hash


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/RUN-DATASET-BACKBONE.json for every run, and OUT/scoring-DATASET.json for every dataset."""
    arguments = cli.parser("configure", __doc__ or "")
    cli.add_params_arguments(arguments)
    arguments.add_argument("--show", metavar="RUN", help="print one run's settings and the layer that decided each")
    arguments.add_argument("--dataset", help="with --show: the dataset; default: the first of params.yaml")
    arguments.add_argument("--backbone", help="with --show: the backbone; default: as `train` chooses it")
    arguments.add_argument("--stage", default="train", choices=("train", "pretrain"), help="with --show: which stage's")
    arguments.add_argument("--out", type=Path, default=Path("results/configs"), help="folder to write")
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    if options.show:
        print(shown(options.show, options.dataset or params.datasets[0], params, options))
        return 0
    for dataset, name, backbone in runs(params):
        trained = resolve_run(name, dataset, params.profile, params.overrides, "train", backbone=backbone)
        write(options.out / f"{name}-{dataset}-{backbone}.json", trained)
        if trained.finetuned_by:
            own = resolve_run(
                name, dataset, params.profile, params.overrides, "train", backbone=backbone, pretrains=True
            )
            write(options.out / f"pretrain-{name}-{dataset}-{backbone}.json", own)
        pretrained = resolve_run(WARM_START, dataset, params.profile, params.overrides, "pretrain", backbone=backbone)
        write(options.out / f"pretrain-{dataset}-{backbone}.json", pretrained)
    for dataset in params.datasets:
        protocol = protocol_of(split_number(dataset)[0])
        record = {**protocol.rules(), "scoring": scoring_hash(protocol)}
        write_json(options.out / f"scoring-{dataset}.json", record)
    return 0


def shown(name: str, dataset: str, params: Params, options: argparse.Namespace) -> str:
    """Every setting of a run with its value and the layer that decided it, a line each."""
    backbone = choose_backbone(name, params, options.backbone)
    decided = explain_run(name, dataset, params, options.stage, options.assignments, backbone)
    rows = [(key, str(value), layer) for key, (value, layer) in decided.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {layer}" for key, value, layer in rows)


def write(file: Path, run: Run) -> None:
    """The run's configuration with the hash of its code."""
    write_json(file, {**run.record(), "code": code_hash(run.trains)})


if __name__ == "__main__":
    cli.run_main(main)
