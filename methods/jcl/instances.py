"""JCL's instance memory: one entry per clustered image, read as the hardest entry of each cluster."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.losses import similarities
from core.memory import InstanceMemory, group


class ClusteredInstances:
    """Entries (M, D) of the M clustered images, laid out cluster by cluster; rebuilt each epoch.

    clusters (M,): each entry's cluster, ascending. sizes (C,): entries of each cluster. row_of_image (N,): each
    image's entry, -1 for outliers.
    """

    def __init__(self, features: Tensor, labels: np.ndarray, momentum: float) -> None:
        """Entries are features (N, D) of the images with a label >= 0; labels (N,)."""
        ids = torch.as_tensor(labels, dtype=torch.int64, device=features.device)
        inside = torch.nonzero(ids >= 0).flatten()
        groups = group(ids[inside])
        images = inside[groups.order]
        self.clusters, self.sizes = ids[images], groups.counts
        self.row_of_image = torch.full_like(ids, -1)
        self.row_of_image[images] = torch.arange(len(images), device=ids.device)
        self.memory = InstanceMemory(features[images], momentum)

    def logits(self, features: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """(B, C) ``hardest_similarities`` / temperature of features (B, D), which alone receive a gradient."""
        similarity = similarities(self.memory.rows, features)
        return hardest_similarities(similarity, self.clusters, self.sizes, targets) / temperature

    def update(self, features: Tensor, images: Tensor) -> None:
        """v_i <- unit(m v_i + (1 - m) f_i) with features (B, D) of training images (B,), in batch order."""
        self.memory.update(features, self.row_of_image[images])


def hardest_similarities(similarity: Tensor, clusters: Tensor, sizes: Tensor, targets: Tensor) -> Tensor:
    """(B, C) s of the instance loss: s_y = min over the own cluster's entries, s_k = max over another's.

    similarity (M, B) of entries and samples, clusters (M,) ascending with sizes (C,), targets (B,).
    """
    # The minimum is minus the maximum of the negative, so one pass over the segments serves both.
    own_entry = clusters[:, None] == targets[None, :]
    hardness = torch.where(own_entry, -similarity, similarity)
    # Segments are reduced one entry after the other on every device; scatter_reduce is atomic on CUDA.
    hardest = torch.segment_reduce(hardness, "max", lengths=sizes, axis=0).T
    own_cluster = targets[:, None] == torch.arange(len(sizes), device=targets.device)
    return torch.where(own_cluster, -hardest, hardest)
