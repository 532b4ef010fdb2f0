"""Resolve every run's configuration into a file of its own.

The files are what the train stages depend on: a stage reruns when its own resolved configuration or the code of its
method changes, and not when another method's does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.settings import code_hash, resolve_run


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/RUN-DATASET.json for every run and dataset of params.yaml."""
    arguments = cli.parser("configure", __doc__ or "")
    cli.add_params_arguments(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results/configs"), help="folder to write")
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    options.out.mkdir(parents=True, exist_ok=True)
    backbone = params["backbones"]["cnn"]
    for dataset in params["datasets"]:
        pretrained = resolve_run("supervised-source", dataset, params, "pretrain", backbone=backbone)
        runs = {f"pretrain-{dataset}": pretrained}
        for name in params["runs"]:
            runs[f"{name}-{dataset}"] = resolve_run(name, dataset, params, "train", backbone=backbone)
        for title, run in runs.items():
            record = {**run.record(), "code": code_hash(run.method)}
            (options.out / f"{title}.json").write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
