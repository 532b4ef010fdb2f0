"""HHCL (Hu, Zhu, He, IC-NIDC 2021): cluster contrast plus a memory of hard samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.data import Batch, Labels, TrainingData
from core.losses import cluster_nll
from core.memory import CentroidMemory, SlotMemory
from core.method import Method


@dataclass(frozen=True)
class Settings:
    """``hard_memory`` chooses the variant: docs/methods/hhcl.md, "Hard and mean rows" and "Slots of instances".

    ``momentum`` (released): w_hard L_hard + w_mean L_mean; its code's parentheses make 0.5 and 0.25 of one weight.
    ``slots`` (paper): w_centroid L_c + (1 - w_centroid) L_i, with ``slots`` instances kept per cluster: as
    many as the sampler draws of one (``None``), so that a draw refreshes all of them, or a number.
    """

    hard_memory: str = "momentum"
    temperature: float = 0.05
    momentum: float = 0.1
    w_hard: float = 0.5
    w_mean: float = 0.25
    w_centroid: float = 0.5
    slots: int | None = None

    def __post_init__(self) -> None:
        if self.hard_memory not in ("momentum", "slots"):
            raise ValueError(f"settings.hard_memory is momentum or slots, not '{self.hard_memory}'")


class HHCL(Method):
    """Two memories per cluster: one follows the batch mean, the other the hardest samples."""

    Settings = Settings

    mean: CentroidMemory
    hard: CentroidMemory | SlotMemory

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Rows of both memories start as the normalised centroids, slots as sampled members."""
        settings: Settings = self.config.settings
        features, ids = data.features(), labels.ids
        self.mean = CentroidMemory.of_clusters(features, ids, settings.momentum, "mean")
        if settings.hard_memory == "momentum":
            self.hard = CentroidMemory.of_clusters(features, ids, settings.momentum, "hardest")
        else:
            slots = settings.slots or self.config.sampler.instances
            self.hard = SlotMemory.sample(features, ids, slots, generator)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The mean memory's cross-entropy and the hard memory's, weighted as the variant has it."""
        settings: Settings = self.config.settings
        features, targets, temperature = output["feature"], batch.targets, settings.temperature
        mean = cluster_nll(features, self.mean.rows, targets, temperature)
        if isinstance(self.hard, SlotMemory):
            hard = cross_entropy(self.hard.logits(features, targets, temperature), targets)
            w_mean, w_hard = settings.w_centroid, 1 - settings.w_centroid
        else:
            hard = cluster_nll(features, self.hard.rows, targets, temperature)
            w_mean, w_hard = settings.w_mean, settings.w_hard
        return {"mean": w_mean * mean, "hard": w_hard * hard}

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """mean <- batch mean; hard <- least similar sample, or slots overwritten by the batch."""
        self.mean.update(output["feature"], batch.targets)
        self.hard.update(output["feature"], batch.targets)
