"""Losses shared by two methods or more; computed in float32 or wider, even under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.precision import at_least_float32


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (n, m) of (n, D) and (m, D) in the wider of both types, never below float32.

    Autocast is switched off: it would turn even a float32 product into a half-precision one.
    """
    dtype = torch.promote_types(at_least_float32(a).dtype, at_least_float32(b).dtype)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype).T


def cluster_nll(features: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of unit features (B, D) against a bank (C, D): the loss of Cluster Contrast.

    -1/B sum_i log( exp(<f_i, c_yi> / t) / sum_k exp(<f_i, c_k> / t) ) with targets y (B,);
    no gradient reaches the bank. ``ClusterMemory`` of alibaba/cluster-contrast-reid @57b62e9.
    """
    return F.cross_entropy(similarities(features, bank.detach()) / temperature, targets)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, epsilon: float = 0.1) -> Tensor:
    """Mean cross-entropy of logits (B, C) against (1 - epsilon) onehot(targets) + epsilon / C."""
    return F.cross_entropy(at_least_float32(logits), targets, label_smoothing=epsilon)


def soft_cross_entropy(logits: Tensor, target_probabilities: Tensor) -> Tensor:
    """-1/B sum_ik q_ik log softmax(z_i)_k of logits z and probabilities q (B, C), q constant."""
    log_probabilities = F.log_softmax(at_least_float32(logits), dim=1)
    return -(target_probabilities.detach() * log_probabilities).sum(dim=1).mean()


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Mean of max(0, margin + d_positive - d_negative) over the batch's anchors.

    features (B, D), labels (B,). d_positive is the Euclidean distance to the farthest image of the
    anchor's label (0 when it is alone), d_negative that to the nearest image of another label
    (infinite in a batch of one label, whose loss is 0).
    """
    positive, negative = hardest_distances(features, labels)
    return F.relu(margin + positive - negative).mean()


def softmax_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log( exp(d_negative) / (exp(d_negative) + exp(d_positive)) ).

    Arguments and distances as in ``batch_hard_triplet``.
    """
    positive, negative = hardest_distances(features, labels)
    return F.softplus(positive - negative).mean()


def hardest_distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) distances to the farthest positive and to the nearest negative of every anchor."""
    features = at_least_float32(features)
    same = labels[:, None] == labels[None, :]
    norms = features.square().sum(dim=1)
    squared = norms[:, None] + norms[None, :] - 2 * similarities(features, features)
    # A root has no finite slope at 0, where an image meets its copy: no gradient below the clamp.
    distance = squared.clamp(min=1e-12).sqrt()
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distance.masked_fill(~(same & others), 0.0).amax(dim=1)
    negative = distance.masked_fill(same, torch.inf).amin(dim=1)
    return positive, negative
