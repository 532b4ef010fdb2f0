"""What SAL remembers of the target: every image's soft multilabel, and running averages over batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SoftLabels:
    """Soft multilabels that follow the batches: a first visit copies, later ones keep 0.9 of the old label.

    rows (N, K); seen (N,) whether an image was visited.
    """

    rows: Tensor
    seen: Tensor
    momentum: float = 0.9

    @classmethod
    def empty(cls, images: int, agents: int, like: Tensor) -> SoftLabels:
        """Of images that were not visited yet."""
        return cls(like.new_zeros(images, agents), torch.zeros(images, dtype=torch.bool, device=like.device))

    def moved(self, indices: Tensor, multilabels: Tensor) -> Tensor:
        """(B, K) labels of these images after this visit; nothing is stored."""
        fresh = multilabels.detach()
        later = self.momentum * self.rows[indices] + (1 - self.momentum) * fresh
        return torch.where(self.seen[indices, None], later, fresh)

    def store(self, indices: Tensor, labels: Tensor) -> None:
        """Keep what ``moved`` gave."""
        self.rows[indices] = labels
        self.seen[indices] = True


def running(old: Tensor, new: Tensor, rate: float) -> Tensor:
    """(1 - rate) old + rate new."""
    return (1 - rate) * old + rate * new
