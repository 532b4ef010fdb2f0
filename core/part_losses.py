"""Losses of a whole image and its parts: labels refined by the parts, parts smoothed by how far they agree.

docs/methods/pplr.md, "Losses".
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from core.losses import smoothed_cross_entropy, soft_cross_entropy


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
