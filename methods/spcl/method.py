"""SpCL (Ge et al., NeurIPS 2020): self-paced contrastive learning with a hybrid memory, unsupervised setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from core.backbones.net import Embedder
from core.clustering import dbscan
from core.config import Config
from core.data import Batch, Labels, TrainingData
from core.errors import UserError
from core.memory import CentroidMemory
from core.method import Method
from core.sampling import pk_batches
from methods.spcl.memory import HybridMemory, hybrid_nll
from methods.spcl.reliability import compact, independence_threshold, independent, keep_reliable, with_singletons


@dataclass(frozen=True)
class Settings:
    """Constants and switches of SpCL; docs/methods/spcl.md has the equations.
    memory: ``instances``, one row per image; or ``centroids``, Cluster Contrast's, rebuilt from fresh features each
    epoch. recluster_from: ``memory``, the instances' rows outlive the epoch and are clustered instead of features; or
    ``extract``, they are rebuilt from fresh features each epoch, as centroids always are. outliers: un-clustered images
    are classes of one image and anchors; without, they are left out. independence, compactness: the two criteria an
    image must meet to stay in its cluster; they compare DBSCAN at eps with eps + gap and eps - gap, and
    ``independence_share`` places the threshold on R_indep among the first epoch's clusters. epsilon: added twice
    inside the released loss, 0 for a plain softmax.
    """

    memory: str = "instances"
    recluster_from: str = "memory"
    temperature: float = 0.05
    momentum: float = 0.2
    outliers: bool = True
    independence: bool = True
    compactness: bool = True
    gap: float = 0.02
    independence_share: float = 0.9
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.memory not in ("instances", "centroids"):
            raise ValueError(f"settings.memory is instances or centroids, not '{self.memory}'")
        if self.recluster_from not in ("memory", "extract"):
            raise ValueError(f"settings.recluster_from is memory or extract, not '{self.recluster_from}'")
        if not 0 <= self.independence_share <= 1:
            raise ValueError(f"settings.independence_share is a share in [0, 1], not {self.independence_share}")
        if self.gap < 0 or self.epsilon < 0:
            raise ValueError(f"settings.gap ({self.gap}) and settings.epsilon ({self.epsilon}) must not be negative")


class SpCL(Method):
    """Clusters and un-clustered images are classes of one softmax; clusters keep only what is reliable."""

    Settings = Settings

    instances: HybridMemory | None = None  # None before the first trained epoch, and with ``memory: centroids``
    centroids: CentroidMemory
    threshold: float | None = None  # on R_indep; fixed by the first epoch that has clusters

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        settings, eps = config.settings, config.clustering.eps
        if (settings.independence and eps + settings.gap >= 1) or (settings.compactness and eps - settings.gap < 0):
            raise UserError(
                f"clustering.eps {eps} with settings.gap {settings.gap}: eps - gap and eps + gap are Jaccard "
                "distances and must lie in [0, 1); choose a smaller gap"
            )

    @property
    def _outlives_epochs(self) -> bool:
        return self.config.settings.recluster_from == "memory"

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """DBSCAN over the memory (over fresh features where none outlives the epoch), reduced to its reliable part."""
        settings, clustering = self.config.settings, self.config.clustering
        features = self.instances.rows if self.instances is not None and self._outlives_epochs else data.features()
        farthest = clustering.eps + settings.gap if settings.independence else clustering.eps
        graph = self.distance_graph(features, data, farthest)
        with data.timer("cluster"):
            ids = self._reliable_clusters(graph)
        # The ids keep -1, so that un-clustered images are counted as what they are; the loss sees classes.
        return Labels(ids, {"class": torch.as_tensor(with_singletons(ids) if settings.outliers else ids)})

    def _reliable_clusters(self, graph: csr_array) -> np.ndarray:
        """(N,) clusters at eps, without the images that fail a criterion at eps + gap or eps - gap of one graph."""
        settings, clustering = self.config.settings, self.config.clustering
        ids = dbscan(graph, clustering.eps, clustering.min_samples)
        if not (settings.independence or settings.compactness):
            return ids
        keep = np.ones(len(ids), dtype=bool)
        if settings.independence:
            loose = dbscan(graph, clustering.eps + settings.gap, clustering.min_samples)
            if self.threshold is None:
                self.threshold = independence_threshold(ids, loose, settings.independence_share)
            if self.threshold is not None:
                keep &= independent(ids, loose, self.threshold)
        if settings.compactness:
            tight = dbscan(graph, clustering.eps - settings.gap, clustering.min_samples)
            keep &= compact(ids, tight)
        return keep_reliable(ids, keep)

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Fill the memory, once for all epochs unless ``recluster_from: extract``, and group its rows anew."""
        settings, classes = self.config.settings, labels.extra["class"]
        if settings.memory == "centroids":
            self.centroids = CentroidMemory.of_clusters(data.features(), classes, settings.momentum)
            return
        if self.instances is None or not self._outlives_epochs:
            self.instances = HybridMemory(data.features(), settings.momentum)
        self.instances.assign(classes)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """P classes x K images; an un-clustered image is a class that gives one entry, and the next ones fill up."""
        sampler = self.config.sampler
        cameras = data.cameras("sampler") if sampler.uses_camera else None
        classes = labels.extra["class"].numpy()
        return pk_batches(classes, sampler.identities, sampler.instances, rng, cameras, sampler.singleton)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Softmax over all classes; a class scores the mean similarity to its members."""
        settings: Settings = self.config.settings
        bank = self.centroids.rows if self.instances is None else self.instances.class_means()
        targets = batch.extra["class"]
        return {"contrast": hybrid_nll(output["feature"], bank, targets, settings.temperature, settings.epsilon)}

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """V_i <- unit(m V_i + (1 - m) f) by image, in batch order; centroids are updated by class."""
        if self.instances is None:
            self.centroids.update(output["feature"], batch.extra["class"])
        else:
            self.instances.update(output["feature"], batch.indices)

    def memory_state(self) -> dict[str, Any]:
        """The instance rows and the threshold; classes are formed anew at each epoch's start."""
        kept = self.instances if self._outlives_epochs else None
        rows = None if kept is None else kept.rows.clone()
        return {"rows": rows, "threshold": self.threshold}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``."""
        self.threshold = state["threshold"]
        if state["rows"] is not None:
            self.instances = HybridMemory(state["rows"], self.config.settings.momentum)
            self.instances.load_state_dict(state)  # bit for bit: normalising rows again could change their last digit
