"""Patch semantic consistency: how far a part's neighbourhood looks like the whole image's.

docs/methods/pisl.md, "Score".
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.agreement import cross_agreement, neighbour_lists
from core.neighbors import row_blocks
from core.precision import full_precision

BANDWIDTHS = (0.01, 0.1, 1.0, 5.0, 10.0)
RELEASED_BANDWIDTHS = (
    *(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0),
    *(1e2, 1e3, 1e4, 1e5, 1e6),
)
LEVELS = 1000  # of a distance in [0, 1]


def consistency_scores(features: Tensor, parts: Tensor, neighbours: int, score: str) -> Tensor:
    """(N, P) scores on the CPU of unit features (N, D) and unit part features (N, P, D).

    ``score``: mmd (1 = most consistent, scaled to span [0, 1] over the training set), jaccard (PPLR's cross
    agreement) or released (0 = most consistent, as coded). Neighbour lists leave out the image itself.
    """
    if score == "jaccard":
        return cross_agreement(features, parts, neighbours)
    own, *lists = neighbour_lists(features, parts, neighbours)
    compare = released_score if score == "released" else mmd_score
    whole = neighbour_distances(features, own)
    scores = [
        torch.cat([compare(whole[rows], part[rows]) for rows in row_blocks(len(whole), LEVELS)])
        for part in (neighbour_distances(*pair) for pair in zip(parts.unbind(dim=1), lists, strict=True))
    ]
    table = torch.stack(scores, dim=1).cpu()
    return stretch(table) if score == "mmd" else table


def neighbour_distances(features: Tensor, lists: Tensor) -> Tensor:
    """(N, k, k) Euclidean distances among the neighbours lists (N, k) of each image, over their largest."""
    found = []
    with full_precision(features.device):
        for rows in row_blocks(len(features), lists.shape[1] * features.shape[1]):
            near = features[lists[rows]]
            squared = 2 - 2 * near @ near.transpose(1, 2)
            distance = squared.clamp(min=0).sqrt()
            distance.diagonal(dim1=1, dim2=2).zero_()  # rounding would leave about 1e-4 there
            found.append(distance / distance.amax(dim=(1, 2), keepdim=True).clamp(min=1e-8))
    return torch.cat(found)


def mmd_score(whole: Tensor, part: Tensor) -> Tensor:
    """(n,) exp(-MMD^2) of two samples, the distances above the diagonal of (n, k, k) matrices.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs, k(a, b) the mean over BANDWIDTHS of
    exp(-(a - b)^2 / (2 sigma)), the released code's convention for sigma. With both samples as histograms over
    LEVELS, which rounds distances to thousandths, it is the quadratic form of their difference.
    """
    size = whole.shape[1]
    above = torch.triu_indices(size, size, offset=1, device=whole.device)
    difference = _histogram(whole[:, above[0], above[1]]) - _histogram(part[:, above[0], above[1]])
    levels = torch.arange(LEVELS + 1, device=whole.device, dtype=whole.dtype) / LEVELS
    squared = (levels[:, None] - levels).square()
    kernel = torch.stack([torch.exp(squared / (-2 * sigma)) for sigma in BANDWIDTHS]).mean(dim=0)
    with full_precision(whole.device):
        squared_mmd = ((difference @ kernel) * difference).sum(dim=1)
    return torch.exp(-squared_mmd.clamp(min=0))


def released_score(whole: Tensor, part: Tensor) -> Tensor:
    """(n,) the released score, a distance: clamp((19 - sum_s exp(-d2 / (2 sigma_s))) / k, 0, 1).

    It is an MMD of one vector per side, the flattened (n, k, k) matrices; d2 is their squared distance.
    """
    squared = (whole - part).square().sum(dim=(1, 2))
    bandwidths = torch.tensor(RELEASED_BANDWIDTHS, device=whole.device, dtype=whole.dtype)
    kernels = torch.exp(-squared[:, None] / (2 * bandwidths)).sum(dim=1)
    return ((len(RELEASED_BANDWIDTHS) - kernels) / whole.shape[1]).clamp(0, 1)


def stretch(scores: Tensor) -> Tensor:
    """Scores of all images and parts, scaled together so that they span [0, 1]; all 1 when they are equal."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else torch.ones_like(scores)


def _histogram(samples: Tensor) -> Tensor:
    """(n, LEVELS + 1) share of each row's values (n, m) in [0, 1] at each level."""
    level = (samples * LEVELS).round().long()
    counts = samples.new_zeros(len(samples), LEVELS + 1)  # whole numbers: exact in any order of summation
    return counts.scatter_add_(1, level, torch.ones_like(samples)) / samples.shape[1]
