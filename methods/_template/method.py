"""NAME: Cluster Contrast with a term that pulls an image straight towards the entry of its cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data import Batch, Labels, TrainingData
from core.losses import cluster_nll
from core.memory import CentroidMemory
from core.method import Method


@dataclass(frozen=True)
class Settings:
    """What config.yaml may say under ``settings``; docs/methods/NAME.md, "Settings"."""

    temperature: float = 0.05
    momentum: float = 0.1
    pull_weight: float = 0.5


class ClassName(Method):
    """L = CE(f C^T / temperature, y) + pull_weight (1 - <f, c_y>) over the C cluster entries, which carry no gradient.

    All else is the family's: batches, pseudo-labels and the test are those of ``core.method.Method``.
    """

    Settings = Settings

    memory: CentroidMemory

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Entry c = normalised mean of cluster c's features; outliers are left out."""
        self.memory = CentroidMemory.of_clusters(
            data.features(), labels.ids, self.config.settings.momentum, "sequential"
        )

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms by name; each is a column ``loss_...`` of history.csv, and the engine sums them."""
        settings: Settings = self.config.settings
        feature, entries = output["feature"], self.memory.rows
        terms = {"cluster": cluster_nll(feature, entries, batch.targets, settings.temperature)}
        if settings.pull_weight:
            own = entries[batch.targets]
            terms["pull"] = settings.pull_weight * (1 - (feature * own).sum(dim=1)).mean()
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Entry y <- unit(m * entry + (1 - m) * f), one image after the other."""
        self.memory.update(output["feature"], batch.targets)
