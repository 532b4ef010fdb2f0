"""Memory updates and sampler rules as literal loops, to check the vectorised ones against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sequential(bank: Tensor, rows: Tensor, features: Tensor, momentum: float) -> Tensor:
    """Cluster Contrast: every sample in batch order moves its row and normalises it."""
    bank = bank.clone()
    for row, feature in zip(rows.tolist(), features, strict=True):
        mixed = momentum * bank[row] + (1 - momentum) * feature
        bank[row] = mixed / mixed.norm()
    return bank


def hardest(bank: Tensor, rows: Tensor, features: Tensor, momentum: float) -> Tensor:
    """Every row present moves once, to its sample least similar to the old row."""
    old, bank = bank, bank.clone()
    for row in sorted(set(rows.tolist())):
        samples = [i for i in range(len(rows)) if rows[i] == row]
        worst = min(samples, key=lambda i: float(features[i] @ old[row]))
        mixed = momentum * old[row] + (1 - momentum) * features[worst]
        bank[row] = mixed / mixed.norm()
    return bank


def mean(bank: Tensor, rows: Tensor, features: Tensor, momentum: float, unit_mean: bool = False) -> Tensor:
    """Every row present moves once, to the mean of its samples."""
    old, bank = bank, bank.clone()
    for row in sorted(set(rows.tolist())):
        samples = [features[i] for i in range(len(rows)) if rows[i] == row]
        centre = torch.stack(samples).mean(dim=0)
        if unit_mean:
            centre = centre / centre.norm()
        mixed = momentum * old[row] + (1 - momentum) * centre
        bank[row] = mixed / mixed.norm()
    return bank


def overwrite(slots: Tensor, classes: Tensor, features: Tensor) -> Tensor:
    """The i-th sample of a class fills slot i; what does not fit is dropped."""
    slots, seen = slots.clone(), [0] * len(slots)
    for label, feature in zip(classes.tolist(), features, strict=True):
        if seen[label] < slots.shape[1]:
            slots[label, seen[label]] = feature
        seen[label] += 1
    return slots


def slot_logits(slots: Tensor, features: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """HHCL's paper: hardest positive slot for the own class, hardest slot of every other class."""
    logits = torch.empty(len(features), len(slots), dtype=features.dtype)
    for i in range(len(features)):
        for c in range(len(slots)):
            scores = [float(features[i] @ slot) for slot in slots[c]]
            hardest_score = min(scores) if c == targets[i] else max(scores)
            logits[i, c] = hardest_score / temperature
    return logits


def centroids(features: Tensor, labels: np.ndarray) -> Tensor:
    """Normalised mean of each cluster's features."""
    rows = []
    for cluster in range(int(labels.max()) + 1):
        total = sum(features[i] for i in range(len(labels)) if labels[i] == cluster)
        rows.append(total / total.norm())
    return torch.stack(rows)


def companions(seed: int, labels: np.ndarray, cameras: np.ndarray | None, instances: int) -> tuple[set[int], bool]:
    """Images that may accompany ``seed`` in its group, and whether one may come twice."""
    mates = [i for i in range(len(labels)) if labels[i] == labels[seed] and i != seed]
    if cameras is not None:
        elsewhere = [i for i in mates if cameras[i] != cameras[seed]]
        mates = elsewhere or mates
    return set(mates), len(mates) < instances
