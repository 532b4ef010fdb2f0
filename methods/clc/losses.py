"""The triplet loss of CLC: docs/methods/clc.md, "Losses"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from core.losses import hardest_distances


def paired_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin + d_positive - d_negative) over the anchors that have another image of their label.

    Batch-hard on Euclidean distances of features (B, D) as they are, labels (B,); 0 where no anchor has another image.
    """
    paired = (labels[:, None] == labels).sum(dim=1) > 1
    if not paired.any():
        return features.sum() * 0
    positive, negative = hardest_distances(features, labels)
    return F.relu(margin + positive - negative)[paired].mean()
