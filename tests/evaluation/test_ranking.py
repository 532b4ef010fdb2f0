"""The metric against literal loops and the official values, and what must not change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.precision import full_precision
from evaluation import distances
from evaluation.distances import EvaluationError, distinct_rows, euclidean_blocks
from evaluation.ranking import Scores, drop_junk, evaluate_features, evaluate_ranking
from tests import reference_metrics

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("market_metric_*.npz"))
ROW_KEYS = ("ap", "ap_trapezoid", "inp", "first_match_rank", "last_match_rank", "matches")


class Drawn:
    """Random distances and labels with distractors (0), junk (-1), unknown cameras (-1) and lonely queries."""

    def __init__(self, seed: int = 0, queries: int = 60, gallery: int = 300, levels: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.distance = rng.normal(size=(queries, gallery)).astype(np.float32)
        if levels is not None:
            self.distance = np.floor(self.distance * levels).astype(np.float32)
        self.query_ids = rng.integers(1, 40, queries)
        self.gallery_ids = rng.integers(-1, 30, gallery)
        self.query_cameras = rng.integers(-1, 4, queries)
        self.gallery_cameras = rng.integers(-1, 4, gallery)

    @property
    def labels(self) -> tuple[np.ndarray, ...]:
        return self.query_ids, self.gallery_ids, self.query_cameras, self.gallery_cameras

    def scores(self, chunk: int = 256) -> Scores:
        return evaluate_ranking(lambda rows: self.distance[rows], *self.labels, chunk=chunk)

    def reordered(self, order: np.ndarray) -> Scores:
        return evaluate_ranking(
            lambda rows: self.distance[rows][:, order],
            self.query_ids,
            self.gallery_ids[order],
            self.query_cameras,
            self.gallery_cameras[order],
        )


def rank_one(distance: list[float], ids: list[int], cameras: list[int] | None = None) -> Scores:
    """One query, person 1 under camera 1, against a gallery that is under camera 2 unless told."""
    block = np.array([distance], dtype=np.float32)
    seen = np.array(cameras or [2] * len(ids))
    return evaluate_ranking(lambda rows: block[rows], np.array([1]), np.array(ids), np.array([1]), seen)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_official_values_are_met(path: Path) -> None:
    golden = np.load(path)
    labels = (golden[key] for key in ("query_ids", "gallery_ids", "query_cams", "gallery_cams"))
    scores = evaluate_ranking(lambda rows: golden["distance"][rows], *labels)
    np.testing.assert_allclose(scores.cmc, golden["cmc"], rtol=1e-4, atol=1e-6)
    assert scores.mAP == pytest.approx(float(golden["mAP"]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("levels", [None, 30, 2, 0])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_figure_equals_the_literal_loops_with_and_without_ties(levels: int | None, seed: int) -> None:
    world = Drawn(seed, levels=levels)
    scores, expected = world.scores(), reference_metrics.scores(world.distance, *world.labels)
    for name in ("mAP", "mAP_trapezoid", "mINP"):
        assert scores.summary()[name] == pytest.approx(expected[name], abs=1e-12)
    np.testing.assert_allclose(scores.cmc, expected["cmc"], atol=1e-12)
    assert scores.skipped_queries == expected["skipped"] > 0
    assert scores.valid_queries == len(expected["rows"]) == len(scores.per_query)
    assert scores.per_query["query"].tolist() == [row["query"] for row in expected["rows"]]
    for key in ROW_KEYS:
        np.testing.assert_allclose(scores.per_query[key], [row[key] for row in expected["rows"]], atol=1e-12)


def test_per_query_rows_carry_the_labels_of_their_query() -> None:
    world = Drawn()
    table = world.scores().per_query
    assert (table["person_id"] == world.query_ids[table["query"]]).all()
    assert (table["camera_id"] == world.query_cameras[table["query"]]).all()


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_the_chunk_changes_nothing_and_bounds_every_block(chunk: int) -> None:
    world, asked = Drawn(), []

    def block(rows: slice) -> np.ndarray:
        asked.append(rows.stop - rows.start)
        return world.distance[rows]

    scores = evaluate_ranking(block, *world.labels, chunk=chunk)
    assert max(asked) <= chunk
    assert scores.per_query.equals(world.scores().per_query)


def test_permuting_the_gallery_changes_nothing_without_ties() -> None:
    world = Drawn()
    order = np.random.default_rng(5).permutation(300)
    assert world.reordered(order).per_query.equals(world.scores().per_query)


def test_the_distances_given_are_left_as_they_were() -> None:
    world = Drawn()
    before = world.distance.copy()
    world.scores()
    np.testing.assert_array_equal(world.distance, before)


def test_equal_distances_rank_in_gallery_order() -> None:
    assert rank_one([0.5, 0.5, 0.5], [9, 1, 9]).per_query["first_match_rank"].item() == 2
    assert rank_one([0.5, 0.5, 0.5], [1, 9, 9]).per_query["first_match_rank"].item() == 1
    assert rank_one([0.5, 0.5, 0.1], [9, 1, 9]).per_query["first_match_rank"].item() == 3


def test_the_same_person_under_the_same_camera_takes_no_rank() -> None:
    assert rank_one([0.1, 0.2, 0.3], [1, 1, 9], [1, 2, 2]).mAP == 1.0
    assert rank_one([0.1, 0.1, 0.1], [1, 1, 9], [1, 2, 2]).mAP == 1.0


def test_another_person_under_the_same_camera_is_ranked() -> None:
    assert rank_one([0.1, 0.2], [9, 1], [1, 2]).mAP == 0.5


def test_an_unknown_camera_is_never_the_same_camera() -> None:
    block = np.zeros((1, 1), dtype=np.float32)
    unknown, person = np.array([-1]), np.array([1])
    assert evaluate_ranking(lambda rows: block[rows], person, person, unknown, unknown).valid_queries == 1


@pytest.mark.parametrize("wrong", [0, -1, 9], ids=["distractor", "junk left in", "another person"])
def test_any_gallery_image_of_no_match_is_a_wrong_match(wrong: int) -> None:
    assert rank_one([0.1, 0.2], [wrong, 1]).mAP == 0.5


def test_unknown_people_do_not_match_each_other() -> None:
    with pytest.raises(EvaluationError, match="none of the 1 queries"):
        evaluate_ranking(lambda rows: np.zeros((1, 1)), np.array([-1]), np.array([-1]), np.array([1]), np.array([2]))


def test_dropping_junk_keeps_the_other_rows_of_every_array_in_order() -> None:
    ids, cameras, features = drop_junk(np.array([3, -1, 0]), np.array([7, 8, 9]), torch.eye(3))
    assert ids.tolist() == [3, 0]
    assert cameras.tolist() == [7, 9]
    assert torch.equal(features, torch.eye(3)[[0, 2]])


def test_queries_without_a_match_enter_no_mean() -> None:
    block = np.array([[0.1, 0.2], [0.1, 0.2]], dtype=np.float32)
    scores = evaluate_ranking(
        lambda rows: block[rows], np.array([1, 5]), np.array([9, 1]), np.array([1, 1]), np.array([2, 2])
    )
    assert (scores.valid_queries, scores.skipped_queries, scores.mAP) == (1, 1, 0.5)
    assert scores.per_query["query"].tolist() == [0]


def test_cmc_has_fifty_ranks_even_for_a_small_gallery() -> None:
    scores = rank_one([0.1, 0.2], [9, 1])
    assert scores.cmc.tolist() == [0.0] + [1.0] * 49


def test_the_two_average_precisions_differ_as_published() -> None:
    # Hits at ranks 1 and 3: (1 + 2/3) / 2 by hits; ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2 by
    # trapezoids.
    scores = rank_one([0.1, 0.2, 0.3], [1, 9, 1])
    assert scores.mAP == pytest.approx(5 / 6)
    assert scores.summary()["mAP_trapezoid"] == pytest.approx((1 + 7 / 12) / 2)
    assert scores.summary()["mINP"] == pytest.approx(2 / 3)


def test_the_summary_is_plain_numbers_as_fractions() -> None:
    summary = Drawn().scores().summary()
    assert list(summary) == [
        *("mAP", "rank1", "rank5", "rank10", "mINP", "mAP_trapezoid", "rank20"),
        *("valid_queries", "skipped_queries"),
    ]
    assert all(type(value) in (float, int) for value in summary.values())
    assert summary["rank1"] <= summary["rank5"] <= summary["rank10"] <= summary["rank20"] <= 1


class Features:
    """Random features with labels."""

    def __init__(self, seed: int = 0, dimensions: int = 24) -> None:
        rng = np.random.default_rng(seed)
        self.query = rng.normal(size=(30, dimensions)).astype(np.float32)
        self.gallery = rng.normal(size=(200, dimensions)).astype(np.float32)
        self.labels = (*(rng.integers(1, 15, n) for n in (30, 200)), *(rng.integers(1, 4, n) for n in (30, 200)))

    def scores(self, **options: Any) -> Scores:
        return evaluate_features(self.query, self.gallery, *self.labels, **options)


@pytest.mark.parametrize("normalise", [False, True])
def test_features_rank_by_euclidean_distance(normalise: bool) -> None:
    world = Features()
    query, gallery = world.query.astype(float), world.gallery.astype(float)
    if normalise:
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    distance = np.linalg.norm(query[:, None] - gallery[None], axis=2)
    expected = reference_metrics.scores(distance, *world.labels)
    assert world.scores(normalise=normalise).mAP == pytest.approx(expected["mAP"], abs=1e-12)


def test_float32_products_rank_as_float64_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Features()
    exact = world.scores()
    monkeypatch.setattr(distances, "DOUBLE_LIMIT", 0)
    block = euclidean_blocks(world.query, world.gallery)(slice(0, 3))
    assert np.asarray(block).dtype == np.float32
    assert world.scores().per_query.equals(exact.per_query)


def test_tensors_and_arrays_of_any_float_type_are_taken() -> None:
    world = Features()
    expected = world.scores().mAP
    world.query, world.gallery = torch.from_numpy(world.query).double(), torch.from_numpy(world.gallery)
    assert world.scores().mAP == expected
    world.query, world.gallery = world.query.half(), world.gallery.bfloat16()
    assert 0 < world.scores().mAP < 1


def test_small_problems_are_computed_in_float64() -> None:
    world = Features()
    assert np.asarray(euclidean_blocks(world.query, world.gallery)(slice(0, 3))).dtype == np.float64


def test_equal_gallery_vectors_tie_exactly_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    product = distances.inner_products

    def rounded_by_position(left: torch.Tensor, right: torch.Tensor, into: np.ndarray) -> np.ndarray:
        """What blocked matrix products may do: equal rows, other rounding in another place."""
        return product(left, right, into) - 1e-6 * np.arange(len(right))

    monkeypatch.setattr(distances, "inner_products", rounded_by_position)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 16))[[0, 1, 0, 2, 3, 0]]
    block = np.asarray(euclidean_blocks(rng.normal(size=(5, 16)), features)(slice(0, 5)))
    assert (block[:, [2, 5]] == block[:, [0]]).all()
    assert (block[:, 1] != block[:, 0]).all()


def test_a_match_behind_its_exact_copies_ranks_after_them() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(1, 1999)).astype(np.float32), 101, axis=0)
    ids = np.array([9] * 100 + [1])
    query = rng.normal(size=(5, 1999)).astype(np.float32)
    ones = np.ones(5, dtype=int)
    scores = evaluate_features(query, features, ones, ids, ones, np.full(101, 2), normalise=True)
    assert (scores.per_query["first_match_rank"] == 101).all()


def test_rows_that_differ_only_in_the_sign_of_zero_are_one() -> None:
    first, group = distinct_rows(torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0]]))
    assert first.tolist() == [0, 1]
    assert group.tolist() == [0, 1, 0]


def test_the_matrix_precision_of_the_training_loop_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_cuda_features_score_as_cpu_features_do() -> None:
    world = Features()
    expected = world.scores()
    world.query, world.gallery = torch.from_numpy(world.query).cuda(), torch.from_numpy(world.gallery).cuda()
    assert world.scores().per_query.equals(expected.per_query)


def changed(**arrays: Any) -> dict[str, Any]:
    """Arguments of evaluate_features, of which some are replaced."""
    good: dict[str, Any] = {
        "query": np.eye(3),
        "gallery": np.eye(4, 3),
        "query_ids": np.array([1, 2, 3]),
        "gallery_ids": np.array([1, 2, 3, 0]),
        "query_cameras": np.array([1, 1, 1]),
        "gallery_cameras": np.array([2, 2, 2, 2]),
    }
    return good | arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"query_ids": np.array([1, 2])}, "query_features has 3 rows but query_ids has 2"),
        ({"gallery_ids": np.array([1])}, "gallery_features has 4 rows but gallery_ids has 1"),
        ({"query_cameras": np.array([1])}, "query_ids has 3 entries but query_cameras has 1"),
        ({"gallery_cameras": np.array([1])}, "gallery_ids has 4 entries but gallery_cameras has 1"),
        ({"gallery": np.eye(4)}, "query_features has 3 columns but gallery_features has 4"),
        ({"query": np.ones(3)}, r"query_features must have shape \(images, dimensions\)"),
        ({"gallery": np.full((4, 3), np.nan)}, "gallery_features holds NaN or infinite values in 4 rows, first row 0"),
        ({"query": np.full((3, 3), np.inf)}, "query_features holds NaN or infinite"),
        ({"query_ids": np.ones((3, 1), int)}, "query_ids must have one dimension"),
        ({"gallery_ids": np.ones(4)}, "gallery_ids must hold integers, it holds float64"),
        ({"query_ids": np.array([7, 8, 9])}, "none of the 3 queries has a correct match"),
    ],
)
def test_bad_input_is_an_error_that_names_the_array(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate_features(**changed(**arrays))


def test_bad_distances_are_an_error_that_names_the_query() -> None:
    world = Drawn()
    world.distance[37, 3] = np.nan
    with pytest.raises(EvaluationError, match="the distances of query 37 hold NaN"):
        world.scores(chunk=16)


def test_a_block_of_the_wrong_shape_is_an_error() -> None:
    world = Drawn()
    with pytest.raises(EvaluationError, match=r"queries 0..59 have shape \(60, 299\), expected \(60, 300\)"):
        evaluate_ranking(lambda rows: world.distance[rows, 1:], *world.labels)


def test_an_empty_gallery_is_an_error() -> None:
    empty = np.array([], dtype=int)
    with pytest.raises(EvaluationError, match="gallery_ids is empty"):
        evaluate_ranking(lambda rows: np.zeros((1, 0)), np.array([1]), empty, np.array([1]), empty)
