"""Intervals that cover, p values that are honest, and vectorised code equal to the literal one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from reports import statistics
from reports.statistics import holm, paired_bootstrap, sign_flip_p


def literal_draws(a: np.ndarray, b: np.ndarray, people: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Difference of mAP when, per draw, the listed people (draws, I) bring all their queries; one seed each."""
    draws = []
    for draw in chosen:
        rows = np.concatenate([np.flatnonzero(people == person) for person in draw])
        draws.append(a[:, rows].mean() - b[:, rows].mean())
    return np.array(draws)


def made(
    rng: np.random.Generator,
    seeds: int,
    true: float,
    seed_sd: float,
    person_sd: float = 0.1,
    identities: int = 60,
    noise: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP of A and B whose mAPs differ by ``true``: people are hard for both, and A suits some more than others."""
    people = np.repeat(np.arange(identities), rng.integers(1, 8, identities))
    shared = 0.5 + rng.normal(0, 0.2, identities)[people]
    suits = true + rng.normal(0, person_sd, identities)[people]

    def run(extra: np.ndarray | float) -> np.ndarray:
        return shared + extra + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, noise, (seeds, len(people)))

    return run(suits), run(0.0), people


def test_draws_equal_a_literal_resampling_of_people_with_all_their_queries() -> None:
    rng = np.random.default_rng(0)
    a, b, people = made(rng, 1, 0.05, 0.0, identities=12)
    chosen = rng.integers(0, 12, (40, 12))
    weights = np.stack([np.bincount(draw, minlength=12) for draw in chosen]).astype(np.float32)
    literal = literal_draws(a, b, people, chosen)
    interval = paired_bootstrap(a, b, people, rng, weights)
    assert interval.difference == pytest.approx(a.mean() - b.mean())
    margin = 2.2009852 * literal.std(ddof=1)  # t, 97.5 %, 11 degrees of freedom
    assert (interval.low, interval.high) == pytest.approx(
        (interval.difference - margin, interval.difference + margin), abs=1e-5
    )
    assert interval.probability == pytest.approx((literal > 0).mean())


def test_seed_draws_have_the_variance_of_a_mean_of_that_many_seeds() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(0, 1, 3)
    draws = statistics.seed_weights(3, 200_000, rng) @ means
    assert draws.mean() == pytest.approx(means.mean(), abs=0.01)
    assert draws.var() == pytest.approx(means.var(ddof=1) / 3, rel=0.02)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "person_sd"), [(3, 0.03, 0.1), (3, 0.03, 0.02), (3, 0.0, 0.1), (5, 0.03, 0.1)]
)
def test_the_intervals_cover_the_true_difference_about_95_times_in_100(
    seeds: int, seed_sd: float, person_sd: float
) -> None:
    rng = np.random.default_rng(20)
    covered, resampled, repetitions = 0, set(), 400
    for _ in range(repetitions):
        a, b, people = made(rng, seeds, 0.02, seed_sd, person_sd)
        interval = paired_bootstrap(a, b, people, rng, statistics.identity_weights(60, rng, 600))
        covered += interval.low <= 0.02 <= interval.high
        resampled.add(interval.seeds_resampled)
    assert 0.90 <= covered / repetitions <= 0.99
    assert resampled == {True}


def test_with_one_seed_the_interval_leaves_out_what_seeds_do_and_the_record_says_so() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        a, b, people = made(rng, 1, 0.02, 0.05)
        interval = paired_bootstrap(a, b, people, rng, statistics.identity_weights(60, rng, 400))
        assert not interval.seeds_resampled
        covered += interval.low <= 0.02 <= interval.high
    assert covered / 200 < 0.8, "one seed cannot cover the spread over seeds; the flag is there for that"


def test_people_not_queries_are_the_unit() -> None:
    """Ten copies of every query bring no information, so the interval may not shrink."""
    rng = np.random.default_rng(4)
    a, b, people = made(rng, 3, 0.02, 0.01)
    weights = statistics.identity_weights(60, rng, 2_000)
    once = paired_bootstrap(a, b, people, np.random.default_rng(0), weights)
    copied = (np.repeat(x, 10, axis=-1) for x in (a, b, people))
    often = paired_bootstrap(*copied, np.random.default_rng(0), weights)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-3)


def test_swapping_a_and_b_turns_the_sign() -> None:
    rng = np.random.default_rng(5)
    a, b, people = made(rng, 1, 0.05, 0.0)
    weights = statistics.identity_weights(60, rng, 2_000)
    forth, back = (paired_bootstrap(x, y, people, rng, weights) for x, y in ((a, b), (b, a)))
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert back.probability == pytest.approx(1 - forth.probability)


def test_equal_runs_tie_with_probability_one_half_and_an_empty_interval() -> None:
    rng = np.random.default_rng(6)
    a, _, people = made(rng, 1, 0.0, 0.0)
    interval = paired_bootstrap(a, a, people, rng)
    assert (interval.difference, interval.low, interval.high, interval.probability) == (0, 0, 0, 0.5)
    assert sign_flip_p(a, a, people, rng) == 1


def test_runs_of_different_numbers_of_seeds_can_be_compared() -> None:
    rng = np.random.default_rng(7)
    a, b, people = made(rng, 3, 0.05, 0.01)
    interval = paired_bootstrap(a, b[:2], people, rng)
    assert interval.low < a.mean() - b[:2].mean() < interval.high
    assert interval.seeds_resampled
    assert not paired_bootstrap(a, b[:1], people, rng).seeds_resampled


def test_the_sign_flip_p_of_few_people_is_exact() -> None:
    rng = np.random.default_rng(8)
    a, b, people = made(rng, 2, 0.05, 0.01, identities=8)
    difference = a.mean(axis=0) - b.mean(axis=0)
    per_person = np.array([difference[people == person].sum() for person in range(8)])
    flipped = [float(np.dot(signs, per_person)) for signs in product((1, -1), repeat=8)]
    exact = np.mean([abs(value) >= abs(per_person.sum()) - 1e-12 for value in flipped])
    assert sign_flip_p(a, b, people, rng) == pytest.approx(exact)


def test_the_sign_flip_p_is_never_zero_and_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(9)
    a, b, people = made(rng, 1, 0.5, 0.0)
    assert sign_flip_p(a, b, people, rng) == pytest.approx(2 / (statistics.FLIPS + 1))
    p_values = []
    for _ in range(120):
        a, b, people = made(rng, 1, 0.0, 0.0, identities=12)
        p_values.append(sign_flip_p(a, b, people, rng))
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert 0.4 <= np.mean(np.array(p_values) <= 0.5) <= 0.6


def test_holm_multiplies_the_smallest_p_by_the_size_of_the_family() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    # By hand: 0.005 x 4, 0.01 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below the 0.06 before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert len(holm([])) == 0


@pytest.mark.parametrize(
    ("ap", "people", "message"),
    [(np.zeros((2, 4)), np.arange(5), "with 5 queries"), (np.zeros((2, 4)), np.zeros(4, int), "one person")],
)
def test_arrays_that_do_not_fit_are_refused(ap: np.ndarray, people: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(ap, ap, people, np.random.default_rng(0))
