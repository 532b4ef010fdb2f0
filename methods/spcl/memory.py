"""SpCL's hybrid memory and the contrastive loss over its classes: docs/methods/spcl.md, "Hybrid memory" and "Loss"."""

from __future__ import annotations

import torch
from torch import Tensor

from core.losses import cluster_nll, similarities
from core.memory import Groups, InstanceMemory, group


class HybridMemory(InstanceMemory):
    """One row per training image (N, D), and the classes that the rows form in this epoch."""

    _groups: Groups

    def assign(self, classes: Tensor) -> None:
        """Form classes (N,), 0..C-1 without gaps; rows with -1 are in none."""
        classes = classes.to(self.rows.device)
        members = torch.nonzero(classes >= 0).flatten()
        groups = group(classes[members])
        self._groups = groups._replace(order=members[groups.order])

    def class_means(self) -> Tensor:
        """(C, D) mean row of each class, as the rows are now; not of unit length.

        A class scores the mean of <f, V_j> over its members, which is <f, mean V_j>: C products instead of N.
        """
        return self._groups.means(self.rows)


def hybrid_nll(features: Tensor, bank: Tensor, targets: Tensor, temperature: float, epsilon: float) -> Tensor:
    """-1/B sum_i log(p_i + epsilon), p_i = exp(s_iy) / (sum_k exp(s_ik) + epsilon), s_ik = <f_i, w_k> / temperature.

    features (B, D), bank w (C, D) without gradient, targets y (B,). The released code adds epsilon = 1e-6 twice;
    with 0 this is a plain softmax, the cross-entropy of Cluster Contrast.
    """
    if epsilon == 0:
        return cluster_nll(features, bank, targets, temperature)
    scores = similarities(features, bank.detach()) / temperature
    # Both parts of the fraction divided by exp(largest score), which could overflow.
    largest = scores.detach().amax(dim=1, keepdim=True)
    weights = (scores - largest).exp()
    total = weights.sum(dim=1, keepdim=True) + epsilon * (-largest).exp()
    probability = weights.gather(1, targets[:, None]) / total
    return -(probability + epsilon).log().mean()
