"""Selective contrastive loss and the mixture bank's update.

docs/methods/selective_contrastive.md, "Loss" and "Mixture update".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities
from core.memory import sequential_update
from methods.selective_contrastive.selection import Selection


def term_weights(positives: int, lambda_t: float, alpha: float) -> list[float]:
    """w_0 = lambda_t of the anchor itself; w_j = alpha (1 - lambda_t) / K of each of its K neighbours."""
    return [lambda_t] + [alpha * (1 - lambda_t) / positives for _ in range(positives)]


def log_probabilities(features: Tensor, bank: Tensor, selection: Selection, temperature: float) -> Tensor:
    """(B, N) log softmax of <z_i, M_k> / temperature over k in I_i = [P_i, N_i]; -inf for the rows left out.

    features z (B, D), bank M (N, D); gradient reaches the features only.
    """
    logits = similarities(features, bank.detach()) / temperature
    left_out = torch.ones_like(logits, dtype=torch.bool).scatter_(1, selection.rows, False)
    return logits.masked_fill(left_out, -torch.inf).log_softmax(dim=1)


def selective_nll(log_p: Tensor, positives: Tensor, weights: Sequence[float]) -> Tensor:
    """L_z = sum_j w_j mean_i CE_j(z_i), with CE_j(z_i) = -log p(P_ij), of log_p (B, N) and positives (B, K+1).

    Each positive has a softmax of its own, in whose denominator the other positives stay.
    """
    terms = [w * F.nll_loss(log_p, column) for w, column in zip(weights, positives.T, strict=True)]
    return torch.stack(terms).sum()


def pull_positives(bank: Tensor, positives: Tensor, features: Tensor, momentum: float) -> None:
    """M[P_ij] <- unit(momentum M[P_ij] + (1 - momentum) z_i) for j = K..0, and for each j in batch order.

    bank (N, D), changed in place; positives (B, K+1); features z (B, D).
    """
    columns = positives.shape[1]
    sequential_update(bank, positives.flip(1).T.flatten(), features.repeat(columns, 1), momentum)


@torch.no_grad()
def released_gradients(
    features: dict[str, Tensor],
    log_p: dict[str, Tensor],
    bank: Tensor,
    selection: Selection,
    weights: Sequence[float],
    temperature: float,
    momentum: float,
    mixed: Collection[str],
) -> dict[str, Tensor]:
    """{branch: (B, D)} gradient of selective_nll as the released code's backward computes it (memory_mode released).

    It updates the bank after each term, and the next term's gradient reads the bank as it then is, while its
    probabilities are those of the untouched bank:

        dL/dz_i = sum_{j=K..0} w_j / (B temperature) sum_{k in I_i} (p_ik - [k = P_ij]) M_k^(j)

    The branches follow each other in the order of ``features``; those in ``mixed`` pull the bank. This walks through
    the updates on a copy of the rows in use; ``bank`` (N, D) stays as it is.
    """
    in_use, place = torch.unique(selection.rows, return_inverse=True)
    positives = place[:, : len(weights)]
    live = bank[in_use]
    gradients = {}
    for branch, z in features.items():
        p = log_p[branch][:, in_use].exp()
        gradient = torch.zeros_like(z)
        for j in reversed(range(len(weights))):
            residual = p - F.one_hot(positives[:, j], len(in_use))
            gradient += weights[j] / (len(z) * temperature) * similarities(residual, live.T)
            if branch in mixed:
                sequential_update(live, positives[:, j], z, momentum)
        gradients[branch] = gradient
    return gradients


def with_gradient(value: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    """A scalar equal to ``value`` whose gradient with respect to ``features`` is ``gradient``."""
    return value.detach() + (gradient * (features - features.detach())).sum()
