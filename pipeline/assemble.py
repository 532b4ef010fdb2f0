"""How a run is put together: its data as the method may see it, its network, and the key of what it computes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import methods
from core.backbones.batchnorm import set_bn_groups
from core.backbones.net import build, seeded_init
from core.backbones.weights import WEIGHTS, load_weights
from core.data import Needs, TrainingData
from core.distributed import ProcessGroup
from core.images import ImageStore, load_images
from core.manifest import Manifest, ManifestError
from core.method import Method
from core.rng import Streams
from pipeline.initial import Initial
from pipeline.settings import Run, code_hash


class Sizes(NamedTuple):
    """What bounds a method's heads: ``capacity`` of the training split, and the people of the source beside it."""

    capacity: int
    source_identities: int | None = None

    @property
    def arguments(self) -> tuple[int, ...]:
        """What a method's constructor is given after its embedder."""
        return (self.capacity,) if self.source_identities is None else (self.capacity, self.source_identities)


def training_data(
    run: Run, manifest: Manifest, needs: Needs, initial: Initial, group: ProcessGroup, cache: Path
) -> tuple[TrainingData, Sizes]:
    """The training split as the method may see it, with the source beside it where it needs one, and their sizes."""
    source = split_data(run, manifest, needs.of_source, initial, group, cache) if needs.source else None
    data = split_data(run, manifest, needs, initial, group, cache, source)
    capacity = int(data.identities.max()) + 1 if needs.identities else len(data)
    return data, Sizes(capacity, int(source.identities.max()) + 1 if source else None)


def split_data(
    run: Run,
    manifest: Manifest,
    needs: Needs,
    initial: Initial,
    group: ProcessGroup,
    cache: Path,
    source: TrainingData | None = None,
) -> TrainingData:
    """The images of ``needs.trains_on``, and the labels that are needed of them."""
    size = run.config.input
    cameras = known_cameras(manifest, needs.trains_on, needs) if needs.cameras else None
    identities = known_identities(manifest, needs.identities) if needs.identities else None
    pixels = load_images(manifest, needs.trains_on, size.height, size.width, cache / "images")
    store = ImageStore(pixels, group.device)
    return TrainingData(store, needs, group, cameras, identities, initial.mean, initial.std, source)


def known_identities(manifest: Manifest, split: str) -> np.ndarray:
    """(N,) person of each image of a split, numbered 0..n-1.

    Raises ManifestError when images have none, or when all are of one person.
    """
    people = manifest.split(split)["person_id"].to_numpy()
    unknown = int((people <= 0).sum())
    if unknown:
        raise ManifestError(
            f"the method is trained on person ids, but {unknown} of {len(people)} {split} images of '{manifest.name}' "
            "have none; prepare the dataset with its people, or choose a method that needs no ids"
        )
    found, numbers = np.unique(people, return_inverse=True)
    if len(found) < 2:
        raise ManifestError(
            f"the method is trained on person ids, but all {len(people)} {split} images of '{manifest.name}' are of "
            "one person; it takes two"
        )
    return numbers


def known_cameras(manifest: Manifest, split: str, needs: Needs) -> np.ndarray:
    """(N,) camera of each image of a split, numbered 0..n-1 over its domain (train, query and gallery share theirs).

    Of a split of both domains, the source's are numbered after the target's.

    Raises ManifestError when images of the split have none.
    """
    rows = manifest.split(split)
    cameras = rows["camera_id"].to_numpy()
    unknown = int((cameras < 0).sum())
    if unknown:
        raise ManifestError(
            f"the method uses camera labels (for: {', '.join(sorted(needs.cameras))}), but {unknown} of {len(cameras)} "
            f"{split} images of '{manifest.name}' have none; run a variant without cameras (no_cam) or, where only the "
            "sampler uses them, --set sampler.uses_camera=false"
        )
    numbers = np.zeros(len(cameras), int)
    first = 0
    for domain in (("train", "query", "gallery"), ("source",)):
        known = np.unique(manifest.table["camera_id"][manifest.table["split"].isin(domain)])
        known = known[known >= 0]
        mine = rows["split"].isin(domain).to_numpy()
        numbers[mine] = first + np.searchsorted(known, cameras[mine])
        first += len(known) if mine.any() else 0
    return numbers


def build_method(run: Run, sizes: Sizes, streams: Streams, initial: Initial | None) -> Method:
    """The method on its backbone, initialised from the ``init`` stream and then from ``initial``."""
    backbone = run.config.backbone
    generator = streams.torch("init")
    embedder = build(backbone.name, backbone.pooling, backbone.bn_groups, generator=generator, **backbone.options)
    with seeded_init(generator):
        method = methods.load(run.trains)(run.config, embedder, *sizes.arguments)
    set_bn_groups(method, backbone.bn_groups)
    if initial is not None and initial.weights is not None:
        load_weights(method.embedder, WEIGHTS["suite"], initial.weights)
    method.weights_loaded()
    return method


def stream_seed(manifest: Manifest, seed: int) -> int:
    """The seed of a run's random streams: its own, plus the number of the world that it runs on.

    Runs on world R of drawn people with seed 0 therefore draw from seed R: a world has people, warm start and training
    of its own.
    """
    return seed + int(manifest.info.get("world") or 0)


class Computing(NamedTuple):
    """What a run is computed on, as far as its numbers depend on it: device type, CPU threads and processes."""

    device: str
    threads: int
    processes: int

    @classmethod
    def of(cls, group: ProcessGroup) -> Computing:
        """What this process computes on."""
        return cls(group.device.type, torch.get_num_threads(), group.size)


def run_key(
    run: Run, manifest: Manifest, needs: Needs, initial: str | None, seed: int, computing: Computing
) -> dict[str, Any]:
    """Everything that decides a run's numbers; ``initial`` is the hash of its initial weights.

    Its digest stands in train.json, names the checkpoint, and tells a sweep whether a result is current.
    """
    return {
        "method": run.trains,
        "config": run.config.as_dict(),
        "seed": seed,
        "data": manifest.fingerprint,
        "rows": rows_hash(manifest, needs),
        "source": rows_hash(manifest, needs.of_source) if needs.source else None,
        "initial": initial,
        "code": code_hash(run.trains),
        **computing._asdict(),
    }


def rows_hash(manifest: Manifest, needs: Needs) -> str:
    """Hash of the images of ``needs.trains_on`` in their order, and of the labels that are needed of them."""
    rows = manifest.split(needs.trains_on)
    seen = ["path"]
    seen += ["camera_id"] if needs.cameras else []
    seen += ["person_id"] if needs.identities else []
    return hashlib.sha256(rows[seen].to_csv(index=False).encode()).hexdigest()
