"""Approximate neighbour lists: their form, the recall that is told of them, and the labels that follow."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from core import approximate
from core.approximate import neighbor_lists, recall
from core.clustering import dbscan
from core.errors import UserError
from core.jaccard import jaccard_distance
from core.neighbors import knn

HAS_FAISS = importlib.util.find_spec("faiss") is not None
needs_faiss = pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed")
SEARCHES = [pytest.param(search, marks=needs_faiss) for search in ("ivf", "hnsw")]


def people(count: int = 3000, dimensions: int = 32, spread: float = 0.25) -> torch.Tensor:
    """Unit features of people with 20 images each."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(-(-count // 20), dimensions, generator=generator), dim=1)
    noise = torch.randn(count, dimensions, generator=generator) * spread / dimensions**0.5
    return torch.nn.functional.normalize(centres.repeat(20, 1)[:count] + 2 * noise, dim=1)


def found_one_by_one(lists: np.ndarray, exact: np.ndarray, rows: range) -> float:
    return float(np.mean([len(set(lists[row]) & set(exact[row])) / lists.shape[1] for row in rows]))


def test_an_exact_search_is_that_of_knn_and_has_no_recall():
    features = people(500)
    lists, share = neighbor_lists(features, 12)
    np.testing.assert_array_equal(lists, knn(features, 12)[1])
    assert share is None


@pytest.mark.parametrize("search", SEARCHES)
def test_lists_are_complete_begin_with_the_image_and_fall_in_similarity(search):
    features = people()
    lists, _ = neighbor_lists(features, 15, search)
    assert lists.shape == (3000, 15)
    assert lists.dtype == np.int64
    np.testing.assert_array_equal(lists[:, 0], np.arange(3000))
    assert all(len(set(row)) == 15 for row in lists.tolist())
    similarity = (features[:, None] * features[lists]).sum(dim=2)
    assert (similarity[:, :-1] - similarity[:, 1:]).min() > -1e-6


@pytest.mark.parametrize("search", SEARCHES)
def test_the_recall_is_that_of_the_sampled_lists_one_by_one(search, monkeypatch):
    features = people()
    monkeypatch.setattr(approximate, "PROBES", 2)
    monkeypatch.setattr(approximate, "LINKS", 4)
    monkeypatch.setattr(approximate, "BUILD_DEPTH", 4)
    monkeypatch.setattr(approximate, "SEARCH_DEPTH", 1)
    monkeypatch.setattr(approximate, "SAMPLE", 1000)
    lists, share = neighbor_lists(features, 30, search)
    exact = knn(features, 30)[1]
    rows = np.unique(np.linspace(0, 2999, 1000).astype(int))
    assert share == pytest.approx(found_one_by_one(lists, exact, rows), abs=1e-12)
    assert 0.3 < share < 0.999


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_nearly_all_neighbours_and_nearly_the_same_clusters(search):
    features = people()
    lists, share = neighbor_lists(features, 30, search)
    assert share > 0.95
    labels, exact = (
        dbscan(jaccard_distance(features, 30, 6, neighbors=given, limit=0.6), 0.6, 4) for given in (lists, None)
    )
    assert exact.max() > 100
    assert adjusted_rand_score(exact, labels) > 0.98


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_the_same_in_every_run(search):
    features = people()
    first, second = (neighbor_lists(features, 15, search)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@needs_faiss
def test_an_image_whose_cells_hold_too_few_is_searched_exactly(monkeypatch):
    features = people()
    monkeypatch.setattr(approximate, "PROBES", 1)
    lists, share = neighbor_lists(features, 400, "ivf")  # a cell holds some 65 images
    np.testing.assert_array_equal(lists, knn(features, 400)[1])
    assert share == 1


@pytest.mark.parametrize("search", SEARCHES)
def test_fewer_images_than_neighbours_are_listed_whole(search):
    lists, share = neighbor_lists(people(12), 30, search)
    assert (np.sort(lists, axis=1) == np.arange(12)).all()
    assert share == 1


def test_the_recall_of_lists_that_lack_a_known_share_is_that_share(monkeypatch):
    features = people(600)
    lists = knn(features, 20)[1]
    strangers = knn(features, 600)[1][:, -5:]
    assert recall(features, lists) == 1
    lists[:, -5:] = strangers
    assert recall(features, lists) == pytest.approx(0.75)


def test_cuvs_is_asked_for_the_algorithm_that_stands_for_the_search(monkeypatch):
    """Without a GPU: a stand-in of the module, which fills the given tensors as the documentation of cuVS says."""
    features = people(300)
    asked = {}

    def build(bank, k, params, *, indices, distances):
        asked.update(params, k=k)
        squared, nearest = torch.cdist(bank, bank).square().topk(k, largest=False)
        indices.copy_(nearest)
        distances.copy_(squared)

    stand_in = SimpleNamespace(all_neighbors=SimpleNamespace(AllNeighborsParams=dict, build=build))
    monkeypatch.setitem(sys.modules, "cuvs", SimpleNamespace(neighbors=stand_in))
    monkeypatch.setitem(sys.modules, "cuvs.neighbors", stand_in)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "cuvs")
    for search, algorithm in (("ivf", "ivf_pq"), ("hnsw", "nn_descent")):
        similarity, index = approximate._searcher(search, torch.device("cuda"))(features, 7)
        assert asked == {"algo": algorithm, "metric": "sqeuclidean", "k": 7}
        np.testing.assert_array_equal(index, knn(features, 7, backend="torch")[1])
        np.testing.assert_allclose(similarity, (features[:, None] * features[index]).sum(dim=2), atol=1e-5)


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(UserError, match="unknown search 'annoy'; choose exact, ivf, hnsw"):
        neighbor_lists(people(40), 5, "annoy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"clustering.search ivf needs faiss.*choose exact"):
        neighbor_lists(people(40), 5, "ivf")
