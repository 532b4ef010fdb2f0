"""The audit of pseudo-labels against counts over all pairs, written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from evaluation.audit import audit

LABELS = np.array([0, 0, 0, 1, 1, -1, -1, 2, 2, 2])
PEOPLE = np.array([7, 7, 8, 8, 8, 8, 9, 9, 9, 9])
CAMERAS = np.array([0, 1, 1, 0, 0, 2, 0, 0, 1, 2])


def pairs_together(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs that share a cluster; an outlier shares none."""
    pairs = combinations(range(len(labels)), 2)
    return {(i, j) for i, j in pairs if labels[i] == labels[j] and labels[i] >= 0}


def draw(count: int, clusters: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, clusters, size=count)


def test_every_value_of_a_small_example():
    values = audit(LABELS, PEOPLE, CAMERAS)
    assert values["clusters"] == 3
    assert values["outlier_share"] == pytest.approx(0.2)
    assert values["pair_precision"] == pytest.approx(5 / 7)
    assert values["pair_recall"] == pytest.approx(5 / (1 + 6 + 6))
    assert values["purity"] == pytest.approx(7 / 8)
    assert values["cross_camera_link_share"] == pytest.approx(5 / 7)
    assert all(isinstance(value, float) for value in values.values())


@pytest.mark.parametrize("seed", range(5))
def test_pair_values_equal_those_counted_pair_by_pair(seed):
    labels, previous = draw(60, 6, seed), draw(60, 8, seed + 100)
    people, cameras = draw(60, 9, seed + 200) + 1, draw(60, 3, seed + 300) + 1
    values = audit(labels, people, cameras, previous)
    linked, true, before = pairs_together(labels), pairs_together(people), pairs_together(previous)
    assert values["pair_precision"] == pytest.approx(len(linked & true) / len(linked))
    assert values["pair_recall"] == pytest.approx(len(linked & true) / len(true))
    majority = sum(np.bincount(people[labels == c]).max() for c in range(6))
    assert values["purity"] == pytest.approx(majority / (labels >= 0).sum())
    across = sum(cameras[i] != cameras[j] for i, j in linked)
    assert values["cross_camera_link_share"] == pytest.approx(across / len(linked))
    assert values["churn"] == pytest.approx(1 - len(linked & before) / len(linked | before))


def test_perfect_labels_have_perfect_scores_whatever_their_numbers():
    values = audit(100 - PEOPLE, PEOPLE)
    for name in ("ari", "nmi", "purity", "pair_precision", "pair_recall"):
        assert values[name] == pytest.approx(1)


def test_agreement_is_measured_over_clustered_images_and_recall_over_all():
    some = np.where(np.arange(10) % 2, PEOPLE, -1)
    values = audit(some, PEOPLE)
    assert values["ari"] == values["nmi"] == pytest.approx(1)
    assert values["pair_recall"] < 0.5


def test_churn_is_symmetric_and_ignores_numbering():
    other = draw(10, 3, seed=1)
    forth = audit(LABELS, PEOPLE, previous=other)["churn"]
    assert forth == audit(other, PEOPLE, previous=LABELS)["churn"]
    renamed = np.array([2, 0, 1, -1])[LABELS]
    assert audit(renamed, PEOPLE, previous=LABELS)["churn"] == 0
    assert audit(np.full(10, -1), PEOPLE, previous=LABELS)["churn"] == 1


def test_what_is_not_given_is_not_reported():
    assert {"cross_camera_link_share", "churn"}.isdisjoint(audit(LABELS, PEOPLE))


def test_outliers_alone_score_zero():
    values = audit(np.full(10, -1), PEOPLE, CAMERAS, np.full(10, -1))
    assert values.pop("outlier_share") == 1
    assert set(values.values()) == {0.0}


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="10 labels and 9 person_ids"):
        audit(LABELS, PEOPLE[:9])
    with pytest.raises(ValueError, match="4 previous"):
        audit(LABELS, PEOPLE, previous=LABELS[:4])
