"""Slow, literal and dense: the k-reciprocal Jaccard distance and re-ranking, set by set."""

from __future__ import annotations

import numpy as np


def ranked_lists(distance: np.ndarray) -> np.ndarray:
    """Ascending distance; an image comes first in its own list, ties go to the lower index."""
    distance = distance.astype(np.float64)
    np.fill_diagonal(distance, -np.inf)
    return np.argsort(distance, axis=1, kind="stable")


def squared_euclidean(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return np.square(features[:, None] - features[None]).sum(axis=2)


def reciprocal_set(ranking: np.ndarray, i: int, size: int) -> set[int]:
    """Images among the first ``size`` of i that have i among their own first ``size``."""
    return {j for j in ranking[i, :size].tolist() if i in ranking[j, :size].tolist()}


def expanded_set(ranking: np.ndarray, i: int, size: int, half: int) -> list[int]:
    unexpanded = reciprocal_set(ranking, i, size)
    expanded = set(unexpanded)
    for candidate in unexpanded:
        half_set = reciprocal_set(ranking, candidate, half)
        if 3 * len(half_set & unexpanded) > 2 * len(half_set):
            expanded |= half_set
    return sorted(expanded)


def encode(distance: np.ndarray, ranking: np.ndarray, size: int, half: int, k2: int) -> np.ndarray:
    """V (N, N): softmax of -distance over the expanded set, then the mean over the first k2."""
    count = len(distance)
    encoding = np.zeros((count, count))
    for i in range(count):
        members = expanded_set(ranking, i, size, half)
        weight = np.exp(-distance[i, members])
        encoding[i, members] = weight / weight.sum()
    return np.stack([encoding[ranking[i, :k2]].mean(axis=0) for i in range(count)])


def jaccard(encoding: np.ndarray) -> np.ndarray:
    count = len(encoding)
    distance = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            shared = np.minimum(encoding[i], encoding[j]).sum()
            distance[i, j] = max(0.0, 1 - shared / (2 - shared))
    return distance


def jaccard_distance(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """As for clustering: lists are clipped to k1 entries, whatever slice is taken from them."""
    squared = squared_euclidean(features)
    ranking = ranked_lists(squared)[:, :k1]
    half = int(np.around(k1 / 2)) + 1
    return jaccard(encode(squared, ranking, k1 + 1, half, k2))


def rerank(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    squared = squared_euclidean(np.concatenate([query, gallery]))
    original = squared / squared.max(axis=1, keepdims=True)
    half = int(np.around(k1 / 2)) + 1
    encoding = encode(original, ranked_lists(original), k1 + 1, half, k2)
    mixed = (1 - lambda_value) * jaccard(encoding) + lambda_value * original
    return mixed[: len(query), len(query) :]
