"""The sparse Jaccard distance against golden values, a literal dense oracle and its properties."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from core import jaccard
from core.approximate import neighbor_lists
from core.clustering import dbscan
from core.errors import UserError
from core.jaccard import half_size, jaccard_distance, reciprocal_encoding
from core.neighbors import as_float_matrix, knn
from tests import reference_jaccard as reference

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("jaccard_*.npz"))


def people(count: int, dimensions: int, seed: int, noise: float = 0.6) -> np.ndarray:
    """Unit features of people with about eight images each, blurred into one another."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // 8), dimensions))
    features = centres[rng.integers(len(centres), size=count)]
    features = features + noise * rng.standard_normal((count, dimensions))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def dense(distance) -> np.ndarray:
    """The full matrix: what is not stored is at distance 1."""
    full = np.ones(distance.shape, dtype=distance.dtype)
    rows = np.repeat(np.arange(distance.shape[0]), np.diff(distance.indptr))
    full[rows, distance.indices] = distance.data
    return full


def up_to(limit: float, distance: csr_array) -> csr_array:
    """The stored pairs at a distance of at most ``limit``."""
    near = distance.data <= limit
    rows = np.repeat(np.arange(distance.shape[0]), np.diff(distance.indptr))
    return csr_array((distance.data[near], (rows[near], distance.indices[near])), shape=distance.shape)


def assert_same_bits(found: csr_array, expected: csr_array) -> None:
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


def assert_is_a_jaccard_distance(distance) -> None:
    full = dense(distance)
    np.testing.assert_allclose(full, full.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(full), 0, atol=1e-6)
    assert full.min() >= 0
    assert full.max() <= 1
    assert distance.dtype == np.float32
    assert (distance.data < 1).all()
    assert distance.has_canonical_format


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_distances_are_met(path):
    golden = np.load(path)
    distance = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    np.testing.assert_allclose(dense(distance), golden["distance"], rtol=1e-4, atol=1e-6)


def test_there_are_golden_files():
    assert GOLDEN


