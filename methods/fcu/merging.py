"""Bottom-up merging of clusters by BUC's rule: docs/methods/fcu.md, "Merging"."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def merge(features: Tensor, labels: np.ndarray, merges: int, penalty: float) -> np.ndarray:
    """Labels (N,) after uniting clusters until ``merges`` of them are gone, two clusters left at least.

    Pairs of images of different clusters are visited in ascending order of ||f_i - f_j||^2 + penalty (|A| + |B|), with
    sizes of before; chains are allowed. A new cluster has the smallest old label in it; labels are then renumbered in
    that order.
    """
    clusters = int(labels.max(initial=-1)) + 1
    united = np.arange(clusters)
    values, pairs = spanning_tree(features, labels, penalty)
    for edge in np.argsort(values, kind="stable")[: max(0, min(merges, clusters - 2))]:
        first, second = sorted(united[labels[pairs[edge]]])
        united[united == second] = first
    return np.unique(united, return_inverse=True)[1][labels]


def spanning_tree(features: Tensor, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Values (C - 1,) and pairs of images (C - 1, 2) of the minimum spanning tree over C clusters, by Prim's algorithm.

    Visiting all pairs in ascending order unites exactly along its edges, so no matrix of N x N distances is kept. The
    tree grows by a cluster at a time, whose images are compared with all others.
    """
    features = features.detach()
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    sizes = features.new_tensor(np.bincount(labels)[labels])
    lengths = features.square().sum(dim=1)
    nearest = torch.full_like(lengths, torch.inf)  # of every image outside, to the tree
    partner = torch.zeros_like(lengths, dtype=torch.int64)
    outside = torch.ones_like(lengths, dtype=torch.bool)
    values, pairs, added = [], [], 0
    for _ in range(len(members) - 1):
        rows = torch.as_tensor(members[added], device=features.device)
        outside[rows] = False
        squared = lengths[rows, None] + lengths - 2 * features[rows] @ features.T
        distance, place = (squared.clamp(min=0) + penalty * (sizes[rows, None] + sizes)).min(dim=0)
        closer = distance < nearest
        nearest, partner = torch.where(closer, distance, nearest), torch.where(closer, rows[place], partner)
        image = int(torch.where(outside, nearest, torch.inf).argmin())
        values.append(float(nearest[image]))
        pairs.append((image, int(partner[image])))
        added = int(labels[image])
    return np.array(values), np.array(pairs, dtype=np.int64).reshape(-1, 2)
