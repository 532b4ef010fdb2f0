"""Intervals that cover, p values that are honest, and vectorised code equal to the literal one."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from reports import statistics
from reports.statistics import ALPHA, Estimate, holm, identity_weights, over_worlds, rank_intervals, two_level

# What moves mAP, as standard deviations of fractions. A method feels the start by its own factor, and a world and a
# person suit it more or less; the seed is each run's own.
WORLD, START, WORLD_SUITS, SEED, PERSON, PERSON_SUITS, NOISE = 0.05, 0.03, 0.015, 0.02, 0.2, 0.1, 0.1
TRUE = np.array([0.0, 0.0, 0.0, 0.1, 0.2])  # of five methods against their baseline: three do not differ from it


def made_worlds(rng: np.random.Generator, draws: int, worlds: int, identities: int = 40) -> np.ndarray:
    """(draws, worlds, 1 + methods) mAP of a baseline and of methods that differ from it by TRUE."""
    methods = 1 + len(TRUE)
    shape = (draws, worlds, methods)
    shared = rng.normal(0, WORLD, (draws, worlds, 1))
    start = rng.normal(0, START, (draws, worlds, 1)) * rng.uniform(0, 2, (draws, 1, methods))
    suits = rng.normal(0, np.hypot(WORLD_SUITS, SEED), shape)
    people = rng.normal(0, PERSON, (draws, worlds, 1, identities)) + rng.normal(0, PERSON_SUITS, (*shape, identities))
    return 0.5 + np.append(0, TRUE) + shared + start + suits + people.mean(axis=-1)


def made_replicates(
    rng: np.random.Generator, replicates: int, identities: int = 60, start: float = START
) -> tuple[np.ndarray, np.ndarray]:
    """(methods, R, Q) differences of AP to a baseline on the same people, and person ids (Q,)."""
    people = np.repeat(np.arange(identities), rng.integers(1, 8, identities))
    methods = 1 + len(TRUE)
    starts = rng.normal(0, start, (1, replicates, 1)) * rng.uniform(0, 2, (methods, 1, 1))
    seeds = rng.normal(0, SEED, (methods, replicates, 1))
    suits = rng.normal(0, PERSON_SUITS, (methods, 1, identities))[:, :, people]
    noise = rng.normal(0, NOISE, (methods, replicates, len(people)))
    ap = np.append(0, TRUE)[:, None, None] + starts + seeds + suits + noise  # what all share cancels in a difference
    return ap[1:] - ap[0], people


def rejects_one_that_is_true(p_values: np.ndarray) -> bool:
    """Whether Holm calls one of the methods that do not differ from the baseline another."""
    return bool((holm(p_values)[TRUE == 0] <= ALPHA).any())


def test_over_worlds_intervals_cover_95_in_100_and_five_in_100_tables_at_most_hold_a_false_verdict() -> None:
    """Of 4,000 tables: the Monte Carlo standard error is 0.34 points for either share, and less for coverage."""
    rng = np.random.default_rng(20)
    for worlds in (3, 6):
        map_of = made_worlds(rng, 4_000, worlds)
        found = over_worlds((map_of[:, :, 1:] - map_of[:, :, :1]).swapaxes(1, 2))
        covered = (found.low <= TRUE) & (found.high >= TRUE)
        assert 0.93 <= covered.mean() <= 0.97
        false = np.mean([rejects_one_that_is_true(p) for p in found.p])
        assert 0.01 <= false <= ALPHA + 3 * 0.0034
        uncorrected = (found.p[:, TRUE == 0] <= ALPHA).any(axis=1).mean()
        assert uncorrected > 0.07, "without Holm's correction the family holds more false verdicts than one test"


@pytest.mark.parametrize(("replicates", "start"), [(3, START), (3, 0.1), (5, 0.0)])
def test_two_level_intervals_cover_95_in_100_and_five_in_100_tables_at_most_hold_a_false_verdict(
    replicates: int, start: float
) -> None:
    """Of 250 tables of five methods: Monte Carlo standard error 1.4 points for the tables, 0.8 for coverage.

    Starts decide, or people, or both.
    """
    rng = np.random.default_rng(21)
    covered, false, tables = [], 0, 250
    weights = identity_weights(60, rng, 500)
    for _ in range(tables):
        differences, people = made_replicates(rng, replicates, start=start)
        found = [two_level(one, people, weights) for one in differences]
        covered += [one.low <= true <= one.high for one, true in zip(found, TRUE, strict=True)]
        false += rejects_one_that_is_true(np.array([one.p for one in found]))
    assert 0.93 <= np.mean(covered) <= 0.97
    assert false / tables <= ALPHA + 2 * 0.014


def test_over_worlds_is_the_paired_t_test() -> None:
    differences = np.array([-1.1, 3.3, 0.1, -0.3, -1.5])
    found, known = over_worlds(differences), ttest_1samp(differences, 0)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.sd == pytest.approx(differences.std(ddof=1))
    shifted = over_worlds(differences - found.low)
    assert shifted.p == pytest.approx(ALPHA), "at the end of the interval p is what the interval's confidence leaves"


def test_the_probability_of_superiority_is_that_of_a_new_world() -> None:
    """Measured from a world that was held out, half of the probabilities are below one half, a tenth below a tenth."""
    differences = np.random.default_rng(22).normal(0.3, 1, (20_000, 5))
    chances = over_worlds(differences[:, :4] - differences[:, 4:]).probability
    for share in (0.1, 0.5, 0.9):
        assert np.mean(chances < share) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("worlds", [2, 4, 12])
def test_a_difference_of_the_resolvable_size_is_resolved_80_times_in_100(worlds: int) -> None:
    true = statistics.noncentrality(worlds - 1) / np.sqrt(worlds)  # of worlds that differ by an sd of 1
    drawn = over_worlds(np.random.default_rng(23).normal(true, 1, (20_000, worlds)))
    assert np.mean(drawn.p <= ALPHA) == pytest.approx(0.8, abs=0.01)
    expected = true * drawn.sd
    np.testing.assert_allclose(drawn.resolvable, expected)


def test_people_are_resampled_with_all_their_queries() -> None:
    rng = np.random.default_rng(0)
    differences, people = made_replicates(rng, 1, identities=12)
    chosen = rng.integers(0, 12, (40, 12))
    weights = np.stack([np.bincount(draw, minlength=12) for draw in chosen]).astype(np.float32)
    one = differences[0]
    rows = [np.concatenate([np.flatnonzero(people == person) for person in draw]) for draw in chosen]
    literal = np.array([one[:, drawn].mean() for drawn in rows])
    found = two_level(one, people, weights)
    assert found.difference == pytest.approx(one.mean())
    margin = 2.2009852 * literal.std(ddof=1)  # t, 97.5 %, 11 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.difference - margin, found.difference + margin), abs=1e-5)


def test_one_replicate_leaves_out_what_starts_and_seeds_do_and_gives_no_p() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(60):
        differences, people = made_replicates(rng, 1)
        weights = identity_weights(60, rng, 400)
        for one, true in zip(differences, TRUE, strict=True):
            found = two_level(one, people, weights)
            assert np.isnan([found.p, found.probability, found.sd, found.resolvable]).all()
            covered.append(found.low <= true <= found.high)
    assert np.mean(covered) < 0.85


def test_people_not_queries_are_the_unit() -> None:
    """Ten copies of every query bring no information, so the interval may not shrink."""
    rng = np.random.default_rng(4)
    differences, people = made_replicates(rng, 3)
    weights = identity_weights(60, rng, 2_000)
    once = two_level(differences[0], people, weights)
    often = two_level(np.repeat(differences[0], 10, axis=1), np.repeat(people, 10), weights)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-3)


def both_models(sign: float) -> list[Estimate]:
    rng = np.random.default_rng(5)
    differences, people = made_replicates(rng, 3)
    return [
        over_worlds(sign * differences[3].mean(axis=1)),
        two_level(sign * differences[3], people, identity_weights(60, rng)),
    ]


def test_swapping_a_and_b_turns_the_sign_in_both_models() -> None:
    for forth, back in zip(both_models(1), both_models(-1), strict=True):
        assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
        assert back.probability == pytest.approx(1 - forth.probability)
        assert (back.p, back.sd, back.resolvable) == pytest.approx((forth.p, forth.sd, forth.resolvable))


def test_p_is_at_most_5_percent_exactly_where_the_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(6)
    told = set()
    for _ in range(20):
        differences, people = made_replicates(rng, 3)
        weights = identity_weights(60, rng, 200)
        for one in differences:
            for found in (over_worlds(one.mean(axis=1)), two_level(one, people, weights)):
                assert (found.p <= ALPHA) == (found.low > 0 or found.high < 0)
                told.add(bool(found.p <= ALPHA))
    assert told == {True, False}


def test_equal_runs_tie_with_probability_one_half_and_an_empty_interval() -> None:
    people = np.repeat(np.arange(12), 2)
    weights = identity_weights(12, np.random.default_rng(0))
    for found in (over_worlds(np.zeros(3)), two_level(np.zeros((3, 24)), people, weights)):
        assert astuple(found) == (0, 0, 0, 1, 0.5, 0, 0)


def test_holm_multiplies_the_smallest_p_by_the_size_of_the_family() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    # By hand: 0.005 x 4, 0.01 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below the 0.06 before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert len(holm([])) == 0


def test_a_rank_interval_holds_every_rank_that_no_resolved_pair_excludes() -> None:
    better = np.zeros((4, 4), dtype=bool)
    better[0, 2:] = True  # the first is better than the last two
    better[1, 3] = True  # the second than the last
    assert rank_intervals(better).tolist() == [[1, 2], [1, 3], [2, 4], [3, 4]]


@pytest.mark.parametrize(
    ("ap", "people", "message"),
    [(np.zeros((2, 4)), np.arange(5), "with 5 queries"), (np.zeros((2, 4)), np.zeros(4, int), "one person")],
)
def test_arrays_that_do_not_fit_are_refused(ap: np.ndarray, people: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_level(ap, people, np.ones((1, 5)))
