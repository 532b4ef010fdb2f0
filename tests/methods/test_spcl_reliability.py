"""SpCL's self-paced reliability criteria, alone and in the epoch: docs/methods/spcl.md, "Reliability"."""

from __future__ import annotations

import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

import core.method
import methods.spcl.method as module
from methods.spcl import reliability
from methods.spcl.memory import HybridMemory
from tests.methods.draws import unit
from tests.methods.spcl_small import DIM, Data, M, begin, crowd_and_strangers, spcl


@pytest.fixture
def people(generator: torch.Generator) -> Tensor:
    return crowd_and_strangers(generator)


# ---- Self-paced reliability --------------------------------------------------------------------------------------


def literal_reliability(
    labels: np.ndarray, tight: np.ndarray, loose: np.ndarray, threshold: float | None
) -> tuple[np.ndarray, np.ndarray, float, set[frozenset[int]]]:
    """R_comp, R_indep, the threshold and the clusters that stay, from N x N matrices and loops."""
    same, same_tight, same_loose = (
        np.array([[i == j or (ids[i] >= 0 and ids[i] == ids[j]) for j in range(len(ids))] for i in range(len(ids))])
        for ids in (labels, tight, loose)
    )
    comp = 1 - (same & same_tight).sum(1) / (same | same_tight).sum(1)
    indep = 1 - (same & same_loose).sum(1) / (same | same_loose).sum(1)
    members = defaultdict(list)
    for i in range(len(labels)):
        members[frozenset(np.flatnonzero(same[i]).tolist())].append(i)
    if threshold is None:
        least = sorted(min(indep[list(group)]) for group in members if len(group) > 1)
        threshold = least[min(len(least) - 1, int(np.round(len(least) * 0.9)))]
    kept = set()
    for group in members:
        rows = sorted(group)
        if min(indep[rows]) <= threshold:
            stay = frozenset(i for i in rows if comp[i] <= min(comp[rows]))
            if len(stay) > 1:
                kept.add(stay)
    return comp, indep, threshold, kept


def partition(ids: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(ids == c).tolist()) for c in range(ids.max(initial=-1) + 1)}


def random_labels(rng: np.random.Generator, size: int = 60) -> np.ndarray:
    """Labels 0..C-1 with outliers, every cluster of at least two images."""
    labels = rng.integers(-1, 12, size)
    sizes = np.bincount(labels[labels >= 0], minlength=12)
    return np.unique(np.where((labels >= 0) & (sizes[labels] > 1), labels, -1), return_inverse=True)[1] - 1


def shaken(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """The labels with some images moved, some clusters joined, and other numbers."""
    other = np.where(rng.random(len(labels)) < share, rng.integers(-1, 12, len(labels)), labels)
    other[other == 3] = 4
    order = rng.permutation(13)
    return np.unique(np.where(other >= 0, order[other], -1), return_inverse=True)[1] - (other < 0).any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_reliability_equals_the_n_by_n_definition(seed: int, threshold: float | None) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng)
    tight, loose = shaken(rng, labels, 0.2), shaken(rng, labels, 0.3)
    comp, indep, expected, clusters = literal_reliability(labels, tight, loose, threshold)
    np.testing.assert_allclose(reliability.disagreement(labels, tight), comp, rtol=0, atol=1e-15)
    np.testing.assert_allclose(reliability.disagreement(labels, loose), indep, rtol=0, atol=1e-15)
    ours = reliability.independence_threshold(labels, loose) if threshold is None else threshold
    assert ours == pytest.approx(expected, abs=1e-15)
    keep = reliability.independent(labels, loose, ours) & reliability.compact(labels, tight)
    ids = reliability.keep_reliable(labels, keep)
    assert partition(ids) == clusters
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.unique(ids[ids >= 0]), np.arange(len(clusters)))


def test_equal_clusterings_have_no_disagreement_and_demote_nobody() -> None:
    labels = random_labels(np.random.default_rng(1))
    assert (labels < 0).any()
    assert not reliability.disagreement(labels, labels).any()
    assert reliability.independence_threshold(labels, labels) == 0
    keep = reliability.independent(labels, labels, 0.0) & reliability.compact(labels, labels)
    np.testing.assert_array_equal(reliability.keep_reliable(labels, keep), labels)


def test_joined_clusters_are_not_independent_and_stray_members_are_not_compact() -> None:
    labels = np.repeat([0, 1, 2, -1], [4, 4, 4, 2])
    loose = np.repeat([0, 1, -1], [8, 4, 2])  # clusters 0 and 1 join
    tight = labels.copy()
    tight[[8, 9]] = -1  # two images fall off cluster 2
    joined = reliability.independent(labels, loose, threshold=0.2)
    np.testing.assert_array_equal(joined, labels == 2)
    held = reliability.compact(labels, tight)
    np.testing.assert_array_equal(np.flatnonzero(~held & (labels >= 0)), [8, 9])
    np.testing.assert_array_equal(reliability.keep_reliable(labels, joined & held), np.repeat([-1, 0, -1], [10, 2, 2]))


