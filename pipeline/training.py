"""Training as a function: what ``pipeline.train`` and ``pipeline.pretrain`` share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import methods
from core.backbones.batchnorm import set_bn_groups
from core.backbones.net import build, seeded_init
from core.backbones.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    WEIGHTS,
    load_weights,
    weights_sha256,
)
from core.checkpoint import Checkpoint, save_atomically
from core.data import Needs, TrainingData
from core.distributed import World
from core.engine import Progress, Trainer
from core.images import ImageStore, load_images
from core.manifest import Manifest, ManifestError
from core.method import Method
from core.provenance import provenance
from core.rng import Streams
from pipeline import paths
from pipeline.settings import Run, code_hash


@dataclass(frozen=True)
class Initial:
    """Weights that training starts from. ``weights`` None means random initialisation."""

    weights: Path | None
    source: str
    sha256: str | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def write(self, folder: Path) -> None:
        """Write ``initial.json`` beside the weights."""
        record = {"source": self.source, "sha256": self.sha256, "mean": self.mean, "std": self.std}
        (folder / "initial.json").write_text(json.dumps(record, indent=2) + "\n")


def read_initial(folder: Path) -> Initial:
    """Read what ``pipeline.pretrain`` wrote; raises FileNotFoundError with the remedy when it is missing."""
    if not (folder / "initial.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no initial weights; run `python -m pipeline.pretrain --out {folder} ...` first"
        )
    record = json.loads((folder / "initial.json").read_text())
    mean, std = tuple(record["mean"]), tuple(record["std"])
    return Initial(folder / "weights.pt", record["source"], record["sha256"], mean, std)


def train(
    run: Run,
    manifest: Manifest,
    initial: Initial,
    seed: int,
    out: Path,
    world: World,
    cache: Path = paths.CACHE,
) -> dict[str, Any]:
    """Train a run, resuming what an interrupted one left, and write ``out``.

    Writes ``weights/epoch_NNN.pt`` every ``eval_every`` epochs and for the last, ``history.csv`` (one row per
    epoch), ``labels.npz`` (the pseudo-labels of every epoch, for the audit) and ``train.json``. Returns the
    content of ``train.json``; its ``status`` is ``ok``, or ``failed`` with the reason.
    """
    needs = methods.load(run.method).needs(run.config)
    data, capacity = training_data(run, manifest, needs, initial, world, cache)
    streams = Streams(seed)
    method = build_method(run, capacity, streams, initial)
    checkpoint = Checkpoint(cache / "checkpoints", run_key(run, manifest, needs, initial, seed, world))
    trainer = Trainer(method, data, run.config, streams, checkpoint, world)
    progress = trainer.fit()
    record = {
        "status": "failed" if progress.failure else "ok",
        "reason": progress.failure,
        "run": run.record(),
        "seed": seed,
        "capacity": capacity,
        "needs": {"cameras": sorted(needs.cameras), "identities": needs.identities},
        "data": {"name": manifest.name, "fingerprint": manifest.fingerprint, **manifest.info},
        "initial": {"source": initial.source, "sha256": initial.sha256},
        "input": {"mean": initial.mean, "std": initial.std},
        "cost": cost(progress),
        "code": code_hash(run.method),
        "provenance": provenance(world, paths.ROOT),
    }
    if world.main:
        checkpoint.publish_weights(out / "weights", progress.epoch)
        _write(out, progress, record)
        checkpoint.delete()
    return record


def training_data(
    run: Run, manifest: Manifest, needs: Needs, initial: Initial, world: World, cache: Path
) -> tuple[TrainingData, int]:
    """The training split as the method may see it, and the size of a class head over it."""
    rows = manifest.split(needs.trains_on)
    size = run.config.input
    pixels = load_images(manifest, needs.trains_on, size.height, size.width, cache / "images")
    cameras = known_cameras(manifest, needs.trains_on, needs) if needs.cameras else None
    identities = None
    if needs.identities:
        identities = np.unique(rows["person_id"].to_numpy(), return_inverse=True)[1]
    store = ImageStore(pixels, world.device)
    data = TrainingData(store, needs, world, cameras, identities, initial.mean, initial.std)
    capacity = len(rows) if identities is None else int(identities.max()) + 1
    return data, capacity


def known_cameras(manifest: Manifest, split: str, needs: Needs) -> np.ndarray:
    """(N,) camera of each image of a split, numbered 0..n-1 over its domain (train, query and gallery share theirs).

    Raises ManifestError when images of the split have none.
    """
    domain = ["source"] if split == "source" else ["train", "query", "gallery"]
    known = np.unique(manifest.table["camera_id"][manifest.table["split"].isin(domain)])
    cameras = manifest.split(split)["camera_id"].to_numpy()
    unknown = int((cameras < 0).sum())
    if unknown:
        raise ManifestError(
            f"the method uses camera labels (for: {', '.join(sorted(needs.cameras))}), but {unknown} of {len(cameras)} "
            f"{split} images of '{manifest.name}' have none; run a variant without cameras (no_cam) or, where only the "
            "sampler uses them, --set sampler.uses_camera=false"
        )
    return np.searchsorted(known[known >= 0], cameras)


def build_method(run: Run, capacity: int, streams: Streams, initial: Initial | None) -> Method:
    """The method on its backbone, initialised from the ``init`` stream and then from ``initial``."""
    backbone = run.config.backbone
    generator = streams.torch("init")
    embedder = build(backbone.name, backbone.pooling, backbone.bn_groups, generator=generator)
    with seeded_init(generator):
        method = methods.load(run.method)(run.config, embedder, capacity)
    set_bn_groups(method, backbone.bn_groups)
    if initial is not None and initial.weights is not None:
        load_weights(method.embedder, WEIGHTS["suite"], initial.weights)
    method.weights_loaded()
    return method


def run_key(run: Run, manifest: Manifest, needs: Needs, initial: Initial, seed: int, world: World) -> dict[str, Any]:
    """Everything that decides a run's numbers: two runs with the same key may share a checkpoint."""
    rows = manifest.split(needs.trains_on)
    seen = ["path"]
    seen += ["camera_id"] if needs.cameras else []
    seen += ["person_id"] if needs.identities else []
    return {
        "method": run.method,
        "config": run.config.as_dict(),
        "seed": seed,
        "data": manifest.fingerprint,
        "rows": hashlib.sha256(rows[seen].to_csv(index=False).encode()).hexdigest(),
        "initial": initial.sha256,
        "code": code_hash(run.method),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": world.device.type,
    }


