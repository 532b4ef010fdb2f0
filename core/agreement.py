"""Cross agreement: how many of an image's nearest neighbours by its whole are those by a part of it."""

from __future__ import annotations

import torch
from torch import Tensor

from core.neighbors import knn


def cross_agreement(features: Tensor, parts: Tensor, neighbours: int) -> Tensor:
    """(N, P) Jaccard index of the ``neighbours`` nearest other images in the whole's space and in each part's.

    features (N, D) and parts (N, P, D) of unit length; the result is on the CPU.
    """
    whole, *lists = neighbour_lists(features, parts, neighbours)
    return torch.stack([list_overlap(whole, own) for own in lists], dim=1).cpu()


def neighbour_lists(features: Tensor, parts: Tensor, neighbours: int) -> list[Tensor]:
    """The (N, k) nearest other images, nearest first, in the space of features (N, D) and of each of parts (N, P, D).

    k is ``neighbours``, or all others where there are fewer.
    """
    count = min(neighbours, len(features) - 1)
    return [_neighbours(space, count) for space in (features, *parts.unbind(dim=1))]


def list_overlap(a: Tensor, b: Tensor) -> Tensor:
    """(N,) Jaccard index of the neighbour lists (N, k) in two spaces."""
    common = (a[:, :, None] == b[:, None, :]).flatten(1).sum(dim=1).float()
    return common / (2 * a.shape[1] - common)


def _neighbours(features: Tensor, count: int) -> Tensor:
    """(N, count) nearest other images, nearest first, on the device of ``features``."""
    _, index = knn(features, count + 1)
    return torch.as_tensor(index[:, 1:], device=features.device)
