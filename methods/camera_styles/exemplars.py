"""ECN's invariance, an option: docs/methods/camera_styles.md, "Exemplars"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities


def exemplar_nll(features: Tensor, memory: Tensor, rows: Tensor, temperature: float, neighbours: int = 0) -> Tensor:
    """Mean of -sum_j t_j log softmax_j(<f, V_j> / temperature) over the batch.

    t is 1 at the image's own row and 1 / k at the k rows of largest similarity, the own one keeping 1; they do not sum
    to 1. With 0 neighbours it is the own row alone. features (B, D), memory V (N, D), rows (B,).
    """
    logits = similarities(features, memory) / temperature
    targets = logits.new_zeros(logits.shape)
    if neighbours:
        nearest = logits.detach().topk(neighbours, dim=1).indices
        targets.scatter_(1, nearest, 1 / neighbours)
    targets.scatter_(1, rows[:, None], 1.0)
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
