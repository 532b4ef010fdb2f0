"""What a method is: its ideas, over an engine that owns loops, devices, precision, processes and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.clustering import dbscan
from core.config import Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.jaccard import jaccard_distance
from core.sampling import pk_batches


@dataclass(frozen=True)
class NoSettings:
    """Settings of a method that has none of its own."""


class Method(nn.Module):
    """Base of every method, with the defaults of the Cluster-Contrast family; a method overrides what differs.

    Parameters are those of the submodules (DDP wraps the method). Memories are plain attributes, outside autograd
    and outside DDP; one that outlives an epoch is saved through ``memory_state``.
    """

    Settings: ClassVar[type] = NoSettings

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        """``capacity``: number of training images (or of known identities), a bound on any class head's size."""
        super().__init__()
        self.config = config
        self.embedder = embedder
        self.capacity = capacity

    def weights_loaded(self) -> None:
        """Called once the initial weights are in the embedder: layers that start as copies of its own take them."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """What the method uses beyond images; the family's sampler prefers other cameras."""
        uses_camera = config.sampler.uses_camera
        return Needs(cameras=frozenset({"sampler"}) if uses_camera else frozenset())

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """The views of a step, this rank's part of each: by default ``needs.views`` draws of the run's augmentation."""
        return [pixels.augmented(view) for view in range(pixels.data.needs.views)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Training outputs by name, each with this rank's b rows first; gathered over ranks before ``loss``."""
        return {"feature": self.embedder(batch.images[0])["feature"]}

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """Eval-mode outputs of normalised (b, 3, H, W) images; ``feature`` (b, D) is what is tested."""
        return {"feature": self.embedder(images)["feature"]}

    def distance(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor | None:
        """(q, g) test distance between blocks of ``embed`` outputs (and ``camera``, where declared for the test).

        None, the default, is the Euclidean distance of ``feature``, which evaluation computes in its own way.
        """
        return None

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Pseudo-labels of this epoch, computed on rank 0: those of ``cluster`` over ``data.features()``."""
        return self.cluster(data.features(), data)

    def cluster(self, features: Tensor, data: TrainingData) -> Labels:
        """Jaccard distance and DBSCAN over features (N, D), with the configured k1, k2 and eps."""
        settings = self.config.clustering
        with data.timer("jaccard"):
            graph = jaccard_distance(features, settings.k1, settings.k2)
        with data.timer("cluster"):
            return Labels(dbscan(graph, settings.eps, settings.min_samples))

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Fill memories and set heads from the epoch's labels; runs on every rank with identical inputs."""

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """One pass of batches of training rows; the engine asks for another when it needs more steps."""
        sampler = self.config.sampler
        cameras = data.cameras("sampler") if sampler.uses_camera else None
        return pk_batches(labels.ids, sampler.identities, sampler.instances, rng, cameras, sampler.singleton)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Named, weighted loss terms of the full batch; the engine sums and logs them."""
        raise TypeError(f"{type(self).__name__} defines no loss, so it cannot be trained")

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Explicit state changes after the optimiser step (memories, EMA teachers); outputs are detached."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; one by default."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def memory_state(self) -> dict[str, Any]:
        """State of memories that outlive an epoch, for the checkpoint; tensors and plain values."""
        return {}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``."""
