"""Resolve every run's configuration into a file of its own.

The files are what the train stages depend on: a stage reruns when its own resolved configuration or the code of its
method changes, and not when another method's does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.jobs import runs
from pipeline.pretrain import METHOD as WARM_START
from pipeline.settings import Run, code_hash, resolve_run


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/RUN-DATASET-BACKBONE.json for every run, dataset and backbone of params.yaml."""
    arguments = cli.parser("configure", __doc__ or "")
    cli.add_params_arguments(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results/configs"), help="folder to write")
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    options.out.mkdir(parents=True, exist_ok=True)
    for dataset, name, backbone in runs(params):
        trained = resolve_run(name, dataset, params, "train", backbone=backbone)
        write(options.out / f"{name}-{dataset}-{backbone}.json", trained)
        pretrained = resolve_run(WARM_START, dataset, params, "pretrain", backbone=backbone)
        write(options.out / f"pretrain-{dataset}-{backbone}.json", pretrained)
    return 0


def write(file: Path, run: Run) -> None:
    """The run's configuration with the hash of its code."""
    record = {**run.record(), "code": code_hash(run.method)}
    file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
