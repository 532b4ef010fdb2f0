"""Self-paced cluster reliability without N x N label matrices: docs/methods/spcl.md, "Reliability".
Labels here are (N,) int64 with clusters 0..C-1 and -1 for un-clustered images, as `core.clustering.dbscan` returns
them. A criterion compares the cluster of an image at one eps with its cluster at another: an image pair is never
spelled out, only the sizes of the clusters and of their overlaps are counted.
"""

from __future__ import annotations

import numpy as np


def with_singletons(labels: np.ndarray) -> np.ndarray:
    """(N,) classes without -1: clusters keep their number, the k-th un-clustered image becomes class C + k."""
    classes = labels.copy()
    alone = labels < 0
    classes[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    return classes


def disagreement(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) 1 - |A_i & B_i| / |A_i | B_i|: A_i the images that share i's cluster in ``labels``, B_i in ``others``.

    Against a tighter clustering this is R_comp, against a looser one R_indep. 0 = the same cluster in both; an
    un-clustered image forms a set of its own.
    """
    _, first, first_size = np.unique(with_singletons(labels), return_inverse=True, return_counts=True)
    _, second, second_size = np.unique(with_singletons(others), return_inverse=True, return_counts=True)
    pair = first * np.int64(len(second_size)) + second
    _, overlap, overlap_size = np.unique(pair, return_inverse=True, return_counts=True)
    shared = overlap_size[overlap]
    union = first_size[first] + second_size[second] - shared
    return 1 - shared / union


def cluster_minima(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) least value (N,) among the images of each cluster."""
    minima = np.full(labels.max(initial=-1) + 1, np.inf)
    inside = labels >= 0
    np.minimum.at(minima, labels[inside], values[inside])
    return minima


def independence_threshold(labels: np.ndarray, loose: np.ndarray, share: float = 0.9) -> float | None:
    """The R_indep that ``share`` of the clusters with more than one image stay below or at; None without clusters.

    Released reading: of n clusters' minimal R_indep in ascending order, the one at place round(share n), halves
    to even, at most the last.
    """
    several = np.bincount(labels[labels >= 0]) > 1
    ordered = np.sort(cluster_minima(disagreement(labels, loose), labels)[several])
    if len(ordered) == 0:
        return None
    return float(ordered[min(len(ordered) - 1, round(share * len(ordered)))])


def independent(labels: np.ndarray, loose: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) whether an image's cluster is independent: its minimal R_indep is at most ``threshold``."""
    return _of_cluster(cluster_minima(disagreement(labels, loose), labels) <= threshold, labels)


def compact(labels: np.ndarray, tight: np.ndarray) -> np.ndarray:
    """(N,) whether an image holds its cluster together: R_comp(i) is at most the minimum over the cluster."""
    values = disagreement(labels, tight)
    return values <= _of_cluster(cluster_minima(values, labels), labels)


def keep_reliable(labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Labels in which only images with ``keep`` (N,) stay in their clusters, numbered 0..C'-1 in the old order.

    An image left alone in its cluster is un-clustered: as a class of its own it is the same to the loss.
    """
    kept = np.where(keep, labels, -1)
    sizes = np.bincount(kept[kept >= 0], minlength=labels.max(initial=-1) + 1)
    number = np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1)
    return _of_cluster(number, kept, otherwise=-1)


def _of_cluster(values: np.ndarray, labels: np.ndarray, otherwise: float = 0) -> np.ndarray:
    """(N,) ``values`` (C,) of each image's cluster; ``otherwise`` for un-clustered images."""
    result = np.full(len(labels), otherwise, dtype=values.dtype)
    inside = labels >= 0
    result[inside] = values[labels[inside]]
    return result
