"""Exact k-NN: every backend against a full sort, and what happens at ties."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from core import neighbors
from core.neighbors import NonFiniteFeatures, knn

HAS_FAISS = importlib.util.find_spec("faiss") is not None
BACKENDS = [
    pytest.param("faiss", marks=pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed")),
    "torch",
    "auto",
]


def unit_features(count: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dimensions, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1)


def sorted_neighbors(queries: torch.Tensor, features: torch.Tensor, k: int) -> np.ndarray:
    similarity = queries.double().numpy() @ features.double().numpy().T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "dimensions", "k"), [(200, 16, 7), (57, 3, 57), (1, 4, 1)])
def test_neighbors_are_those_of_a_full_sort(backend, count, dimensions, k):
    features = unit_features(count, dimensions)
    similarity, index = knn(features, k, backend=backend)
    assert similarity.dtype == np.float32
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, sorted_neighbors(features, features, k))
    expected = (features[:, None] * features[index]).sum(dim=2)
    np.testing.assert_allclose(similarity, expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_queries_that_several_devices_search_are_put_together_in_order(monkeypatch):
    features = unit_features(500, 16)
    alone = knn(features, 7, backend="torch")
    monkeypatch.setattr(neighbors, "BLOCK_ELEMENTS", 500 * 64)
    monkeypatch.setattr(neighbors, "search_devices", lambda bank: [bank.device] * 3)
    together = knn(features, 7, backend="torch")
    np.testing.assert_array_equal(together[1], alone[1])
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-6)


def test_other_cuda_devices_search_too_where_they_have_room(monkeypatch):
    free = {0: 0, 1: 10**12, 2: 1000, 3: 10**12}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 10**12))
    bank = type("Bank", (), {"device": torch.device("cuda", 0), "nbytes": 10**6})()
    assert [device.index for device in neighbors.search_devices(bank)] == [0, 1, 3]
    assert neighbors.search_devices(torch.zeros(2, 2)) == [torch.device("cpu")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_separate_queries_search_among_the_features(backend):
    features, queries = unit_features(120, 8), unit_features(30, 8, seed=1)
    _, index = knn(features, 5, queries=queries.numpy(), backend=backend)
    np.testing.assert_array_equal(index, sorted_neighbors(queries, features, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_neighbors_than_images_are_clipped(backend):
    similarity, index = knn(unit_features(6, 4), 30, backend=backend)
    assert similarity.shape == index.shape == (6, 6)
    assert (np.sort(index, axis=1) == np.arange(6)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_image_leads_its_own_list_even_among_many_duplicates(backend):
    features = unit_features(1, 4).repeat(50, 1)
    _, index = knn(features, 5, backend=backend)
    np.testing.assert_array_equal(index[:, 0], np.arange(50))
    assert all(len(set(row)) == 5 for row in index.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_similarities_are_listed_by_ascending_index(backend):
    features = torch.eye(6)[[3, 0, 3, 0, 3, 0]]
    _, index = knn(features, 6, backend=backend)
    np.testing.assert_array_equal(index[4], [4, 0, 2, 1, 3, 5])
    _, index = knn(features, 6, queries=features[:1], backend=backend)
    np.testing.assert_array_equal(index[0], [0, 2, 4, 1, 3, 5])


def test_the_torch_search_does_not_depend_on_its_blocks(monkeypatch):
    features = unit_features(101, 16)
    _, whole = knn(features, 9, backend="torch")
    monkeypatch.setattr(neighbors, "BLOCK_ELEMENTS", 700)
    _, blocks = knn(features, 9, backend="torch")
    np.testing.assert_array_equal(whole, blocks)


def test_squared_norms_by_blocks_have_the_bits_of_all_rows_at_once():
    features = unit_features(2051, 37)
    assert torch.equal(neighbors.squared_norms(features), features.square().sum(dim=1))


def test_lists_longer_than_a_block_are_ordered_alike_with_each_image_first(monkeypatch):
    features = unit_features(1, 4).repeat(50, 1)
    _, whole = knn(features, 5, backend="torch")
    monkeypatch.setattr(neighbors, "BLOCK_ELEMENTS", 35)
    _, blocks = knn(features, 5, backend="torch")
    np.testing.assert_array_equal(whole, blocks)


def test_autocast_and_reduced_precision_around_the_search_do_not_reach_it():
    features = unit_features(300, 64)
    expected, _ = knn(features, 9, backend="torch")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similarity, _ = knn(features, 9, backend="torch")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(similarity, expected)


def test_features_with_a_gradient_or_in_half_precision_are_accepted():
    features = unit_features(40, 8).half().requires_grad_()
    _, index = knn(features, 3)
    np.testing.assert_array_equal(index[:, 0], np.arange(40))


def test_without_faiss_auto_uses_torch_and_asking_for_faiss_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(neighbors, "_faiss_search", None)
    features = unit_features(30, 4)
    np.testing.assert_array_equal(knn(features, 3)[1], sorted_neighbors(features, features, 3))
    with pytest.raises(ValueError, match="not installed; choose auto"):
        knn(features, 3, backend="faiss")


def test_mistakes_are_named():
    features = unit_features(10, 4)
    with pytest.raises(NonFiniteFeatures, match="1 of 10 feature rows"):
        knn(features.index_fill(0, torch.tensor([3]), torch.nan), 2)
    with pytest.raises(ValueError, match="queries have 3 dimensions, features 4"):
        knn(features, 2, queries=features[:, :3])
    with pytest.raises(ValueError, match="unknown k-NN backend 'annoy'"):
        knn(features, 2, backend="annoy")
    with pytest.raises(ValueError, match="non-empty"):
        knn(features[:0], 2)
    with pytest.raises(ValueError, match="k = 0"):
        knn(features, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbors_on_cuda_equal_those_on_the_cpu(backend):
    features = unit_features(500, 32)
    _, expected = knn(features, 20, backend="torch")
    _, index = knn(features.cuda(), 20, backend=backend)
    np.testing.assert_array_equal(index, expected)
