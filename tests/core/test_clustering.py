"""DBSCAN on sparse graphs against scikit-learn on dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array
from sklearn.cluster import DBSCAN

from core.clustering import dbscan
from core.jaccard import jaccard_distance

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("jaccard_*.npz"))


def random_distances(count: int, links: float, seed: int) -> np.ndarray:
    """Symmetric float32 distances on a grid of twentieths, so that many equal eps; mostly 1."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, 20, size=(count, count)) / 20).astype(np.float32)
    upper = np.triu(np.where(rng.random((count, count)) < links, drawn, 1), k=1)
    full = upper + upper.T
    np.fill_diagonal(full, 0)
    return full.astype(np.float32)


def stored_below_one(full: np.ndarray) -> csr_array:
    rows, columns = np.nonzero(full < 1)
    return csr_array(coo_array((full[rows, columns], (rows, columns)), shape=full.shape))


def reference_labels(full: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(full)


@pytest.mark.parametrize("seed", range(40))
def test_labels_equal_scikit_learn_on_the_dense_matrix(seed):
    rng = np.random.default_rng(1000 + seed)
    count = int(rng.integers(1, 120))
    full = random_distances(count, links=rng.choice([0.02, 0.05, 0.1, 0.3]), seed=seed)
    graph = stored_below_one(full)
    for eps in (0.25, 0.5, 0.6, 0.95):
        for min_samples in (1, 2, 4, 7):
            labels = dbscan(graph, eps, min_samples)
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(labels, reference_labels(full, eps, min_samples))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_labels_are_met(path):
    golden = np.load(path)
    graph = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    labels = dbscan(graph, float(golden["eps"]), int(golden["min_samples"]))
    np.testing.assert_array_equal(labels, golden["labels"])


def test_a_border_image_joins_the_lowest_numbered_cluster_in_reach():
    full = np.ones((9, 9), dtype=np.float32)
    full[np.ix_(range(1, 5), range(1, 5))] = 0.1  # first cluster, core images 1-4
    full[np.ix_(range(5, 9), range(5, 9))] = 0.1  # second cluster, core images 5-8
    full[0, [4, 5]] = full[[4, 5], 0] = 0.3  # image 0 touches both and is core of neither
    np.fill_diagonal(full, 0)
    labels = dbscan(stored_below_one(full), 0.5, min_samples=4)
    np.testing.assert_array_equal(labels, [0, 0, 0, 0, 0, 1, 1, 1, 1])


def test_without_dense_regions_everything_is_an_outlier():
    graph = stored_below_one(random_distances(30, links=0.1, seed=0))
    assert (dbscan(graph, 0.6, min_samples=31) == -1).all()


def test_a_missing_diagonal_still_counts_the_image_itself():
    full = random_distances(50, links=0.1, seed=3)
    graph = stored_below_one(full)
    rows, columns = np.nonzero((full < 1) & ~np.eye(50, dtype=bool))
    bare = csr_array(coo_array((full[rows, columns], (rows, columns)), shape=full.shape))
    np.testing.assert_array_equal(dbscan(bare, 0.5, 4), dbscan(graph, 0.5, 4))


def test_one_graph_serves_several_eps():
    graph = stored_below_one(random_distances(80, links=0.1, seed=5))
    before = graph.data.copy()
    first = dbscan(graph, 0.6, 4)
    dbscan(graph, 0.3, 4)
    np.testing.assert_array_equal(dbscan(graph, 0.6, 4), first)
    np.testing.assert_array_equal(graph.data, before)


def test_a_numpy_eps_compares_like_a_plain_number():
    full = np.full((4, 4), 0.6, dtype=np.float32)  # a little more than 0.6 in float64
    np.fill_diagonal(full, 0)
    assert (dbscan(stored_below_one(full), np.float64(0.6), 4) == 0).all()
