"""Make the weights that training on a dataset starts from.

A dataset with a labelled `source` split gives a warm start trained on it; any other starts from the weights that
the profile names (ImageNet, or a checkpoint file). With --method, a method that pre-trains goes on from there, or from
nothing, and what it hands on is the start of its own fine-tuning.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

import methods
from core import distributed
from core.backbones.weights import Weights, find_weights, load_weights
from core.checkpoint import weights_name
from core.config import ConfigError
from core.distributed import ProcessGroup
from core.errors import UserError
from core.files import discard
from core.lock import locked_by_main
from core.manifest import Manifest
from core.method import Method
from core.rng import Streams
from pipeline import cli, needed
from pipeline.assemble import Sizes, build_method
from pipeline.initial import Initial, save_initial
from pipeline.jobs import CACHE, initial_folder
from pipeline.records import TrainRecord
from pipeline.settings import Run, choose_backbone, finetuning, profile_settings, resolve_run, split_name
from pipeline.train import train

METHOD = "supervised-source"
SEED = 0  # of random weights that are overwritten at once


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the weights are written."""
    arguments = cli.parser("pretrain", __doc__ or "")
    arguments.add_argument("--method", help="METHOD or METHOD-VARIANT that pre-trains; default: the warm start")
    cli.add_run_arguments(arguments)
    arguments.add_argument("--data", type=Path, help="folder of `prepare`; default: data/DATASET")
    arguments.add_argument(
        "--start-from",
        help="nothing, imagenet, luperson=FILE, or a checkpoint FILE; default: the profile's",
    )
    arguments.add_argument("--initial", type=Path, help="with --method: the folder of the warm start")
    arguments.add_argument("--out", type=Path, help="default: initial/DATASET-BACKBONE-SEED, and -METHOD with --method")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="images and checkpoints")
    options = arguments.parse_args(argv)

    if options.method and options.start_from:
        arguments.error("--start-from is for the warm start; with --method, --initial names the folder to go on from")
    params = cli.read_params(options)
    name, stage = (options.method, "train") if options.method else (METHOD, "pretrain")
    if options.method and not finetuning(split_name(name)[0]):
        raise UserError(f"{name} pre-trains nothing: its config.yaml names no `finetune`, the run that goes on from it")
    backbone = choose_backbone(name, params, options.backbone)
    layers = (params.profile, params.overrides, stage, options.assignments, backbone)
    run = resolve_run(name, options.dataset, *layers, pretrains=True)
    torch.set_num_threads(cli.threads(options, params))
    manifest = needed.prepared(options.dataset, options.data)
    out = options.out or initial_folder(options.dataset, run.backbone, options.seed, options.method)
    group = distributed.start(options.device)
    try:
        with locked_by_main(group, out):
            (go_on if options.method else make)(options, run, manifest, out, group)
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


def go_on(options: Namespace, run: Run, manifest: Manifest, out: Path, group: ProcessGroup) -> None:
    """Write what a method pre-trains to ``out``, which this process holds."""
    needs = methods.load(run.method).needs(run.config)
    where = (
        options.dataset,
        run.backbone,
        options.seed,
        options.profile,
        options.data,
        options.initial,
    )
    start = needed.initial_weights(*where) if needs.initial else Initial(None, "random", None)
    scratch = out / "pretraining"
    record = train(run, manifest, start, options.seed, scratch, group, options.cache)
    if record.status == "failed":
        raise UserError(f"pre-training by {run.name} failed: {record.reason}")
    if group.main:
        seen = record.cost.all_images_seen
        source = f"{run.name} on {manifest.name} {needs.trains_on} (from {start.source})"
        hand_on(scratch, record, methods.load(run.method).exports, source, start, out, seen)
        print(f"{run.title} pre-trained on {manifest.name}, {seen} images -> {out}")


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
    source = f"{dataset} source, labelled"
    if start.weights is not None:
        source += f" (from {start.source})"
    hand_on(scratch, record, Method.exports, source, start, out)


def hand_on(
    scratch: Path, record: TrainRecord, prefix: str, source: str, start: Initial, out: Path, images_seen: int = 0
) -> None:
    """Keep the last epoch's weights under ``prefix`` as an embedder's, said to come from ``source``."""
    last = scratch / "weights" / weights_name(record.cost.epochs)
    state = torch.load(last, map_location="cpu", weights_only=True)
    embedder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    assert embedder, f"no weight's name begins with '{prefix}'"
    save_initial(embedder, source, out, start, images_seen)
    discard(scratch / "weights")


if __name__ == "__main__":
    cli.run_main(main)
