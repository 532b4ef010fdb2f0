"""Supervised training: the upper bound on ``train`` labels, and the warm start on ``source`` labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels, Needs, TrainingData
from core.losses import batch_hard_triplet, smoothed_cross_entropy
from core.method import Method


@dataclass(frozen=True)
class Settings:
    """Bag-of-tricks losses: cross-entropy with label smoothing on the neck, batch-hard triplet before it."""

    identities: Literal["train", "source"] = "train"
    smoothing: float = 0.1
    margin: float = 0.3
    triplet_weight: float = 1.0


class Supervised(Method):
    """Cross-entropy over identities plus a batch-hard triplet loss; the labels are the true person ids."""

    Settings = Settings

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.classifier = nn.Linear(embedder.dim, capacity, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Identities of the configured split; cameras only in the sampler, and only when asked for."""
        split = config.settings.identities
        cameras = frozenset({"sampler"}) if config.sampler.uses_camera else frozenset()
        return Needs(cameras=cameras, identities=split, trains_on=split)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Pooled features before the neck, and logits after it."""
        _, pooled = self.embedder.map_and_pool(batch.images[0])
        return {"pooled": pooled, "logits": self.classifier(self.embedder.neck(pooled))}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """The true identities; nothing is clustered and no feature is extracted."""
        return Labels(np.asarray(data.identities))

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Smoothed cross-entropy and batch-hard triplet."""
        settings = self.config.settings
        terms = {"identity": smoothed_cross_entropy(output["logits"], batch.targets, settings.smoothing)}
        if settings.triplet_weight > 0:
            triplet = batch_hard_triplet(output["pooled"], batch.targets, settings.margin)
            terms["triplet"] = settings.triplet_weight * triplet
        return terms
