"""What a method is: its ideas, over an engine that owns loops, devices, precision, processes and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from core.approximate import neighbor_lists
from core.augment import normalise
from core.backbones.net import Embedder
from core.clustering import dbscan
from core.config import Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData, extract
from core.distributed import ProcessGroup
from core.images import ImageStore
from core.jaccard import jaccard_distance
from core.precision import autocast, weights_dtype
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
    exports: ClassVar[str] = "embedder."
    """How the names of those weights begin that pre-training by the method hands on as an embedder's."""

    def __init__(self, config: Config, embedder: Embedder, capacity: int, source_identities: int = 0) -> None:
        """``capacity``: number of training images (or of known identities), a bound on any class head's size.

        ``source_identities``: people of the source split, given where ``needs.source`` is set, and to no other method.
        """
        super().__init__()
        self.config = config
        self.embedder = embedder
        self.capacity = capacity
        self.source_identities = source_identities

    def weights_loaded(self) -> None:
        """Called once the initial weights are in the embedder: layers that start as copies of its own take them."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """What the method uses beyond images; the family's sampler prefers other cameras."""
        uses_camera = config.sampler.uses_camera
        return Needs(cameras=frozenset({"sampler"}) if uses_camera else frozenset())

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """The views of a step, this rank's part of each: by default ``needs.views`` draws of the run's augmentation.

        Asked for the source batch too, where there is one (``pixels.domain``): by default ``needs.source_views`` draws.
        """
        return [pixels.augmented(view) for view in range(pixels.data.needs.views)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Training outputs by name, each with this rank's b rows first; gathered over ranks before ``loss``.

        Outputs of ``batch.source``, and no others, have names that begin with ``source_``. Views and domains go through
        the network one by one: rows that share a call share batch-norm chunks, which would then depend on the number of
        processes. The source goes first, so that running statistics end on the target.
        """
        return {"feature": self.embedder(batch.images[0])["feature"]}

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """Eval-mode outputs of normalised (b, 3, H, W) images; ``feature`` (b, D) is what is tested."""
        return {"feature": self.embedder(images)["feature"]}

    def distance(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor | None:
        """(q, g) test distance between blocks of ``embed`` outputs (and ``camera``, where declared for the test).

        None, the default, is the Euclidean distance of ``feature``, which evaluation computes in its own way.
        """
        return None

    def extract(self, data: TrainingData) -> dict[str, Tensor]:
        """What ``data.embedded`` finds by name until the next epoch: by default ``embed`` of every training image.

        Runs on all ranks, in eval mode, when something is first asked for. ``feature`` is what ``data.features()``
        gives; others may come from changed images or the source (``data.extract``, ``data.source.extract``).
        """
        cameras = data.cameras("test") if "test" in data.needs.cameras else None
        with data.timer("extract"):
            return embed_all(self, data.images, self.config, (data.mean, data.std), data.group, cameras, data.title)

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Pseudo-labels of this epoch, computed on rank 0: those of ``cluster`` over ``data.features()``."""
        return self.cluster(data.features(), data)

    def cluster(self, features: Tensor, data: TrainingData) -> Labels:
        """Jaccard distance and DBSCAN over features (N, D), with the configured k1, k2 and eps."""
        settings = self.config.clustering
        graph = self.distance_graph(features, data, settings.eps)
        with data.timer("cluster"):
            return Labels(dbscan(graph, settings.eps, settings.min_samples))

    def distance_graph(self, features: Tensor, data: TrainingData, limit: float) -> csr_array:
        """Jaccard distances (N, N) of features (N, D) with the configured k1, k2 and search, whose recall is noted.

        Stored are those up to ``limit``, the largest ``eps`` that the method reads of them.
        """
        settings = self.config.clustering
        with data.timer("jaccard"):
            neighbors, recall = neighbor_lists(features, settings.k1, settings.search)
            if recall is not None:
                data.notes["search_recall"] = recall
            return jaccard_distance(features, settings.k1, settings.k2, neighbors=neighbors, limit=limit)

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Fill memories and set heads from the epoch's labels; runs on every rank with identical inputs."""

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """One pass of batches of training rows; the engine asks for another when it needs more steps."""
        sampler = self.config.sampler
        cameras = data.cameras("sampler") if sampler.uses_camera else None
        return pk_batches(labels.ids, sampler.identities, sampler.instances, rng, cameras, sampler.singleton)

    def source_batches(self, source: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """One pass of batches of rows of the source split; the engine asks for another when it needs more."""
        sampler = self.config.sampler
        return pk_batches(source.identities, sampler.identities, sampler.instances, rng, None, sampler.singleton)

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


def embed_all(
    method: Method,
    images: ImageStore,
    config: Config,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    group: ProcessGroup,
    cameras: np.ndarray | None = None,
    describe: str | None = None,
) -> dict[str, Tensor]:
    """``Method.embed`` of every image, in order, as training labels by and as the test ranks by.

    statistics: mean and deviation per channel. The method must be in eval mode; no random stream and no batch-norm
    state is touched. ``describe`` titles a progress bar.
    """
    dtype = weights_dtype(config.precision)

    def embed(pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
        shown = normalise(pixels, *statistics).to(dtype, memory_format=torch.channels_last)
        seen = None if cameras is None else torch.as_tensor(cameras[rows.numpy()]).to(pixels.device)
        with autocast(config.precision, group.device):
            return method.embed(shown, seen)

    return extract(embed, images, config.extraction_batch, group, describe)