@pytest.mark.parametrize(
    ("count", "dimensions", "k1", "k2"),
    [
        (90, 16, 20, 6),
        (77, 5, 9, 3),
        (64, 32, 30, 1),
        (64, 3, 7, 2),
        (40, 8, 5, 9),  # k2 > k1: the lists end at k1
        (33, 4, 1, 1),
        (33, 4, 2, 2),
        (33, 4, 3, 1),
        (12, 4, 30, 6),  # N < k1
        (3, 4, 30, 6),  # N < k2
        (1, 4, 30, 6),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_and_stored_pairs_equal_the_literal_definition(count, dimensions, k1, k2, seed):
    features = people(count, dimensions, seed)
    distance = jaccard_distance(features, k1, k2)
    expected = reference.jaccard_distance(features, k1, k2)
    np.testing.assert_allclose(dense(distance), expected, rtol=1e-4, atol=2e-6)
    stored = np.zeros(expected.shape, dtype=bool)
    stored[np.repeat(np.arange(count), np.diff(distance.indptr)), distance.indices] = True
    np.testing.assert_array_equal(stored, expected < 1)
    assert_is_a_jaccard_distance(distance)


def test_duplicated_images_equal_the_literal_definition():
    features = np.repeat(people(30, 8, seed=3), 2, axis=0)
    distance = dense(jaccard_distance(features, 10, 4))
    np.testing.assert_allclose(distance, reference.jaccard_distance(features, 10, 4), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("k1", [5, 15])
def test_identical_images_more_than_k1_keep_the_properties(k1):
    features = np.repeat(people(2, 8, seed=0), 20, axis=0)
    assert_is_a_jaccard_distance(jaccard_distance(features, k1, 3))


def test_images_that_are_all_equally_far_apart_keep_the_properties():
    distance = jaccard_distance(np.eye(25, dtype=np.float32), 6, 2)
    assert_is_a_jaccard_distance(distance)


def test_groups_without_common_neighbors_are_not_linked():
    group = people(20, 4, seed=5)
    apart = np.block([[group, np.zeros_like(group)], [np.zeros_like(group), group]])
    distance = dense(jaccard_distance(apart, 8, 3))
    assert (distance[:20, 20:] == 1).all()
    np.testing.assert_allclose(distance[:20, :20], distance[20:, 20:], atol=1e-6)


@pytest.mark.parametrize("k2", [1, 6])
def test_rows_of_the_encoding_are_positive_and_sum_to_one(k2):
    features = torch.from_numpy(people(80, 8, seed=2))
    ranking = knn(features, 15)[1]
    encoding = reciprocal_encoding(features, ranking, 15, half_size(15), k2)
    np.testing.assert_allclose(encoding.sum(axis=1), 1, atol=1e-5)
    assert (encoding.data > 0).all()


def test_half_sets_round_to_even():
    assert [half_size(k1) for k1 in (15, 20, 25, 30)] == [9, 11, 13, 16]


def test_a_candidate_must_have_more_than_two_thirds_of_its_half_set_inside():
    # The set of 0 is {0, 1, 2}. The half set of 1, {0, 1, 2, 4}, has three of four inside and joins.
    lists = ["0123", "1024", "2013", "3455", "4135", "5344"]
    ranking = np.array([[int(image) for image in row] for row in lists])
    assert jaccard._expanded_sets(ranking, half=4)[[0]].indices.tolist() == [0, 1, 2, 4]
    # Cut to three entries each half set is {0, 1, 2}: nothing is added.
    assert jaccard._expanded_sets(ranking, half=3)[[0]].indices.tolist() == [0, 1, 2]
    # Exactly two thirds are not enough: 0 knows {0, 1}, the half set of 1 is {0, 1, 2}.
    ranking = np.array([[0, 1, 3], [1, 0, 2], [2, 1, 3], [3, 2, 1]])
    assert jaccard._expanded_sets(ranking, half=3)[[0]].indices.tolist() == [0, 1]


def test_chunks_and_threads_leave_every_bit_as_it_is(monkeypatch):
    features = people(120, 8, seed=4)
    whole = jaccard_distance(features, 12, 4)
    monkeypatch.setattr(jaccard, "CHUNK_TERMS", 200)
    monkeypatch.setattr(jaccard, "CHUNK_ROWS", 7)
    monkeypatch.setattr(jaccard, "BLOCK_ROWS", 11)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert_same_bits(jaccard_distance(features, 12, 4), whole)
    assert_same_bits(jaccard_distance(features, 12, 4, limit=0.6), up_to(0.6, whole))


def test_indices_of_64_bits_where_32_do_not_reach_change_no_bit(monkeypatch):
    features = people(120, 8, seed=4)
    narrow = jaccard_distance(features, 12, 4)
    assert narrow.indices.dtype == np.int32
    assert jaccard.index_type(2**31 - 1) is np.int32
    assert jaccard.index_type(2**31) is np.int64
    monkeypatch.setattr(jaccard, "NARROW", 0)
    wide = jaccard_distance(features, 12, 4)
    assert wide.indices.dtype == wide.indptr.dtype == np.int64
    assert_same_bits(wide, narrow)
    np.testing.assert_array_equal(dbscan(wide, 0.6, 4), dbscan(narrow, 0.6, 4))


def case(path: Path) -> tuple[np.ndarray, int, int]:
    golden = np.load(path)
    return golden["features"], int(golden["k1"]), int(golden["k2"])


LIMITED = [
    *(pytest.param(*case(path), id=path.stem) for path in GOLDEN),
    *(pytest.param(people(count, 16, seed), 20, 6, id=f"{count} people") for seed, count in enumerate((1, 40, 333))),
    pytest.param(np.repeat(people(20, 8, seed=3), 3, axis=0), 10, 4, id="duplicates"),
]


@pytest.mark.parametrize(("features", "k1", "k2"), LIMITED)
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.6, 0.95])
def test_a_limit_stores_the_pairs_up_to_it_with_the_same_bits_and_changes_no_label(features, k1, k2, limit):
    whole = jaccard_distance(features, k1, k2)
    part = jaccard_distance(features, k1, k2, limit=limit)
    assert_same_bits(part, up_to(limit, whole))
    for eps in {0.0, limit / 2, limit}:
        np.testing.assert_array_equal(dbscan(part, eps, 4), dbscan(whole, eps, 4))


def test_a_pair_exactly_at_the_limit_is_stored():
    whole = jaccard_distance(people(90, 16, seed=0), 20, 6)
    distances = np.unique(whole.data)
    limit = distances[len(distances) // 2]
    assert jaccard_distance(people(90, 16, seed=0), 20, 6, limit=float(limit)).data.max() == limit


def test_with_a_limit_the_stored_pairs_of_an_image_do_not_grow_with_the_images():
    stored = {
        (count, limit): jaccard_distance(people(count, 24, seed=0, noise=0.5), 20, 6, limit=limit).nnz / count
        for count in (400, 1600)
        for limit in (None, 0.6)
    }
    assert stored[1600, None] > 1.5 * stored[400, None]
    assert stored[1600, 0.6] < 1.1 * stored[400, 0.6] < 0.2 * stored[1600, None]


def test_a_limit_that_is_no_distance_below_1_is_refused():
    for limit in (1.0, -0.1, np.nan):
        with pytest.raises(UserError, match="largest Jaccard distance that is stored"):
            jaccard_distance(people(30, 8, seed=0), 10, limit=limit)


def test_lists_searched_before_give_the_same_distance_even_if_longer():
    features = people(100, 8, seed=6)
    expected = jaccard_distance(features, 10, 4)
    reused = jaccard_distance(features, 10, 4, neighbors=knn(features, 25)[1])
    np.testing.assert_array_equal(dense(reused), dense(expected))


@pytest.mark.filterwarnings("error")
def test_features_in_a_file_that_is_mapped_into_memory_and_only_read_give_the_same_bits(tmp_path):
    features = people(100, 8, seed=6)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert as_float_matrix(mapped).data_ptr() == mapped.ctypes.data
    np.testing.assert_array_equal(knn(mapped, 10)[1], knn(features, 10)[1])
    assert_same_bits(jaccard_distance(mapped, 10, 4), jaccard_distance(features, 10, 4))
    for search in ("ivf", "hnsw"):
        np.testing.assert_array_equal(neighbor_lists(mapped, 10, search)[0], neighbor_lists(features, 10, search)[0])


def test_lists_that_do_not_fit_are_refused():
    features = people(30, 8, seed=0)
    with pytest.raises(ValueError, match=r"need \(30, 10\)"):
        jaccard_distance(features, 10, neighbors=knn(features, 9)[1])
    with pytest.raises(ValueError, match="first in its own list"):
        jaccard_distance(features, 10, neighbors=knn(features, 11)[1][:, 1:])
    with pytest.raises(ValueError, match="at least 1"):
        jaccard_distance(features, 10, k2=0)


def test_no_dense_matrix_is_ever_held():
    count = 8000
    features = people(count, 16, seed=0, noise=0.3)
    neighbors = knn(features, 10)[1]
    tracemalloc.start()
    jaccard_distance(features, 10, 3, neighbors=neighbors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count**2  # one byte per pair; it takes about a third of that


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_cuda_give_the_same_distances():
    features = people(300, 32, seed=7)
    expected = dense(jaccard_distance(features, 20, 6))
    on_device = jaccard_distance(torch.from_numpy(features).cuda(), 20, 6)
    np.testing.assert_allclose(dense(on_device), expected, rtol=1e-4, atol=2e-6)
