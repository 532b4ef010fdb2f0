"""Train one method on one dataset from the dataset's initial weights; an interrupted run goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from core import distributed
from core.manifest import read_manifest
from pipeline import cli, paths, training
from pipeline.grid import Job, default_backbone
from pipeline.settings import resolve_run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 for a finished run, one that failed for a recorded reason included."""
    arguments = cli.parser("train", __doc__ or "")
    arguments.add_argument("--method", required=True, help="METHOD or METHOD-VARIANT, as in hhcl-paper")
    cli.add_run_arguments(arguments)
    arguments.add_argument("--data", type=Path, help="folder of `prepare`; default: data/DATASET")
    arguments.add_argument("--initial", type=Path, help="folder of `pretrain`; default: initial/DATASET-BACKBONE")
    arguments.add_argument("--out", type=Path, help="default: results/training/METHOD-DATASET-BACKBONE-SEED")
    arguments.add_argument("--cache", type=Path, default=paths.CACHE, help="images and checkpoints")
    options = arguments.parse_args(argv)

    params = cli.read_params(options)
    backbone = options.backbone or default_backbone(options.method, params)
    run = resolve_run(options.method, options.dataset, params, "train", options.assignments, backbone)
    torch.set_num_threads(options.threads or params["threads"])
    manifest = read_manifest(options.data or paths.data(options.dataset))
    initial = training.read_initial(options.initial or paths.initial(options.dataset, run.backbone))
    out = options.out or Job(options.method, options.dataset, run.backbone, options.seed).trained
    world = distributed.start(options.device)
    try:
        record = training.train(run, manifest, initial, options.seed, out, world, options.cache)
    finally:
        distributed.finish(world)
    if world.main:
        outcome = "failed: " + record["reason"] if record["status"] == "failed" else "trained"
        print(f"{run.title} on {run.dataset}, seed {options.seed}: {outcome}")
        print(f"  {record['cost']['images_seen']} images in {record['cost']['seconds_total']:.1f} s -> {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
