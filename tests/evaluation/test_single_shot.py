"""The protocol of one random gallery image per person, against enumeration and the ordinary ranking."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evaluation.distances import EvaluationError
from evaluation.ranking import evaluate_ranking
from evaluation.single_shot import SingleShotScores, draw_galleries, evaluate_single_shot


def world(seed: int, per_person: int, levels: int | None = None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Distances and labels of 8 people with ``per_person`` images in each of two views; all images are queries."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(1, 9), 2 * per_person)
    cameras = np.tile(np.repeat([1, 2], per_person), 8)
    order = rng.permutation(len(ids))
    ids, cameras = ids[order], cameras[order]
    distance = rng.normal(size=(len(ids), len(ids)))
    return (distance if levels is None else np.floor(distance * levels)), (ids, ids, cameras, cameras)


def score(
    distance: np.ndarray, labels: tuple[np.ndarray, ...], draws: int = 50, seed: int = 0, chunk: int = 7
) -> SingleShotScores:
    rng = np.random.default_rng(seed)
    return evaluate_single_shot(lambda rows: distance[rows], *labels, draws=draws, rng=rng, chunk=chunk)


def expected_share(distance: np.ndarray, labels: tuple[np.ndarray, ...], query: int, rank: int) -> float:
    """Share of all possible galleries in which the query's match is at ``rank`` or better."""
    ids, _, cameras, _ = labels
    people = sorted(set(ids))
    images = [[i for i in range(len(ids)) if ids[i] == who and cameras[i] != cameras[query]] for who in people]
    good = total = 0
    for gallery in itertools.product(*images):
        match = gallery[people.index(ids[query])]
        ahead = sum((distance[query, i], i) < (distance[query, match], match) for i in gallery)
        good, total = good + (ahead < rank), total + 1
    return good / total


@pytest.mark.parametrize("levels", [None, 1])
def test_with_one_image_per_person_and_view_it_is_the_ordinary_ranking(levels: int | None) -> None:
    distance, labels = world(0, per_person=1, levels=levels)
    ids, _, cameras, _ = labels
    blocked = distance + 1e6 * (cameras[:, None] == cameras[None])  # the ordinary ranking has both views
    ordinary = evaluate_ranking(lambda rows: blocked[rows], *labels)
    single = score(distance, labels)
    np.testing.assert_allclose(single.cmc, ordinary.cmc)
    assert single.valid_queries == ordinary.valid_queries == len(ids)


@pytest.mark.parametrize("levels", [None, 2])
def test_many_draws_come_close_to_all_possible_galleries(levels: int | None) -> None:
    distance, labels = world(1, per_person=2, levels=levels)
    table = score(distance, labels, draws=4000).per_query
    for query in (0, 9, 20):
        for rank in (1, 5):
            expected = expected_share(distance, labels, query, rank)
            assert table[f"rank{rank}"][query] == pytest.approx(expected, abs=0.035)


def test_a_gallery_holds_one_image_of_every_person_from_another_camera() -> None:
    _, (ids, _, cameras, _) = world(2, per_person=3)
    people, picks = draw_galleries(ids, cameras != 1, 200, np.random.default_rng(0))
    assert people.tolist() == list(range(1, 9))
    assert (ids[picks] == people).all()
    assert (cameras[picks] == 2).all()
    assert all(len(set(column)) == 3 for column in picks.T)


def test_the_seed_alone_decides_the_draws() -> None:
    distance, labels = world(3, per_person=3)
    base = score(distance, labels)
    assert base.per_query.equals(score(distance, labels, chunk=1000).per_query)
    assert not base.per_query.equals(score(distance, labels, seed=1).per_query)


def test_there_is_no_map_and_the_cmc_is_the_mean_of_the_queries() -> None:
    distance, labels = world(4, per_person=2)
    scores = score(distance, labels)
    summary = scores.summary()
    assert summary["mAP"] is summary["mAP_trapezoid"] is summary["mINP"] is None
    assert summary["rank5"] == pytest.approx(scores.per_query["rank5"].mean())
    assert len(scores.cmc) == 50
    assert scores.cmc[-1] == 1


def test_queries_without_a_match_in_another_camera_are_skipped_and_counted() -> None:
    distance, (ids, _, cameras, _) = world(5, per_person=1)
    keep = ~((ids == 3) & (cameras == 2))
    labels = (ids, ids[keep], cameras, cameras[keep])
    scores = score(distance[:, keep], labels)
    assert scores.skipped_queries == 1
    assert 3 in scores.per_query["person_id"][scores.per_query["camera_id"] == 2].tolist()
    with pytest.raises(EvaluationError, match="none of the 16 queries has a match in another camera"):
        score(distance, (ids, ids, np.ones_like(ids), np.ones_like(ids)))


def test_an_unknown_camera_counts_as_another_one() -> None:
    ids, unknown = np.array([1, 2]), np.array([-1, -1])
    scores = score(np.array([[0.0, 1.0], [0.0, 1.0]]), (ids, ids, unknown, unknown))
    assert scores.per_query["rank1"].tolist() == [1.0, 0.0]
