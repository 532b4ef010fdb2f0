"""Verification figures against literal loops over all pairs, and what their thresholds mean."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import protocol as protocols
from evaluation.distances import euclidean_blocks
from evaluation.score import score
from evaluation.verification import PANEL_BINS, PairCounter, Verification
from tests.evaluation.test_ranking import Drawn

STEP = 2.0**-13  # of a distance: the grid of thresholds


def literal_pairs(world: Drawn, across_cameras: bool = False) -> tuple[list[float], list[float]]:
    """Distances of the pairs of one person and of two, one pair at a time."""
    same, other = [], []
    for query, row in enumerate(world.distance.tolist()):
        person, camera, right, wrong = world.query_ids[query], world.query_cameras[query], [], []
        for distance, who, seen in zip(row, world.gallery_ids, world.gallery_cameras, strict=True):
            beside = camera == seen and camera != -1
            if person == who and person != -1:
                if not beside:
                    right.append(distance)
            elif not (across_cameras and beside):
                wrong.append(distance)
        if right:
            same, other = same + right, other + wrong
    return same, other


def literal_rates(pairs: list[float], threshold: float) -> float:
    return sum(distance <= threshold for distance in pairs) / len(pairs)


def literal_eer(same: list[float], other: list[float]) -> float:
    """Walk the thresholds up until more strangers pass than friends are turned away; go back along the last step."""
    before = (0.0, 1.0)
    for threshold in sorted({*same, *other}):
        now = literal_rates(other, threshold), 1 - literal_rates(same, threshold)
        if now[0] >= now[1]:
            share = (before[1] - before[0]) / ((before[1] - before[0]) + (now[0] - now[1]))
            return before[0] + share * (now[0] - before[0])
        before = now
    raise AssertionError("the last threshold lets all pass")


def counted(world: Drawn, chunk: int = 17, across_cameras: bool = False) -> Verification:
    pairs = PairCounter(*world.labels, across_cameras=across_cameras)
    blocks = pairs.watch(lambda rows: world.distance[rows])
    for start in range(0, len(world.distance), chunk):
        blocks(slice(start, min(start + chunk, len(world.distance))))
    found = pairs.result()
    assert found is not None
    return found


@pytest.mark.parametrize("across_cameras", [False, True])
@pytest.mark.parametrize("levels", [None, 8])
def test_every_figure_equals_the_literal_loops_with_and_without_ties(levels: int | None, across_cameras: bool) -> None:
    """Distances below 0, unknown cameras and people, distractors, junk and queries without a match among them."""
    world = Drawn(3, queries=40, gallery=150, levels=levels)
    if levels:
        world.distance /= 8  # on the grid, so that many are equal
    same, other = literal_pairs(world, across_cameras)
    found = counted(world, across_cameras=across_cameras)
    assert (found.same_pairs, found.other_pairs) == (len(same), len(other))
    assert found.eer == pytest.approx(literal_eer(same, other), abs=1e-12 if levels else 2 / len(same))
    for point in found.at:
        assert point.threshold is not None
        assert point.tpr == literal_rates(same, point.threshold)
        assert literal_rates(other, point.threshold) <= point.fpr
        farther = [d for d in [*same, *other] if d > point.threshold]  # the next threshold lets too many pass
        assert literal_rates(other, min(farther) + 2 * STEP * abs(min(farther))) > point.fpr


def test_blocks_of_any_size_give_the_same_figures() -> None:
    world = Drawn(4)
    assert counted(world, 1) == counted(world, 60)


def test_thresholds_are_distances_between_features_and_not_what_ranks() -> None:
    """A pair called the same at a threshold is one whose features are at most that far apart."""
    world, rng = Drawn(5), np.random.default_rng(5)
    query, gallery = rng.normal(size=(60, 4)), rng.normal(size=(300, 4))
    world.distance = np.linalg.norm(query[:, None] - gallery[None], axis=2).astype(np.float32)
    found = score(protocols.load("market1501"), euclidean_blocks(query, gallery), *world.labels).verification
    expected = counted(world)
    assert found is not None
    assert found.eer_threshold == pytest.approx(expected.eer_threshold, rel=2 * STEP)
    for point, wanted in zip(found.at, expected.at, strict=True):
        assert point.threshold == pytest.approx(wanted.threshold, rel=2 * STEP)


def test_a_rate_that_too_few_pairs_can_show_is_unknown() -> None:
    pairs = PairCounter(np.array([1, 2]), np.repeat([1, 2], 60), np.array([1, 1]), np.full(120, 2))
    pairs.watch(lambda rows: np.random.default_rng(0).random((2, 120))[rows])(slice(0, 2))
    found = pairs.result()
    assert found is not None
    assert found.other_pairs == 120
    assert found.at[0].tpr is not None
    assert (found.at[1].tpr, found.at[1].threshold) == (None, None)


def test_separated_people_have_no_error_and_their_threshold_lies_between() -> None:
    same, other = np.full((1, 50), 0.3), np.full((1, 2000), 0.9)
    ids = np.repeat([1, 2], [50, 2000])
    pairs = PairCounter(np.array([1]), ids, np.array([1]), np.full(2050, 2))
    pairs.watch(lambda rows: np.hstack([same, other]))(slice(0, 1))
    found = pairs.result()
    assert found is not None
    assert found.eer == 0
    for point in found.at:
        assert point.tpr == 1
        assert point.threshold is not None
        assert 0.3 <= point.threshold < 0.9


def test_the_panel_counts_every_pair_once_in_the_same_bins_for_unit_vectors() -> None:
    world = Drawn(6)
    world.distance = np.clip(np.abs(world.distance), 0, 2)
    found = counted(world)
    assert (found.panel.start, found.panel.width) == (0, 0.02)
    assert len(found.panel.same) == len(found.panel.other) == PANEL_BINS
    assert sum(found.panel.same) == found.same_pairs
    assert sum(found.panel.other) == found.other_pairs
    expected, _ = np.histogram(literal_pairs(world)[0], PANEL_BINS, (0, 2))
    assert np.abs(np.cumsum(expected) - np.cumsum(found.panel.same)).max() <= 1
