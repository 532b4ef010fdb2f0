"""Cluster Contrast (Dai et al., ACCV 2022): a cluster is one memory entry, updated by the batch's features."""

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
    """``update``: sequential (released default), hardest or mean; docs/methods/cluster_contrast.md, "Memory"."""

    temperature: float = 0.05
    momentum: float = 0.1
    update: str = "sequential"


class ClusterContrast(Method):
    """L = CE(f C^T / temperature, y) over the C cluster entries, which carry no gradient."""

    Settings = Settings

    memory: CentroidMemory

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Rebuild the memory: entry c = normalised mean of cluster c's features; outliers are left out."""
        settings = self.config.settings
        self.memory = CentroidMemory.of_clusters(data.features(), labels.ids, settings.momentum, settings.update)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy against the memory."""
        temperature = self.config.settings.temperature
        bank = self.memory.rows
        return {"cluster": cluster_nll(output["feature"], bank, batch.targets, temperature)}

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Entry y <- unit(m * entry + (1 - m) * f), by the configured rule."""
        self.memory.update(output["feature"], batch.targets)
