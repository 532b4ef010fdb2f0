"""The losses of PISL and of its ancestor PPLR.

docs/methods/pisl.md, "Steering of a step" (SCD), "Refined labels" (PSC) and "Other losses".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import full_precision, similarities, smoothed_cross_entropy, soft_cross_entropy


def refined_cross_entropy(
    logits: Tensor, part_logits: Tensor, targets: Tensor, scores: Tensor, own_share: float
) -> Tensor:
    """Mean cross-entropy of global logits (B, C) against refined labels, which are constant (PSC, global).

    Label = own_share onehot(y) + (1 - own_share) sum_p softmax_p(scores)_p softmax(part logits)_p; part_logits
    (B, P, C), targets (B,), scores (B, P).
    """
    onehot = F.one_hot(targets, logits.shape[1])
    ensemble = (scores.softmax(dim=1)[:, :, None] * part_logits.softmax(dim=2)).sum(dim=1)
    return soft_cross_entropy(logits, own_share * onehot + (1 - own_share) * ensemble)


def consistency_smoothed_cross_entropy(part_logits: Tensor, targets: Tensor, scores: Tensor) -> Tensor:
    """Mean over images and parts of c CE(y) + (1 - c) KL(u || p), u uniform (PSC, parts; PPLR's AALS).

    part_logits (B, P, C), targets (B,), scores c (B, P).
    """
    log_p = F.log_softmax(part_logits, dim=2)
    nll = -log_p.gather(2, targets[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(2)
    to_uniform = -math.log(log_p.shape[2]) - log_p.mean(dim=2)
    return (scores * nll + (1 - scores) * to_uniform).mean()


def smoothed_part_cross_entropy(part_logits: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """Mean over images and parts of the label-smoothed cross-entropy; part_logits (B, P, C), targets (B,)."""
    parts = part_logits.shape[1]
    return smoothed_cross_entropy(part_logits.flatten(0, 1), targets.repeat_interleave(parts), epsilon)


def theta_consistency(predicted: Tensor, wanted: Tensor, cosine_weight: float) -> Tensor:
    """MSE + cosine_weight (1 - cos) of affine parameters (B, n), as vectors of one image each (SCD)."""
    cosine = F.cosine_similarity(predicted, wanted, dim=1).mean()
    return F.mse_loss(predicted, wanted) + cosine_weight * (1 - cosine)


def part_contrast(parts: Tensor, targets: Tensor, temperature: float, frozen_weights: bool = True) -> Tensor:
    """sum_p w_p L_p with w = softmax(-L): in-batch supervised contrast of each part (SCD, third term).

    parts (B, P, D), targets (B,). Positives, and the denominator, include the image itself. ``frozen_weights``: no
    gradient through w; the released code has one.
    """
    unit = F.normalize(full_precision(parts), dim=2).transpose(0, 1)
    log_p = F.log_softmax(unit @ unit.transpose(1, 2) / temperature, dim=2)
    same = (targets[:, None] == targets[None, :]).to(log_p.dtype)
    losses = -((log_p * same).sum(dim=2) / same.sum(dim=1)).mean(dim=1)
    weights = torch.softmax(-losses, dim=0)
    return ((weights.detach() if frozen_weights else weights) * losses).sum()


def camera_contrast(
    features: Tensor,
    same_cluster: Tensor,
    same_camera: Tensor,
    proxies: Tensor,
    temperature: float,
    negatives: int,
) -> Tensor:
    """Softmax of each image over its cluster's proxies of other cameras and the hardest proxies of other clusters.

    features (B, D), L2-normalised inside; proxies (U, D) unit rows; same_cluster, same_camera (B, U). The mean over
    positives of -log p, 0 for an image without any, summed and divided by B. The proxy of an image's own
    cluster and camera is in neither set.
    """
    logits = similarities(F.normalize(features, dim=1), proxies) / temperature
    positive = same_cluster & ~same_camera
    others = logits.detach().masked_fill(same_cluster, -torch.inf)
    hardest = others.topk(min(negatives, others.shape[1]), dim=1).indices
    negative = torch.zeros_like(same_cluster).scatter_(1, hardest, True) & ~same_cluster
    has_positive = positive.any(dim=1)
    # An anchor without a positive is left out below; all its logits stay, so that its softmax is defined.
    chosen = positive | negative | ~has_positive[:, None]
    log_p = F.log_softmax(logits.masked_fill(~chosen, -torch.inf), dim=1)
    per_image = -log_p.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return per_image.masked_fill(~has_positive, 0).sum() / len(features)
