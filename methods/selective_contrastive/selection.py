"""Which rows of the banks an anchor is compared with: docs/methods/selective_contrastive.md, "Selection"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import UserError
from core.precision import full_precision


class Selection(NamedTuple):
    """Bank rows per anchor: positives P (B, K+1), the anchor itself first; negatives N (B, N_neg); nearest first."""

    positives: Tensor
    negatives: Tensor

    @property
    def rows(self) -> Tensor:
        """(B, K+1+N_neg) the list I_i = [P_i, N_i] that the softmax runs over."""
        return torch.cat(self, dim=1)


def squared_distance(views: Tensor, bank: Tensor) -> Tensor:
    """(B, N) mean over v of ||f_i^v - b_j^v||^2, of views f (B, V, d) and a bank b (N, V, d) of unit vectors.

    As every view has length 1, that is 2 - 2 <f_i, b_j> / V of the views side by side.
    """
    with full_precision(bank.device):
        return 2 - 2 * (views.flatten(1) @ bank.flatten(1).T) / views.shape[1]


def euclidean(query: Tensor, gallery: Tensor) -> Tensor:
    """(q, g) mean over v of ||f_i^v - f_j^v||, of views (q, V, d) and (g, V, d), in float64.

    Distances come from inner products, whose rounding in float32 would drown those of near neighbours.
    """
    total = query.new_zeros(len(query), len(gallery), dtype=torch.float64)
    for ours, theirs in zip(query.unbind(1), gallery.unbind(1), strict=True):
        total += torch.cdist(ours.double(), theirs.double())
    return total / query.shape[1]


def select(distance: Tensor, anchors: Tensor, positives: int, negatives: int | None) -> Selection:
    """P_i = {i} and its ``positives`` nearest rows by distance (B, N), N_i = the ``negatives`` next ones.

    anchors (B,): each anchor's own row, which is taken out by value wherever its distance ranks it. ``negatives`` is
    clipped to what is left of the bank; None takes all of it.
    """
    left = distance.shape[1] - 1 - positives
    if left < 0:
        raise UserError(
            f"settings.positives {positives} neighbours cannot be found among {distance.shape[1]} training images"
        )
    count = left if negatives is None else min(negatives, left)
    own_first = distance.scatter(1, anchors[:, None], -torch.inf)
    nearest = own_first.topk(1 + positives + count, dim=1, largest=False).indices
    return Selection(nearest[:, : 1 + positives], nearest[:, 1 + positives :])


def select_at_random(anchors: Tensor, size: int, negatives: int | None, generator: torch.Generator) -> Selection:
    """Warm-up: P_i = {i}, N_i = ``negatives`` other rows of ``size``, without replacement; a CPU generator."""
    order = torch.rand(len(anchors), size, generator=generator, dtype=torch.float64)
    return select(order.to(anchors.device), anchors, 0, negatives)
