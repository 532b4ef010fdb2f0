"""Complicated images (Sensors 2023): un-clustered images stay, as entries of the dictionary and as anchors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels, TrainingData
from core.errors import UserError
from core.losses import similarities
from core.method import Method
from core.sampling import pk_batches
from methods.complicated_images.batches import endless, interleaved, split_batch
from methods.complicated_images.dictionary import Dictionary, nearest_of_other_kind


@dataclass(frozen=True)
class Settings:
    """docs/methods/complicated_images.md, "Settings".

    outliers: un-clustered images are ``anchors`` and negatives, ``negatives`` only, or ``dropped``.
    outlier_share: of a batch, un-clustered anchors; None gives them their share of the training images.
    instances: images of a cluster in a batch with un-clustered anchors; None is the sampler's.
    outlier_weight: of the mean loss of the un-clustered anchors. reduction: ``kinds`` adds the means over both kinds of
        anchor, ``batch`` takes one mean over all.
    momentum, update: of the centroids; outlier_momentum: of the un-clustered images' entries.
    ignored: negatives of the other kind that an anchor is most similar to and that its softmax leaves out.
    max_outliers: un-clustered images with an entry, drawn anew each epoch where there are more; None keeps all.
    """

    outliers: Literal["anchors", "negatives", "dropped"] = "anchors"
    outlier_share: float | None = 0.25
    instances: int | None = 12
    temperature: float = 0.05
    outlier_weight: float = 1.0
    reduction: Literal["kinds", "batch"] = "kinds"
    momentum: float = 0.1
    update: Literal["mean", "sequential", "hardest"] = "mean"
    outlier_momentum: float = 0.2
    ignored: int = 0
    max_outliers: int | None = None

    def __post_init__(self) -> None:
        if self.outlier_share is not None and not 0 < self.outlier_share < 1:
            raise ValueError(f"settings.outlier_share is a share in (0, 1) or null, not {self.outlier_share}")
        if self.instances is not None and self.instances < 1:
            raise ValueError(f"settings.instances must be at least 1 or null, not {self.instances}")
        if self.outlier_weight < 0 or self.ignored < 0 or (self.max_outliers or 0) < 0:
            raise ValueError("settings.outlier_weight, settings.ignored and settings.max_outliers are not negative")


class ComplicatedImages(Method):
    """L = mean over clustered anchors + weight x mean over un-clustered ones of -log softmax over C + O entries."""

    Settings = Settings

    dictionary: Dictionary

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        instances, size = config.settings.instances or config.sampler.instances, config.sampler.batch
        if config.settings.outliers == "anchors" and instances >= size:
            raise UserError(
                f"{instances} images of a cluster leave no place for an un-clustered one in a batch of {size}; lower "
                "settings.instances (null: sampler.instances) or raise sampler.identities"
            )

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Rebuild the dictionary from the epoch's features; a cap on outliers draws which of them have an entry."""
        settings: Settings = self.config.settings
        features = data.features()
        kept = torch.as_tensor(np.flatnonzero(labels.ids < 0))
        if settings.outliers == "dropped":
            kept = kept[:0]
        elif settings.max_outliers is not None and len(kept) > settings.max_outliers:
            kept = kept[torch.randperm(len(kept), generator=generator)[: settings.max_outliers].sort().values]
        self.dictionary = Dictionary(
            features,
            labels.ids,
            kept.to(features.device),
            settings.momentum,
            settings.outlier_momentum,
            settings.update,
        )

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """P clusters x K images and, beside them, un-clustered images; the baseline's batches where none is an anchor.

        Of a pass over the clusters; each batch-norm chunk has the same share of un-clustered images.
        """
        entries = self.dictionary.row_of.cpu().numpy()
        alone = np.flatnonzero(entries >= self.dictionary.clusters)
        if self.config.settings.outliers != "anchors" or len(alone) == 0:
            return super().batches(labels, data, rng)
        return self._mixed(labels, alone, data, rng)

    def _mixed(
        self, labels: Labels, alone: np.ndarray, data: TrainingData, rng: np.random.Generator
    ) -> Iterator[np.ndarray]:
        settings, sampler = self.config.settings, self.config.sampler
        share = len(alone) / len(data) if settings.outlier_share is None else settings.outlier_share
        instances = settings.instances or sampler.instances
        identities, others = split_batch(sampler.batch, instances, share)
        cameras = data.cameras("sampler") if sampler.uses_camera else None
        outliers = endless(alone, others, rng)
        for clustered in pk_batches(labels.ids, identities, instances, rng, cameras, sampler.singleton):
            yield interleaved(clustered, next(outliers), self.config.backbone.bn_groups)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over all entries, by kind of anchor."""
        settings: Settings = self.config.settings
        rows = self.dictionary.row_of[batch.indices]
        logits = similarities(output["feature"], self.dictionary.rows) / settings.temperature
        if settings.ignored:
            left_out = nearest_of_other_kind(logits, rows, self.dictionary.clusters, settings.ignored)
            logits = logits.masked_fill(left_out, -torch.inf)
        alone = rows >= self.dictionary.clusters
        terms = {}
        for name, kind, weight in (("clustered", ~alone, 1.0), ("unclustered", alone, settings.outlier_weight)):
            count = int(kind.sum())
            if count:
                share = count / len(rows) if settings.reduction == "batch" else 1.0
                terms[name] = weight * share * F.cross_entropy(logits[kind], rows[kind])
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Entries of the batch move towards its features."""
        self.dictionary.update(output["feature"], self.dictionary.row_of[batch.indices])
