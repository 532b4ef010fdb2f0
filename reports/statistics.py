"""Whether one run ranks better than another: paired inference on the per-query AP of several seeds.

Two things vary and both are resampled: the seed a run was trained with, and the people asked for. Queries of one
person are not independent, so people, not queries, are drawn (a cluster bootstrap). All functions take AP as
fractions, ``ap`` (S, Q): one row per seed, one column per query, the same queries in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from scipy.stats import permutation_test

from core.errors import UserError

DRAWS = 10_000
FLIPS = 9_999  # with the observed one that makes 10,000
CONFIDENCE = 0.95
BATCH = 1_000  # sign flips at a time: bounds memory


@dataclass(frozen=True)
class Interval:
    """mAP of A minus mAP of B and its confidence interval, as fractions.

    probability: share of bootstrap draws in which A beats B, ties counting half. seeds_resampled: False where A or B
    has one seed only; the interval then speaks of the trained models, not of the methods.
    """

    difference: float
    low: float
    high: float
    probability: float
    seeds_resampled: bool


def by_identity(ap: np.ndarray, person_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums (S, I) of ``ap`` (S, Q) over the queries of each person, and the queries (I,) of each.

    Raises ValueError when shapes disagree, UserError when fewer than two people are asked for.
    """
    if ap.ndim != 2 or ap.shape[1] != len(person_ids):
        raise ValueError(f"AP must be (seeds, queries) with {len(person_ids)} queries, not {ap.shape}")
    people, index, counts = np.unique(person_ids, return_inverse=True, return_counts=True)
    if len(people) < 2:
        raise UserError("all queries show one person: nothing can be said about others; test on more people")
    return np.stack([np.bincount(index, row, len(people)) for row in ap]), counts


def identity_weights(identities: int, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """(draws, I): how often each identity is drawn, with replacement; comparisons on the same people may share it."""
    return rng.multinomial(identities, np.full(identities, 1 / identities), draws).astype(np.float32)


def seed_weights(seeds: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, S) weights of seeds drawn with replacement; rows sum to 1.

    Resampling S values gives a mean whose variance is (S - 1) / S times what it should be: a third too little for
    three seeds. The weights are therefore stretched about 1 / S by sqrt(S / (S - 1)). A single seed has weight 1.
    """
    if seeds == 1:
        return np.ones((draws, 1))
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    return 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (drawn - 1 / seeds)


def paired_bootstrap(
    ap_a: np.ndarray,
    ap_b: np.ndarray,
    person_ids: np.ndarray,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Two-level bootstrap of mAP(A) - mAP(B): seeds of A, seeds of B, then people, whom A and B share.

    ap_a (Sa, Q), ap_b (Sb, Q), person_ids (Q,); weights (draws, I) from ``identity_weights``, drawn here if None.
    Seeds of A and B are drawn independently, equal numbers or not: seed 0 of two methods has nothing in common beyond
    the order of some random draws, and treating a positive correlation as none can only widen the interval.

    The interval is difference +- t * sd(draws). Percentiles of the draws would do for many seeds, but of three they
    know ten values: simulated 95 % intervals covered 86 to 97 % of the time, and this one 95.7 to 97.5 %. The
    degrees of freedom of t are Satterthwaite's, from S - 1 per run and I - 1 for people, each by its share of the
    variance: few where seeds decide, many where people do.
    """
    sums_a, counts = by_identity(ap_a, person_ids)
    sums_b, _ = by_identity(ap_b, person_ids)
    if weights is None:
        weights = identity_weights(len(counts), rng)
    draws = resampled_map(sums_a, counts, weights, rng) - resampled_map(sums_b, counts, weights, rng)
    difference = float(ap_a.mean() - ap_b.mean())
    spread = float(draws.std(ddof=1))
    freedom = degrees_of_freedom(spread**2, (ap_a.mean(axis=1), ap_b.mean(axis=1)), len(counts))
    margin = float(stdtrit(freedom, (1 + confidence) / 2)) * spread
    return Interval(
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        probability=float((draws > 0).mean() + (draws == 0).mean() / 2),
        seeds_resampled=min(len(ap_a), len(ap_b)) > 1,
    )


def resampled_map(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws,) mAP of a run under ``weights`` (draws, I) of people and fresh draws of its seeds.

    sums (S, I) and counts (I,) as of ``by_identity``. A person drawn twice brings all queries twice.
    """
    per_seed = (weights @ sums.T.astype(np.float32)) / (weights @ counts.astype(np.float32))[:, None]
    return (per_seed * seed_weights(len(sums), len(weights), rng)).sum(axis=1)


def degrees_of_freedom(variance: float, seed_means: Sequence[np.ndarray], identities: int) -> float:
    """Satterthwaite's, for a ``variance`` of which the spread of the runs' ``seed_means`` (S,) explains a part."""
    parts = [(means.var(ddof=1) / len(means), len(means) - 1) for means in seed_means if len(means) > 1]
    people = max(variance - sum(part for part, _ in parts), 0.0)
    parts.append((people, identities - 1))
    total = sum(part for part, _ in parts)
    if total == 0:
        return identities - 1
    return total**2 / sum(part**2 / freedom for part, freedom in parts)


def sign_flip_p(ap_a: np.ndarray, ap_b: np.ndarray, person_ids: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p of "A and B rank each person equally well", by flipping the sign of each person's difference.

    The difference of a person is that of the seed-averaged APs, summed over the person's queries. Exact up to 13
    people, else (b + 1) / (n + 1) of 9,999 random flips. Seeds are averaged, not resampled: the p value is about the
    models at hand, and a verdict needs the interval as well.
    """
    sums_a, _ = by_identity(ap_a, person_ids)
    sums_b, _ = by_identity(ap_b, person_ids)
    difference = sums_a.mean(axis=0) - sums_b.mean(axis=0)
    test = permutation_test(
        (difference,),
        lambda sample, axis: sample.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=BATCH,
        rng=rng,
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of a family of p values (F,), in their order; of none, none.

    The k-th smallest of F is multiplied by F - k + 1, may not fall below the corrected one before it, nor exceed 1
    (Holm, Scandinavian Journal of Statistics 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected
