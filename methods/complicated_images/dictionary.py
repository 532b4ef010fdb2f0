"""The dictionary of clusters and un-clustered images: docs/methods/complicated_images.md, "Dictionary"."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.memory import CentroidMemory, InstanceMemory


class Dictionary:
    """Entries (C + O, D) of unit length: the centroids of C clusters, then the features of O un-clustered images.

    row_of: (N,) the entry of each image, that of its cluster or its own; -1 where it has none. centroids, alone: the
    two kinds of entry, each with its momentum and its update.
    """

    def __init__(
        self,
        features: Tensor,
        labels: np.ndarray,
        kept: Tensor,
        momentum: float,
        momentum_alone: float,
        update: str = "mean",
    ) -> None:
        """From features (N, D), labels (N,) with -1 for un-clustered images, and those of them that are ``kept`` (O,).

        ``momentum`` and ``update`` (a key of core.memory.UPDATES) are the centroids', ``momentum_alone`` the others'.
        """
        self.centroids = CentroidMemory.of_clusters(features, labels, momentum, update)
        self.alone = InstanceMemory(features[kept], momentum_alone)
        self.clusters = len(self.centroids)
        self.row_of = torch.as_tensor(labels, dtype=torch.int64).to(features.device, copy=True)
        self.row_of[kept] = self.clusters + torch.arange(len(kept), device=features.device)

    @property
    def rows(self) -> Tensor:
        """(C + O, D) all entries as they are now."""
        return torch.cat([self.centroids.rows, self.alone.rows])

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Move the entries (B,) that features (B, D) belong to: centroids by their rule, the others in batch order."""
        alone = rows >= self.clusters
        for memory, kind, first in ((self.centroids, ~alone, 0), (self.alone, alone, self.clusters)):
            if kind.any():
                memory.update(features[kind], rows[kind] - first)


@torch.no_grad()
def nearest_of_other_kind(logits: Tensor, rows: Tensor, clusters: int, count: int) -> Tensor:
    """(B, C + O) the ``count`` entries of the other kind most similar to each anchor; all where there are fewer.

    logits (B, C + O), rows (B,) the anchors' own entries. To an anchor of a cluster the un-clustered images are the
    other kind, to an un-clustered one the ``clusters`` centroids; its own entry is never of the other kind.
    """
    entries = torch.arange(logits.shape[1], device=logits.device)
    other_kind = (entries >= clusters)[None, :] != (rows >= clusters)[:, None]
    nearest = logits.masked_fill(~other_kind, -torch.inf).topk(min(count, len(entries)), dim=1).indices
    return torch.zeros_like(other_kind).scatter(1, nearest, True) & other_kind
