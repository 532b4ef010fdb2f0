"""Make the weights that training on a dataset starts from.

A dataset with a labelled `source` split gives a warm start trained on it; any other starts from the weights that
the profile names (ImageNet, or a checkpoint file).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from core import distributed
from core.backbones.weights import Weights, find_weights, load_weights
from core.checkpoint import weights_name
from core.config import ConfigError
from core.distributed import ProcessGroup
from core.errors import UserError
from core.files import discard
from core.lock import locked_by_main
from core.manifest import Manifest
from core.rng import Streams
from pipeline import cli, needed
from pipeline.assemble import Sizes, build_method
from pipeline.initial import Initial, save_initial
from pipeline.jobs import CACHE, initial_folder
from pipeline.records import TrainRecord
from pipeline.settings import Run, choose_backbone, profile_settings, resolve_run
from pipeline.train import train

METHOD = "supervised-source"
SEED = 0  # of random weights that are overwritten at once


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the weights are written."""
    arguments = cli.parser("pretrain", __doc__ or "")
    cli.add_run_arguments(arguments)
    arguments.add_argument("--data", type=Path, help="folder of `prepare`; default: data/DATASET")
    arguments.add_argument(
        "--start-from",
        help="nothing, imagenet, luperson=FILE, or a checkpoint FILE; default: the profile's",
    )
    arguments.add_argument("--out", type=Path, help="default: initial/DATASET-BACKBONE-SEED")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="images and checkpoints")
    options = arguments.parse_args(argv)

    params = cli.read_params(options)
    backbone = choose_backbone(METHOD, params, options.backbone)
    run = resolve_run(
        METHOD, options.dataset, params.profile, params.overrides, "pretrain", options.assignments, backbone
    )
    torch.set_num_threads(cli.threads(options, params))
    manifest = needed.prepared(options.dataset, options.data)
    out = options.out or initial_folder(options.dataset, run.backbone, options.seed)
    group = distributed.start(options.device)
    try:
        with locked_by_main(group, out):
            make(options, run, manifest, out, group)
    finally:
        distributed.finish(group)
    return 0


def make(options: Namespace, run: Run, manifest: Manifest, out: Path, group: ProcessGroup) -> None:
    """Write the initial weights to ``out``, which this process holds."""
    if not manifest.has("source"):
        start = starting_weights(run, options.start_from, out)
        if start.weights is None:
            raise ConfigError(
                f"'{manifest.name}' has no labelled source split and profile '{run.profile}' starts from nothing, so "
                "training would begin at random weights; pass --start-from imagenet or a checkpoint file"
            )
        print(f"initial weights for {manifest.name}: {start.source} -> {out}")
        return
    scratch = out / "pretraining"
    start = starting_weights(run, options.start_from, scratch / "start")
    record = train(run, manifest, start, options.seed, scratch, group, options.cache)
    if record.status == "failed":
        raise UserError(f"pre-training failed: {record.reason}")
    if group.main:
        publish(scratch, record, start, manifest.name, out)
        print(f"warm start of {run.backbone} on {manifest.name} source -> {out}")


def starting_weights(run: Run, asked: str | None, out: Path) -> Initial:
    """What pre-training, or training without a source split, starts from; written to ``out`` unless nothing."""
    name = asked or profile_settings(run.profile)["start_from"]
    if name == "nothing":
        return Initial(None, "random", None)
    entry, path = find_start(name, run.backbone)
    method = build_method(run, Sizes(1), Streams(SEED), None)
    report = load_weights(method.embedder, entry, path, download=path is None)
    source = entry.source if path is None else f"{entry.source}, {path.name} {report.sha256[:8]}"
    like = Initial(None, source, None, entry.mean, entry.std)
    return save_initial(method.embedder.state_dict(), source, out, like)


def find_start(name: str, backbone: str) -> tuple[Weights, Path | None]:
    """``imagenet`` -> the public weights of the backbone; ``ENTRY=FILE`` or ``FILE`` -> a user's checkpoint."""
    if name == "imagenet":
        return find_weights("imagenet", backbone), None
    entry, equals, path = name.partition("=")
    if equals:
        return find_weights(entry, backbone), Path(path)
    return find_weights("checkpoint", backbone), Path(name)


def publish(scratch: Path, record: TrainRecord, start: Initial, dataset: str, out: Path) -> None:
    """Keep the last epoch's embedder as the initial weights of every run on this dataset."""
    last = scratch / "weights" / weights_name(record.cost.epochs)
    state = torch.load(last, map_location="cpu", weights_only=True)
    prefix = "embedder."
    embedder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    source = f"{dataset} source, labelled"
    if start.weights is not None:
        source += f" (from {start.source})"
    save_initial(embedder, source, out, start)
    discard(scratch / "weights")


if __name__ == "__main__":
    cli.run_main(main)
