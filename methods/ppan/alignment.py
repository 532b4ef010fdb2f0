"""Distances between the features of two domains: docs/methods/ppan.md, "Global alignment" and "Local alignment".

Features (n, D) of the source and (m, D) of the target; bandwidths, weights and probabilities are constants.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core.losses import similarities
from core.precision import at_least_float32

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of five Gaussian kernels, in units of the mean squared distance


class Kernels(NamedTuple):
    """Sums of kernels: source (n, n), target (m, m), across (n, m)."""

    source: Tensor
    target: Tensor
    across: Tensor


def gaussian_kernels(source: Tensor, target: Tensor, with_diagonal: bool = False) -> Kernels:
    """sum_w exp(-||x - y||^2 / (w h)), w in WIDTHS, h the mean squared distance of the joint batch.

    h is the mean over all pairs of different images, as in DSAN, or ``with_diagonal`` over all entries, as in DAN.
    """
    joint = at_least_float32(torch.cat([source, target]))
    norms = joint.square().sum(dim=1)
    distance = (norms[:, None] + norms[None, :] - 2 * similarities(joint, joint)).clamp(min=0)
    count, first = len(joint), len(source)
    pairs = count * count if with_diagonal else count * (count - 1)
    mean = (distance.detach().sum() / pairs).clamp(min=torch.finfo(joint.dtype).tiny)
    kernels = torch.stack([torch.exp(-distance / (width * mean)) for width in WIDTHS]).sum(dim=0)
    return Kernels(kernels[:first, :first], kernels[first:, first:], kernels[:first, first:])


def weighted_mmd(kernels: Kernels, weights: Tensor) -> Tensor:
    """u' K_ss u + v' K_tt v - 2 u' K_st v, with u = weights (n,) / their sum and v = 1/m: never negative."""
    u = weights / weights.sum()
    v = weights.new_full((len(kernels.target),), 1 / len(kernels.target))
    return u @ kernels.source @ u + v @ kernels.target @ v - 2 * (u @ kernels.across @ v)


def unbiased_mmd(kernels: Kernels) -> Tensor:
    """Means without the diagonals, plus 2 / (n - 1) of n images in each domain: DAN's released form.

    ``MultipleKernelMaximumMeanDiscrepancy`` of thuml/Transfer-Learning-Library @c4aa59e, whose kernels are those with
    the diagonal.
    """
    n, m = kernels.across.shape
    within = _off_diagonal(kernels.source) / (n * (n - 1)) + _off_diagonal(kernels.target) / (m * (m - 1))
    return within - 2 * kernels.across.mean() + 2 / (n - 1)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the means plus that of the covariances (divided by n - 1), as released in the library.

    Not divided by 4 D^2 as in the paper on CORAL.
    """
    source, target = at_least_float32(source), at_least_float32(target)
    means = [features.mean(dim=0) for features in (source, target)]
    covariances = [torch.cov(features.T) for features in (source, target)]
    return (means[0] - means[1]).square().mean() + (covariances[0] - covariances[1]).square().mean()


def local_mmd(
    kernels: Kernels, labels: Tensor, probabilities: Tensor, weights: Tensor, mask: Literal["source", "dsan"] = "source"
) -> Tensor:
    """sum_k w_k D_k / sum_k w_k, with D_k = a' K_ss a + b' K_tt b - 2 a' K_st b of identity k.

    labels (n,) of the source, target probabilities (m, K), weights w (K,). a is 1 / count at k's source images and 0
    elsewhere, b the target's probabilities of k over their sum. k: the identities of the source batch; ``dsan`` takes
    of them only those that some target image is most likely of, and is 0 where there are none. DSAN's LMMD
    (easezyc/deep-transfer-learning @2969ed6) is ``dsan`` with equal weights.
    """
    present = torch.unique(labels)
    if mask == "dsan":
        present = present[torch.isin(present, probabilities.argmax(dim=1))]
    shares = (labels[None, :] == present[:, None]).to(kernels.source.dtype)
    shares = shares / shares.sum(dim=1, keepdim=True)
    soft = probabilities.T[present].to(shares.dtype)
    soft = soft / soft.sum(dim=1, keepdim=True).clamp(min=torch.finfo(soft.dtype).tiny)
    distance = _quadratic(shares, kernels.source, shares) + _quadratic(soft, kernels.target, soft)
    distance = distance - 2 * _quadratic(shares, kernels.across, soft)
    kept = weights[present].to(distance.dtype)
    return (kept * distance).sum() / kept.sum().clamp(min=torch.finfo(distance.dtype).tiny)


def identity_weights(logits: Tensor, temperature: float) -> Tensor:
    """(K,) mean over target images of softmax(logits (N, K) / temperature), divided by its largest: PADA's weights.

    ``ClassWeightModule`` of thuml/Transfer-Learning-Library @c4aa59e.
    """
    mean = (at_least_float32(logits.detach()) / temperature).softmax(dim=1).mean(dim=0)
    return mean / mean.max()


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.sum() - matrix.diagonal().sum()


def _quadratic(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """(C,) left_k' matrix right_k, row by row of left (C, n) and right (C, m)."""
    return (left @ matrix * right).sum(dim=1)
