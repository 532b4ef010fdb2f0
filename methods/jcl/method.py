"""JCL (Zhang, Li, Ye, Remote Sensing 2024): centroids and instances contrasted jointly, behind WaveBlock attention.

The paper's body could not be read and there is no code: the method is reconstructed from its abstract and from
Attentive WaveBlock. Equations and sources are in docs/methods/jcl.md, every decision in methods/jcl/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels, Needs, TrainingData
from core.distributed import ProcessGroup
from core.losses import cluster_nll
from core.memory import CentroidMemory
from core.method import Method
from methods.jcl.attention import Wam, WaveBlock, wave_attention
from methods.jcl.camera_filter import drop_single_camera_clusters
from methods.jcl.instances import ClusteredInstances


@dataclass(frozen=True)
class Settings:
    """Constants and switches of JCL. ``mu``: weight of the instance loss; at 0 there is no instance memory.

    ``camera_filter`` drops clusters of one camera, unless fewer than max(P, ``filter_guard`` C) would remain.
    """

    temperature: float = 0.05
    mu: float = 0.5
    momentum: float = 0.1
    instance_momentum: float = 0.2
    camera_filter: bool = True
    filter_guard: float = 0.2
    wam: Wam = field(default_factory=Wam)

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"settings.mu weighs the instance loss and must not be negative, but is {self.mu}")
        if not 0 <= self.filter_guard <= 1:
            raise ValueError(f"settings.filter_guard is a share of the clusters in [0, 1], not {self.filter_guard}")


class JCL(Method):
    """L = L_C + mu L_I over a memory of centroids and one of instances; both are rebuilt each epoch."""

    Settings = Settings

    centroids: CentroidMemory
    instances: ClusteredInstances

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.wam = wave_attention(embedder, config.settings.wam)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The sampler's cameras, and those of the clustering when the single-camera filter is on."""
        cameras = super().needs(config).cameras
        return Needs(cameras=cameras | {"clustering"} if config.settings.camera_filter else cameras)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``feature`` (b, D), with WaveBlock and attention between the backbone's stages."""
        return self.embed(batch.images[0])

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """``feature`` (b, D); in eval mode the attention is active and WaveBlock the identity."""
        return {"feature": self.embedder(images, after=dict(self.wam.items()))["feature"]}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """DBSCAN over Jaccard distances, then single-camera elimination with its guard; noted."""
        labels = super().label(epoch, data)
        settings: Settings = self.config.settings
        if not settings.camera_filter:
            return labels
        filtered = Labels(drop_single_camera_clusters(labels.ids, data.cameras("clustering")))
        fewest = max(self.config.sampler.identities, settings.filter_guard * labels.clusters)
        skipped = filtered.clusters < fewest
        kept = labels if skipped else filtered
        kept.notes = {
            "filter_clusters_before": labels.clusters,
            "filter_clusters_after": filtered.clusters,
            "filter_images_dropped": filtered.outliers - labels.outliers,
            "filter_skipped": float(skipped),
        }
        return kept

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Centroids are normalised means, instances the features of all clustered images."""
        settings: Settings = self.config.settings
        features = data.features()
        self.centroids = CentroidMemory.of_clusters(features, labels.ids, settings.momentum, "mean")
        if settings.mu:
            self.instances = ClusteredInstances(features, labels.ids, settings.instance_momentum)
        self._draw_bands(generator, data.group)

    def _draw_bands(self, generator: torch.Generator, group: ProcessGroup) -> None:
        """Let WaveBlock draw this epoch's bands: one per batch-norm group, each process using those of its groups."""
        groups = self.config.backbone.bn_groups
        share = groups // group.size
        for module in self.modules():
            if isinstance(module, WaveBlock):
                module.draw_from(generator, groups, slice(group.rank * share, (group.rank + 1) * share))

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """L_C = CE(f c^T / t, y) and mu L_I = mu CE(s / t, y), s the hardest entry of each cluster."""
        settings: Settings = self.config.settings
        features, targets, temperature = output["feature"], batch.targets, settings.temperature
        terms = {"cluster": cluster_nll(features, self.centroids.rows, targets, temperature)}
        if settings.mu:
            logits = self.instances.logits(features, targets, temperature)
            terms["instance"] = settings.mu * cross_entropy(logits, targets)
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """c_y <- unit(m_c c_y + (1 - m_c) batch mean of y), v_i <- unit(m_i v_i + (1 - m_i) f_i)."""
        self.centroids.update(output["feature"], batch.targets)
        if self.config.settings.mu:
            self.instances.update(output["feature"], batch.indices)
