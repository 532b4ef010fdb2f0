"""Pairs of target images by MAR's rule: similar features whose soft multilabels agree are of one person."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from core.losses import similarities

NO_NEGATIVE = 0.5  # what stands for the mean over the hard negatives where a batch has none


class Pairs(NamedTuple):
    """Pairs i < j of a batch: squared feature distance with its gradient, agreement of the multilabels, (n,) each."""

    distance: Tensor
    agreement: Tensor


def all_pairs(features: Tensor, multilabels: Tensor) -> Pairs:
    """Those of features (B, D) and multilabels (B, K), which are constants."""
    first, second = torch.triu_indices(len(features), len(features), offset=1, device=features.device)
    lengths = features.square().sum(dim=1)
    distance = (lengths[:, None] + lengths - 2 * similarities(features, features))[first, second]
    return Pairs(distance, agreement(multilabels.detach(), multilabels.detach())[first, second])


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """(n, m) 1 - ||q - q'||_1 / 2 of rows that sum to 1: in [0, 1], and 1 for equal ones."""
    return 1 - torch.cdist(first, second, p=1) / 2


def mined(share: float, images: int) -> int:
    """How many of the pairs of ``images`` are mined: that share of them, and one at least where there is a pair.

    MAR's code takes none of few images, and then reads the smallest agreement for the largest.
    """
    pairs = images * (images - 1) // 2
    return min(pairs, max(1, int(share * pairs)))


def pair_loss(pairs: Pairs, threshold: Tensor, count: int) -> Tensor:
    """-log( P / (P + N) ), P and N the means of exp(-distance) over positives and hard negatives.

    The ``count`` pairs of smallest distance are positives where their agreement exceeds the threshold, and hard
    negatives elsewhere. Without positives the loss is log(1 + N); without negatives N is NO_NEGATIVE.
    """
    nearest = pairs.distance.detach().topk(count, largest=False).indices
    agrees = pairs.agreement[nearest] > threshold
    closeness = torch.exp(-pairs.distance[nearest])
    positive, negative = closeness[agrees], closeness[~agrees]
    n = negative.mean() if len(negative) else closeness.new_tensor(NO_NEGATIVE)
    if not len(positive):
        return torch.log1p(n)
    p = positive.mean()
    return torch.log(p + n) - torch.log(p)


def largest(values: Tensor, count: int) -> Tensor:
    """The ``count``-th largest value."""
    return values.topk(count).values[-1]


def first_threshold(multilabels: Tensor, share: float, block: int = 512) -> Tensor:
    """That of all images (N, K): the agreement that a ``share`` of their pairs reach, in blocks of rows."""
    count = mined(share, len(multilabels))
    kept = multilabels.new_empty(0)
    for start in range(0, len(multilabels), block):
        rows = multilabels[start : start + block]
        agreements = agreement(rows, multilabels[start:])
        later = torch.ones_like(agreements, dtype=torch.bool).triu(diagonal=1)
        kept = torch.cat([kept, agreements[later]])
        kept = kept.topk(min(count, len(kept))).values
    return kept[-1]
