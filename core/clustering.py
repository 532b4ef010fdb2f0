"""Pseudo-labels from a sparse distance graph."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components


def dbscan(distance: csr_array, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN labels (N,) int64 of a symmetric sparse ``distance`` (N, N); -1 marks an outlier.

    A pair that is not stored is farther apart than any ``eps`` (for Jaccard distances: eps < 1);
    an image is always within reach of itself. Equal to scikit-learn's labels on the dense matrix,
    numbers included: clusters are numbered by their first core image, and a border image joins the
    lowest numbered cluster with a core image in reach. The graph is only read, so that one graph
    serves several ``eps``.
    """
    count = distance.shape[0]
    rows, columns = _pairs_within(distance, eps)
    reach = 1 + np.bincount(rows, minlength=count)
    core = reach >= min_samples
    labels = np.full(count, -1, dtype=np.int64)
    labels[core] = _core_clusters(rows, columns, core)

    border = core[rows] & ~core[columns]
    lowest = np.full(count, count, dtype=np.int64)
    np.minimum.at(lowest, columns[border], labels[rows[border]])
    reached = lowest < count
    labels[reached] = lowest[reached]
    return labels


def _pairs_within(distance: csr_array, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Row and column indices of the stored off-diagonal pairs at a distance of at most ``eps``."""
    near = np.flatnonzero(distance.data <= float(eps))  # in the precision of the distances
    columns = distance.indices[near]
    bounds = np.searchsorted(near, distance.indptr)
    rows = np.repeat(np.arange(distance.shape[0], dtype=columns.dtype), np.diff(bounds))
    different = rows != columns
    return rows[different], columns[different]


def _core_clusters(rows: np.ndarray, columns: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Cluster numbers of the core images, in their order, numbered by first appearance."""
    both = core[rows] & core[columns]
    link = (np.ones(int(both.sum()), dtype=bool), (rows[both], columns[both]))
    graph = coo_array(link, shape=(len(core), len(core)))
    component = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(component[core], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]  # scipy promises no order of components
