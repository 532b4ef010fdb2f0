"""HCL and MGCE-HCL (Sun, Li, Li, 2022): positives are instances, negatives are clusters, weighted by granularities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.backbones.net import Embedder
from core.clustering import dbscan
from core.config import Config
from core.data import Batch, Labels, TrainingData
from core.errors import UserError
from core.losses import cluster_nll, similarities
from core.memory import CentroidMemory, InstanceMemory, cluster_centroids
from core.method import Method
from methods.hcl.hybrid import co_association, memory_entries, pair_losses, positive_weights, weighted_mean

CHOICES = {
    "hybrid": ("pair", "sum", "cluster"),
    "outliers": ("anchor", "negative", "drop"),
    "cluster_memory": ("dynamic", "momentum"),
    "recluster_from": ("memory", "extract"),
}


@dataclass(frozen=True)
class Settings:
    """Constants and switches of HCL, all of them assumptions: docs/methods/hcl.md says on what grounds.

    eps_offsets: radii of the granularities, relative to clustering.eps, whose labels (offset 0) are the base;
        [0.0] alone is HCL, more than one MGCE-HCL.
    normalise_weights: divide by sum_p w_ip (else by |P(i)|).
    hybrid: ``pair`` instance positives against cluster negatives; ``sum`` L_inst + L_clus; ``cluster`` L_clus alone.
    outliers: ``anchor`` singleton entries that batches draw, as in SpCL; ``negative`` singletons that no batch draws,
        so that their rows stay as first extracted under recluster_from ``memory``; ``drop``, no entries at all.
    cluster_memory: ``dynamic`` c_k = unit(mean of V over k) at every step; ``momentum`` rows of their own, updated
        with cluster_momentum as in Cluster Contrast.
    recluster_from: ``memory`` V outlives the epoch and is clustered; ``extract`` V is rebuilt from new features.
    """

    temperature: float = 0.05
    momentum: float = 0.2
    eps_offsets: tuple[float, ...] = (-0.10, -0.05, 0.0)
    normalise_weights: bool = True
    hybrid: str = "pair"
    outliers: str = "anchor"
    cluster_memory: str = "dynamic"
    cluster_momentum: float = 0.1
    recluster_from: str = "memory"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"settings.{name} is one of {', '.join(allowed)}, not '{getattr(self, name)}'")
        if 0.0 not in self.eps_offsets:
            raise ValueError(
                f"settings.eps_offsets {list(self.eps_offsets)} must hold 0.0, the base clustering: without it a "
                "positive pair may be in no granularity and have no weight"
            )


class HCL(Method):
    """L = 1/B sum_i sum_p w_ip l_ip / sum_p w_ip, with l_ip of cluster mates p against the other clusters."""

    Settings = Settings

    centroids: CentroidMemory
    entries: Tensor
    granularities: Tensor

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.instances: InstanceMemory | None = None
        radii = granularity_radii(config.clustering.eps, config.settings.eps_offsets)
        if min(radii) < 0 or max(radii) >= 1:  # the sparse graph holds the pairs whose distance is below 1
            raise UserError(
                f"clustering.eps {config.clustering.eps} with settings.eps_offsets "
                f"{list(config.settings.eps_offsets)} gives DBSCAN radii {radii}, which must lie in [0, 1)"
            )

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Base labels at clustering.eps, and the labels at every granularity, all from one Jaccard graph."""
        clustering, offsets = self.config.clustering, self.config.settings.eps_offsets
        radii = granularity_radii(clustering.eps, offsets)
        graph = self.distance_graph(self._clustered_features(data), data, max(radii))
        with data.timer("cluster"):
            labelings = [dbscan(graph, eps, clustering.min_samples) for eps in radii]
        granularities = torch.from_numpy(np.stack(labelings, axis=1))
        return Labels(labelings[offsets.index(0.0)], {"granularities": granularities})

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """V from extracted features, in the first epoch or in all; entries and granularities from the labels."""
        settings: Settings = self.config.settings
        features = self._clustered_features(data)
        if self.instances is None or settings.recluster_from == "extract":
            self.instances = InstanceMemory(features, settings.momentum)
        ids = torch.as_tensor(labels.ids, device=features.device)
        self.entries = memory_entries(ids, keep_outliers=settings.outliers != "drop")
        self.granularities = labels.extra["granularities"].to(features.device)
        if settings.cluster_memory == "momentum":
            self.centroids = CentroidMemory.of_clusters(features, self.entries, settings.cluster_momentum)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Outliers are drawn only as ``anchor``s, each as a class of its own."""
        drawn = Labels(self.entries.cpu().numpy()) if self.config.settings.outliers == "anchor" else labels
        return super().batches(drawn, data, rng)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The hybrid of the instance-level and the cluster-level contrastive loss."""
        settings: Settings = self.config.settings
        features, own = output["feature"], self.entries[batch.indices]
        prototypes = self._prototypes().detach()
        if settings.hybrid == "cluster":
            return {"cluster": cluster_nll(features, prototypes, own, settings.temperature)}
        assert self.instances is not None, "start_epoch fills the instance memory"
        instances = similarities(features, self.instances.rows.detach()) / settings.temperature
        same_entry = own[:, None] == self.entries
        if settings.hybrid == "sum":
            no_negative = same_entry | (self.entries < 0)
            instance = self._over_positives(pair_losses(instances, instances, no_negative), same_entry, batch)
            return {
                "instance": instance,
                "cluster": cluster_nll(features, prototypes, own, settings.temperature),
            }
        clusters = similarities(features, prototypes) / settings.temperature
        own_cluster = own[:, None] == torch.arange(len(prototypes), device=own.device)
        losses = pair_losses(instances, clusters, own_cluster)
        return {"hybrid": self._over_positives(losses, same_entry, batch)}

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """V_i <- unit(m V_i + (1 - m) f_i), repeated images in batch order."""
        assert self.instances is not None, "start_epoch fills the instance memory"
        self.instances.update(output["feature"], batch.indices)
        if self.config.settings.cluster_memory == "momentum":
            self.centroids.update(output["feature"], self.entries[batch.indices])

    def memory_state(self) -> dict[str, Any]:
        """V, where it outlives the epoch."""
        if self.instances is None or self.config.settings.recluster_from == "extract":
            return {}
        return self.instances.state_dict()

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Restore V as it was; a state from before the first training epoch holds none."""
        if state:
            self.instances = InstanceMemory(state["rows"], self.config.settings.momentum)
            self.instances.load_state_dict(state)  # bit by bit: the constructor normalises

    def _clustered_features(self, data: TrainingData) -> Tensor:
        """(N, D) features that are clustered and that fill the memories: V itself, once it outlives an epoch."""
        if self.instances is None or self.config.settings.recluster_from == "extract":
            return data.features()
        return self.instances.rows

    def _prototypes(self) -> Tensor:
        """(E, D) c_k: mean rows of V by entry, or the momentum rows. A singleton's is its row of V."""
        if self.config.settings.cluster_memory == "momentum":
            return self.centroids.rows
        assert self.instances is not None, "start_epoch fills the instance memory"
        return cluster_centroids(self.instances.rows, self.entries)

    def _over_positives(self, losses: Tensor, same_entry: Tensor, batch: Batch) -> Tensor:
        """Mean of losses (B, N) over the positives of each anchor by their priority, then over the anchors."""
        priority = co_association(self.granularities[batch.indices], self.granularities).to(losses.dtype)
        itself = batch.indices[:, None] == torch.arange(len(self.entries), device=losses.device)
        weights = positive_weights(priority, same_entry, itself)
        return weighted_mean(losses, weights, self.config.settings.normalise_weights)


def granularity_radii(eps: float, offsets: tuple[float, ...]) -> list[float]:
    """DBSCAN radii: the base ``eps`` moved by every offset, e.g. 0.6 -> [0.50, 0.55, 0.60]."""
    return [round(eps + offset, 6) if offset else eps for offset in offsets]
