"""Losses of self-distillation: whole views against a teacher's, and tokens that are to be restored.

Equations: docs/methods/oriented_kd_ssl.md, "Losses".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sharpened(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((z - c) / t) of a teacher's logits (..., K) and centre (K,); constant."""
    return ((logits - centre) / temperature).softmax(dim=-1).detach()


def cross_entropy(probabilities: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """(...): -sum_k p_k log softmax(z / t)_k of probabilities and logits (..., K)."""
    return -(probabilities * (logits / temperature).log_softmax(dim=-1)).sum(dim=-1)


def alignment(taught: Sequence[Tensor], views: Sequence[tuple[int | None, Tensor]], temperature: float) -> Tensor:
    """Mean over pairs of a teacher's and a student's view of the mean cross-entropy of the images in them.

    taught: probabilities (B, K) of the teacher's view of each crop. views: the student's logits (B, K), each with the
    crop that it is not compared with, or None where it is compared with all.
    """
    pairs = [
        cross_entropy(probabilities, logits, temperature).mean()
        for own, logits in views
        for crop, probabilities in enumerate(taught)
        if crop != own
    ]
    return torch.stack(pairs).mean()


def entropy(taught: Sequence[Tensor]) -> Tensor:
    """Mean entropy of the teacher's probabilities, each (B, K): between 0 and log K, both of which mean collapse."""
    return torch.stack([torch.special.entr(probabilities).sum(dim=-1).mean() for probabilities in taught]).mean()


def restoration(student: Tensor, teacher: Tensor) -> Tensor:
    """(b, T): 1 - cosine of unit vectors (b, T, D); the teacher's are constant."""
    return 1 - (student * teacher.detach()).sum(dim=-1)


def of_hidden(values: Tensor, hidden: Tensor) -> Tensor:
    """(b, 2): sum of values (b, T) over each image's hidden tokens (b, T), and their number."""
    kept = torch.where(hidden, values, torch.zeros_like(values))
    return torch.stack([kept.sum(dim=1), hidden.sum(dim=1).to(values.dtype)], dim=1)


def mean_of_tokens(sums: Tensor) -> Tensor:
    """Mean over hidden tokens, whatever image they are of; sums (B, 2) of ``of_hidden``. 0 where there is none."""
    total, count = sums.sum(dim=0)
    return total / count.clamp(min=1)


def mean_of_images(sums: Tensor) -> Tensor:
    """Mean over images of the mean over their hidden tokens, as iBOT has it; sums (B, 2) of ``of_hidden``."""
    return (sums[:, 0] / sums[:, 1].clamp(min=1)).mean()


def moved(centre: Tensor, logits: Sequence[Tensor], momentum: float) -> Tensor:
    """m c + (1 - m) mean, over all rows, of a teacher's logits (B, K) of each view."""
    return momentum * centre + (1 - momentum) * torch.cat(list(logits)).mean(dim=0)