def test_a_cluster_of_which_one_image_is_left_is_no_cluster() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    ids = reliability.keep_reliable(labels, np.array([True, False, False, True, True]))
    np.testing.assert_array_equal(ids, [-1, -1, -1, 0, 0])


def test_the_threshold_is_the_value_at_nine_tenths_of_the_clusters() -> None:
    # Ten clusters of 2; cluster c loses its pair to a looser one of c more images, so R_indep = 1 - 2 / (2 + c).
    labels = np.concatenate([np.repeat(np.arange(10), 2), np.full(45, -1)])
    loose = np.concatenate([np.repeat(np.arange(10), 2), np.repeat(np.arange(10), np.arange(10))])
    assert reliability.independence_threshold(labels, loose) == 1 - 2 / (2 + 9)
    assert reliability.independence_threshold(labels, loose, share=0.5) == 1 - 2 / (2 + 5)
    assert reliability.independence_threshold(labels, loose, share=0.0) == 0
    assert reliability.independence_threshold(np.full(4, -1), np.zeros(4, np.int64)) is None


def test_clusters_of_one_image_have_no_part_in_the_threshold() -> None:
    pairs = np.repeat(np.arange(4), 2)
    labels, loose = np.r_[pairs, 4, -1, -1, -1], np.r_[pairs, 4, 4, 4, 4]
    assert reliability.independence_threshold(labels, loose) == 0


def test_labels_of_a_large_dataset_need_no_square_matrix() -> None:
    rng = np.random.default_rng(0)
    labels = np.unique(rng.integers(0, 3000, 33_000), return_inverse=True)[1]
    labels[rng.random(33_000) < 0.3] = -1
    labels = np.unique(labels, return_inverse=True)[1] - 1
    tracemalloc.start()
    reliability.compact(labels, rng.permutation(labels))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_singletons_get_the_numbers_after_the_clusters() -> None:
    np.testing.assert_array_equal(reliability.with_singletons(np.array([1, -1, 0, -1, 1])), [1, 2, 0, 3, 1])
    np.testing.assert_array_equal(reliability.with_singletons(np.full(3, -1)), [0, 1, 2])


# ---- The epoch ---------------------------------------------------------------------------------------------------


def demoting_steps(people: Tensor) -> dict[str, int]:
    """Images in clusters, by which criteria apply."""
    rows = {"both": {}, "none": {"independence": False, "compactness": False}}
    rows |= {"independence": {"compactness": False}, "compactness": {"independence": False}}
    return {name: int((begin(spcl(gap=0.1, **row), Data(people)).ids >= 0).sum()) for name, row in rows.items()}


def test_each_criterion_demotes_images_and_is_a_switch(people) -> None:
    left = demoting_steps(people)
    assert left["both"] <= min(left["independence"], left["compactness"])
    assert max(left["independence"], left["compactness"]) < left["none"]


def test_without_a_gap_the_criteria_change_no_label(people) -> None:
    plain = begin(spcl(independence=False, compactness=False), Data(people)).ids
    np.testing.assert_array_equal(begin(spcl(gap=0.0), Data(people)).ids, plain)
    assert (plain < 0).any()


def test_three_clusterings_share_one_distance_graph(people, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[csr_array] = []
    clustered: list[tuple[int, float]] = []
    distance, dbscan = core.method.jaccard_distance, module.dbscan
    limits: list[float] = []

    def counted(*arguments: object, limit: float, **named: object) -> csr_array:
        limits.append(round(limit, 6))
        graphs.append(distance(*arguments, limit=limit, **named))
        return graphs[-1]

    def noted(graph: csr_array, eps: float, min_samples: int) -> np.ndarray:
        clustered.append((id(graph), round(eps, 6)))
        return dbscan(graph, eps, min_samples)

    monkeypatch.setattr(core.method, "jaccard_distance", counted)
    monkeypatch.setattr(module, "dbscan", noted)
    begin(spcl(), Data(people))
    assert len(graphs) == 1
    assert {graph for graph, _ in clustered} == {id(graphs[0])}
    assert sorted(eps for _, eps in clustered) == [0.58, 0.6, 0.62]
    begin(spcl(independence=False), Data(people))
    assert limits == [0.62, 0.6]


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_the_threshold_is_taken_at_the_configured_share(people, monkeypatch, share: float) -> None:
    asked = []
    monkeypatch.setattr("methods.spcl.method.independence_threshold", lambda *given: asked.append(given[2]) or 0.5)
    begin(spcl(gap=0.1, independence_share=share), Data(people))
    assert asked == [share]


def test_the_threshold_is_fixed_by_the_first_epoch_with_clusters(people, generator) -> None:
    method = spcl(gap=0.1)
    strangers = csr_array((np.zeros(40), np.arange(40), np.arange(41)), shape=(40, 40))
    assert (method._reliable_clusters(strangers) == -1).all()
    assert method.threshold is None
    begin(method, Data(people))
    fixed = method.threshold
    assert fixed is not None
    method.instances = HybridMemory(F.normalize(people + 0.3 * unit(generator, 200, DIM), dim=1), M)
    begin(method, Data(people), epoch=1)
    assert method.threshold == fixed
    assert spcl().threshold is None
