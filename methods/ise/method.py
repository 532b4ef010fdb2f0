"""ISE (Zhang et al., CVPR 2022): support samples between a sample and its neighbouring cluster stand in for missing
images, and a label-preserving loss keeps them with their sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.data import Batch, Labels, TrainingData
from core.losses import cluster_nll
from core.memory import CentroidMemory
from core.method import Method
from methods.ise.supports import degree, label_preserving, support_samples


@dataclass(frozen=True)
class Settings:
    """docs/methods/ise.md, "Support samples" and "Label-preserving loss"; ``update`` as in Cluster Contrast.

    base_lambda: scales the degree, whose factor in a support is ``factor`` lambda (0.5: the released code halves it
    twice). direction: ``away`` from the own row as well (c - c_y, released) or only ``towards`` the neighbour (the
    paper's picture). nearest: supports of an image, one for each of its nearest rows. supports_in_memory: whether they
    enter the cluster loss and the update. groups: what the label-preserving loss takes the largest other support of,
    ``runs`` of positions in the batch (released) or ``classes``; lp_weight 0 leaves that loss out.
    """

    temperature: float = 0.05
    momentum: float = 0.2
    update: str = "hardest"
    base_lambda: float = 1.0
    factor: float = 0.5
    direction: Literal["away", "towards"] = "away"
    nearest: int = 1
    supports_in_memory: bool = True
    lp_weight: float = 0.1
    lp_temperature: float = 0.6
    groups: Literal["runs", "classes"] = "runs"

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise ValueError(f"settings.nearest is a number of neighbouring clusters, at least 1, not {self.nearest}")


class ISE(Method):
    """L = CE([f; g] C^T / temperature, [y; y]) + lp_weight L_LP(f, g), g the support samples of f."""

    Settings = Settings

    memory: CentroidMemory

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Rebuild the memory: row c = normalised mean of cluster c's features; outliers are left out."""
        settings: Settings = self.config.settings
        self.memory = CentroidMemory.of_clusters(data.features(), labels.ids, settings.momentum, settings.update)

    def supports(self, features: Tensor, batch: Batch) -> Tensor:
        """(B * nearest, D) support samples of the batch at this place in the run, from the memory as it is."""
        settings: Settings = self.config.settings
        step = settings.factor * degree(batch.epoch / self.config.schedule.epochs, settings.base_lambda)
        rows, leaves_own = self.memory.rows, settings.direction == "away"
        return support_samples(features, rows, batch.targets, step, settings.nearest, leaves_own)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of images and supports against the memory, and the label-preserving loss."""
        settings: Settings = self.config.settings
        features = output["feature"]
        seen, targets = self._seen(features, batch)
        terms = {"cluster": cluster_nll(seen, self.memory.rows, targets, settings.temperature)}
        if settings.lp_weight:
            run = self.config.sampler.instances * settings.nearest if settings.groups == "runs" else None
            supports = self.supports(features, batch)
            preserving = label_preserving(features, supports, batch.targets, settings.lp_temperature, run)
            terms["label_preserving"] = settings.lp_weight * preserving
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Row y <- unit(m row + (1 - m) h), h of images and supports by the configured rule, all images first."""
        self.memory.update(*self._seen(output["feature"], batch))

    def _seen(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the memory sees with its labels: [f; g], or f alone without ``supports_in_memory``."""
        if not self.config.settings.supports_in_memory:
            return features, batch.targets
        supports = self.supports(features, batch)
        labels = batch.targets.repeat_interleave(len(supports) // len(features))
        return torch.cat([features, supports]), torch.cat([batch.targets, labels])
