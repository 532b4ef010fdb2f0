"""The losses that PISL adds to PPLR.

docs/methods/pisl.md, "Steering of a step" (SCD).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.precision import at_least_float32


def theta_consistency(predicted: Tensor, wanted: Tensor, cosine_weight: float) -> Tensor:
    """MSE + cosine_weight (1 - cos) of affine parameters (B, n), as vectors of one image each (SCD)."""
    cosine = F.cosine_similarity(predicted, wanted, dim=1).mean()
    return F.mse_loss(predicted, wanted) + cosine_weight * (1 - cosine)


def part_contrast(parts: Tensor, targets: Tensor, temperature: float, frozen_weights: bool = True) -> Tensor:
    """sum_p w_p L_p with w = softmax(-L): in-batch supervised contrast of each part (SCD, third term).

    parts (B, P, D), targets (B,). Positives, and the denominator, include the image itself. ``frozen_weights``: no
    gradient through w; the released code has one.
    """
    unit = F.normalize(at_least_float32(parts), dim=2).transpose(0, 1)
    log_p = F.log_softmax(unit @ unit.transpose(1, 2) / temperature, dim=2)
    same = (targets[:, None] == targets[None, :]).to(log_p.dtype)
    losses = -((log_p * same).sum(dim=2) / same.sum(dim=1)).mean(dim=1)
    weights = torch.softmax(-losses, dim=0)
    return ((weights.detach() if frozen_weights else weights) * losses).sum()