def cost(progress: Progress) -> dict[str, Any]:
    """Seconds per phase, images seen and peak memory of the whole run."""
    history = pd.DataFrame(progress.history)
    seconds = {
        name.removeprefix("seconds_"): round(float(history[name].sum()), 3)
        for name in history.columns
        if name.startswith("seconds_")
    }
    peaks = {name: int(history[name].max()) for name in history.columns if name.startswith("peak_")}
    return {
        "epochs": progress.epoch,
        "images_seen": progress.images_seen,
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()), 3),
        **peaks,
    }


def _write(out: Path, progress: Progress, record: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(progress.history).to_csv(out / "history.csv", index=False)
    labels = [tensor.cpu().numpy() for tensor in progress.labels]
    np.savez_compressed(out / "labels.npz", labels=np.stack(labels) if labels else np.zeros((0, 0), int))
    (out / "train.json").write_text(json.dumps(record, indent=2) + "\n")


def save_initial(weights: dict[str, torch.Tensor], initial_source: str, out: Path, like: Initial) -> Initial:
    """Write embedder weights as the start of other runs."""
    out.mkdir(parents=True, exist_ok=True)
    save_atomically(weights, out / "weights.pt")
    saved = Initial(out / "weights.pt", initial_source, weights_sha256(weights), like.mean, like.std)
    saved.write(out)
    return saved
