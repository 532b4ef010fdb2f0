"""The equations of HCL and MGCE-HCL as functions of tensors: docs/methods/hcl.md, "Hybrid loss" and "Priority".
B anchors, N training images, E memory entries (clusters, then kept outliers as singletons), G granularities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_entries(labels: Tensor, keep_outliers: bool) -> Tensor:
    """(N,) entry of every image of labels (N,): its cluster; an outlier (-1) is an entry C, C+1, ... of its own,
    or stays -1, in no entry, where outliers are not kept."""
    outliers = labels < 0
    if not keep_outliers:
        return labels
    singletons = labels.max() + outliers.cumsum(dim=0)
    return torch.where(outliers, singletons, labels)


def co_association(anchors: Tensor, images: Tensor) -> Tensor:
    """(B, N) float w_ip = 1/G sum_g 1[ y_i^(g) = y_p^(g) and y_i^(g) != -1 ].

    anchors (B, G), images (N, G): their labels at every granularity, -1 = outlier there.
    """
    together = (anchors[:, None] == images) & (anchors >= 0)[:, None]
    return together.sum(dim=2, dtype=torch.float32) / images.shape[1]


def positive_weights(priority: Tensor, same_entry: Tensor, itself: Tensor) -> Tensor:
    """(B, N) weight of image p as a positive of anchor i: its priority (B, N) for P(i) = {p != i : y_p = y_i}, else 0.

    same_entry, itself (B, N) bool: y_p = y_i, p = i. An image alone in its entry has its own row as its one
    positive, as a singleton of SpCL, which is such a class.
    """
    mates = same_entry & ~itself
    alone = ~mates.any(dim=1, keepdim=True)
    return torch.where(mates, priority, (alone & itself).to(priority.dtype))


def pair_losses(positives: Tensor, negatives: Tensor, excluded: Tensor) -> Tensor:
    """(B, N) l_ip = -log[ exp(s_ip) / ( exp(s_ip) + sum_k exp(z_ik) ) ], k over the negatives not excluded.

    positives s (B, N) and negatives z (B, K): similarities over temperature; excluded (B, K) bool.
    """
    # The lowest number, not -inf: an anchor without negatives has zero loss and gradient by plain arithmetic, whatever
    # logsumexp makes of a row of -inf.
    kept = negatives.masked_fill(excluded, torch.finfo(negatives.dtype).min)
    return F.softplus(torch.logsumexp(kept, dim=1, keepdim=True) - positives)


def weighted_mean(losses: Tensor, weights: Tensor, normalise: bool) -> Tensor:
    """1/B sum_i ( sum_p w_ip l_ip ) / ( sum_p w_ip ), or over |P(i)| where weights are not normalised.

    losses, weights (B, N); w_ip > 0 exactly for the positives p of i, of which every anchor has one.
    """
    divisor = weights.sum(dim=1) if normalise else (weights > 0).sum(dim=1)
    return ((weights * losses).sum(dim=1) / divisor).mean()
