"""ICE's two losses within a batch: features in, a mean over the batch out (docs/methods/ice.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities


def hard_instance(queries: Tensor, keys: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """L_h = -1/B sum_i log( exp z_i / (exp z_i + sum_{j not of y_i} exp(<q_i, k_j> / t)) ).

    z_i = min <q_i, k_j> / t over all j of i's label, i itself included. queries, keys (B, D) unit, targets (B,).
    """
    scores = similarities(queries, keys) / temperature
    same = targets[:, None] == targets[None, :]
    hardest = scores.masked_fill(~same, torch.inf).amin(dim=1)
    negatives = scores.masked_fill(same, -torch.inf)
    return (torch.cat([hardest[:, None], negatives], dim=1).logsumexp(dim=1) - hardest).mean()


def soft_consistency(queries: Tensor, keys: Tensor, weak: Tensor, temperature: float) -> Tensor:
    """1/B sum_i KL( softmax_j(<w_i, w_j> / t) || softmax_j(<q_i, k_j> / t) ) over all j of the batch, i included.

    queries, keys, weak (B, D) unit; the first distribution is constant for the gradient.
    """
    soft = torch.softmax(similarities(weak, weak).detach() / temperature, dim=1)
    log_found = F.log_softmax(similarities(queries, keys) / temperature, dim=1)
    return F.kl_div(log_found, soft, reduction="batchmean")
