"""Support samples and the label-preserving loss: features and memory rows in, tensors out (docs/methods/ise.md)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities

EPSILON = 1e-6  # keeps the released loss finite; part of the golden values


def degree(share: float, base: float = 1.0) -> float:
    """lambda = base / 2 ln((e - 1) share + 1): from 0 at the run's start (share 0) to base / 2 at its end (share 1)."""
    return 0.5 * base * math.log((math.e - 1) * share + 1)


def support_samples(
    features: Tensor, rows: Tensor, targets: Tensor, step: float, nearest: int = 1, leaves_own: bool = True
) -> Tensor:
    """(B * nearest, D) unit(f_i + step (c - c_y)), c the rows most similar to f_i among the others, nearest first.

    The supports of image i are rows i * nearest to (i + 1) * nearest - 1; where there are fewer other rows, each is
    taken once. features (B, D) unit, rows (C, D) without gradient, targets (B,). ``leaves_own`` False: without - c_y.
    """
    rows = rows.detach()
    similarity = similarities(features.detach(), rows).scatter(1, targets[:, None], -torch.inf)
    near = rows[similarity.topk(min(nearest, len(rows) - 1), dim=1).indices]
    direction = near - rows[targets][:, None] if leaves_own else near
    return F.normalize(features[:, None] + step * direction, dim=2).flatten(0, 1)


def label_preserving(
    features: Tensor, supports: Tensor, targets: Tensor, temperature: float, run: int | None
) -> Tensor:
    """L_LP = -1/B sum_i log( p_i / (p_i + n_i + 1e-6) + 1e-6 ) of e_ij = exp(<f_i, g_j> / temperature).

    p_i: the smallest e_ij over supports of i's label, its own included. n_i: the supports of other labels are parted
    into groups, and the largest of each is summed. ``run`` None: a group is a class. A number: the supports in batch
    order are cut into runs of that length; where they or those of other labels are no multiple of it, all count.
    features (B, D) and targets (B,); supports (B * nearest, D) as ``support_samples`` gives them.
    """
    labels = targets.repeat_interleave(len(supports) // len(targets))
    same = targets[:, None] == labels[None, :]
    scores = torch.exp(similarities(features, supports) / temperature)
    positive = scores.masked_fill(~same, torch.inf).amin(dim=1)
    groups = _classes(labels).expand_as(scores) if run is None else _runs(~same, run)
    # Scores are above 0, so neither an empty group nor the image's own class adds to the sum.
    largest = torch.zeros_like(scores).scatter_reduce(1, groups, scores.masked_fill(same, 0.0), "amax")
    return -torch.log(positive / (positive + largest.sum(dim=1) + EPSILON) + EPSILON).mean()


def _classes(labels: Tensor) -> Tensor:
    return torch.unique(labels, return_inverse=True)[1]


def _runs(other: Tensor, length: int) -> Tensor:
    """(B, M) number of the run of each ``other`` support of a row; runs of one where the length does not fit."""
    fits = (other.sum(dim=1, keepdim=True) % length == 0) & (other.shape[1] % length == 0)
    place = (other.cumsum(dim=1) - 1).clamp(min=0)
    return torch.where(fits, place // length, place)
