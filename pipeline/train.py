"""Train one method on one dataset from the dataset's initial weights; an interrupted run goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import methods
from core import distributed
from core.checkpoint import Checkpoint, weights_name
from core.config import digest
from core.distributed import ProcessGroup
from core.engine import Progress, Trainer, kept_epochs
from core.files import forget, hashes, write_arrays, write_csv
from core.lock import locked_by_main
from core.manifest import Manifest
from core.rng import Streams
from core.tracking import Tracker, check_tracker
from pipeline import cli, needed
from pipeline.assemble import Computing, build_method, run_key, stream_seed, training_data
from pipeline.initial import Initial, from_nothing
from pipeline.jobs import CACHE, ROOT, Job
from pipeline.records import (
    TRAINED,
    CostRecord,
    InputRecord,
    SourceRecord,
    TrainRecord,
    data_record,
    needs_record,
    provenance_record,
    run_record,
    write_record,
)
from pipeline.settings import Run, choose_backbone, code_hash, resolve_run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 for a finished run, one that failed for a recorded reason included."""
    arguments = cli.parser("train", __doc__ or "")
    arguments.add_argument("--method", required=True, help="METHOD or METHOD-VARIANT, as in hhcl-paper")
    cli.add_run_arguments(arguments)
    arguments.add_argument("--data", type=Path, help="folder of `prepare`; default: data/DATASET")
    arguments.add_argument("--initial", type=Path, help="folder of `pretrain`; default: initial/DATASET-BACKBONE-SEED")
    arguments.add_argument("--out", type=Path, help="default: results/training/METHOD-DATASET-BACKBONE-SEED")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="images and checkpoints")
    cli.add_track_argument(arguments)
    options = arguments.parse_args(argv)
    check_tracker(options.track)

    params = cli.read_params(options)
    backbone = choose_backbone(options.method, params, options.backbone)
    run = resolve_run(
        options.method, options.dataset, params.profile, params.overrides, "train", options.assignments, backbone
    )
    torch.set_num_threads(cli.threads(options, params))
    manifest = needed.prepared(options.dataset, options.data)
    pretrained_by = run.name if run.finetuned_by else None
    where = (options.dataset, run.backbone, options.seed, options.profile, options.data, options.initial)
    initial = needed.initial_weights(*where, pretrained_by)
    out = options.out or Job(options.method, options.dataset, run.backbone, options.seed).trained
    group = distributed.start(options.device)
    try:
        record = train(run, manifest, initial, options.seed, out, group, options.cache, options.track)
    finally:
        distributed.finish(group)
    if group.main:
        outcome = f"failed: {record.reason}" if record.status == "failed" else "trained"
        print(f"{run.title} on {run.dataset}, seed {options.seed}: {outcome}")
        print(f"  {record.cost.all_images_seen} images in {record.cost.seconds_total:.1f} s -> {out}")
    return 0


def train(
    run: Run,
    manifest: Manifest,
    initial: Initial,
    seed: int,
    out: Path,
    group: ProcessGroup,
    cache: Path = CACHE,
    track: str | None = None,
) -> TrainRecord:
    """Train a run, resuming what an interrupted one left, and write ``out``; another process at it is FolderInUse.

    Writes ``weights/epoch_NNN.pt`` every ``eval_every`` epochs and for the last, ``history.csv`` (one row per
    epoch), ``labels.npz`` (the pseudo-labels of every epoch, for the audit) and ``train.json``. Returns the
    content of ``train.json``, whose ``status`` is ``ok``, or ``failed`` with the reason. Meanwhile the run can be
    watched in ``cache/progress`` (``Tracker``).
    """
    needs = methods.load(run.trains).needs(run.config)
    initial = initial if needs.initial else from_nothing(initial)
    data, sizes = training_data(run, manifest, needs, initial, group, cache)
    drawn = stream_seed(manifest, seed)
    streams = Streams(drawn)
    method = build_method(run, sizes, streams, initial)
    # Two runs that differ by name alone (a row of an ablation that changes nothing) may train at the same time.
    key = run_key(run, manifest, needs, initial.sha256, drawn, Computing.of(group))
    checkpoint = Checkpoint(cache / "checkpoints", {**key, "name": run.name})
    with locked_by_main(group, checkpoint.folder, out):
        with Tracker(cache / "progress" / Job(run.name, manifest.name, run.backbone, seed).name, track) as tracker:
            progress = Trainer(method, data, run.config, streams, checkpoint, group, tracker.update).fit()
        record = TrainRecord(
            status="failed" if progress.failure else "ok",
            reason=progress.failure,
            run=run_record(run),
            seed=seed,
            capacity=sizes.capacity,
            source_identities=sizes.source_identities,
            needs=needs_record(needs),
            data=data_record(manifest),
            initial=SourceRecord(source=initial.source, sha256=initial.sha256, images_seen=initial.images_seen),
            input=InputRecord(mean=tuple(initial.mean), std=tuple(initial.std)),
            cost=cost(progress, needs.trains_on),
            code=code_hash(run.trains),
            key=digest(key),
            provenance=provenance_record(group, ROOT),
            files={},  # by ``publish``
        )
        if group.main:
            publish(out, checkpoint, kept_epochs(run.config.schedule, progress.epoch), progress, record)
    return record


def publish(out: Path, checkpoint: Checkpoint, epochs: Sequence[int], progress: Progress, record: TrainRecord) -> None:
    """Write what a finished run leaves, the record last with the hash of all it speaks of; then forget the checkpoint.

    Killed in between, the run resumes at its end and does this again.
    """
    forget(out / TRAINED)
    checkpoint.publish_weights(out / "weights", epochs)
    write_csv(out / "history.csv", pd.DataFrame(progress.history))
    labels = [tensor.cpu().numpy() for tensor in progress.labels]
    write_arrays(out / "labels.npz", labels=np.stack(labels) if labels else np.zeros((0, 0), int))
    weights = [f"weights/{weights_name(epoch)}" for epoch in epochs]
    files = hashes(out, ["history.csv", "labels.npz", *weights])
    write_record(record.model_copy(update={"files": files}), out / TRAINED)
    checkpoint.delete()


def cost(progress: Progress, trains_on: str) -> CostRecord:
    """Seconds per phase, images seen and peak memory of the whole run; of one on the source, all images are its."""
    history = pd.DataFrame(progress.history)
    seconds = {
        name.removeprefix("seconds_"): round(float(history[name].sum()), 3)
        for name in history.columns
        if name.startswith("seconds_")
    }
    peaks = {name: int(history[name].max()) for name in history.columns if name.startswith("peak_")}
    own, beside = progress.images_seen, progress.source_images_seen
    return CostRecord(
        epochs=progress.epoch,
        images_seen=0 if trains_on == "source" else own,
        source_images_seen=own if trains_on == "source" else beside,
        seconds=seconds,
        seconds_total=round(sum(seconds.values()), 3),
        **peaks,
    )


if __name__ == "__main__":
    cli.run_main(main)
