"""Whether methods come in the same order here as elsewhere: rank correlation with exact p."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, rankdata

from pipeline.layers import variants
from reports.published import REFERENCES
from reports.published import rows as published_rows
from reports.table import MAIN

PAPERS = "market1501"  # whose published numbers nearly all methods have
FEWEST = 3
RESAMPLES = 50_000  # all orders of eight; of more, so many random ones
WORTH = (
    "It is worth little: few methods, other images, a smaller network and shorter runs than the papers', whose own "
    "numbers differ in machines and tuning."
)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho and Kendall's tau-b of two lists of the same ``methods``, each with its two-sided p.

    p is the share of all orders whose coefficient is as far out; ``exact`` is False where they were drawn.
    """

    methods: tuple[str, ...]
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float
    exact: bool


def rank_correlation(ours: Mapping[str, float], theirs: Mapping[str, float]) -> RankCorrelation | None:
    """Correlate two lists over the methods that both name; None for fewer than FEWEST, or if one is all ties."""
    shared = tuple(name for name in ours if name in theirs)
    x, y = (np.array([values[name] for name in shared], dtype=float) for values in (ours, theirs))
    if len(shared) < FEWEST or not (np.ptp(x) and np.ptp(y)):
        return None
    spearman, spearman_p = permuted(centred_ranks(x), centred_ranks(y))
    first, second = np.triu_indices(len(shared), 1)
    kendall, kendall_p = permuted(x, np.sign(y[first] - y[second]), (first, second))
    return RankCorrelation(shared, spearman, spearman_p, kendall, kendall_p, math.factorial(len(shared)) <= RESAMPLES)


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties sharing their mean, about zero."""
    return np.asarray(rankdata(values) - (len(values) + 1) / 2)


def permuted(
    x: np.ndarray, fixed: np.ndarray, pairs: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[float, float]:
    """The cosine of ``x``, or of the signs of its ``pairs``' differences, with ``fixed``; and its p over orders."""

    def cosine(sample: np.ndarray, axis: int) -> np.ndarray:
        values = np.moveaxis(sample, axis, -1)
        if pairs is not None:
            values = np.sign(values[..., pairs[0]] - values[..., pairs[1]])
        return np.asarray(values @ fixed / np.sqrt((values**2).sum(axis=-1) * (fixed**2).sum()))

    test = permutation_test(
        (x,), cosine, permutation_type="pairings", n_resamples=RESAMPLES, vectorized=True, rng=np.random.default_rng(0)
    )
    return float(test.statistic), float(test.pvalue)


def published(methods: Iterable[str], dataset: str = PAPERS) -> dict[str, float]:
    """The papers' mAP of each method's headline variant, where it was read in a source of its authors."""
    found = {method: published_map(method, dataset) for method in methods}
    return {method: value for method, value in found.items() if value is not None}


def published_map(method: str, dataset: str) -> float | None:
    """The first such number of one method; None where there is none."""
    headline = variants(method)[0]
    rows = [row for row in published_rows(method) if (row.dataset, row.variant) == (dataset, headline)]
    return next((row.figure(MAIN.name) for row in rows if row.first_hand), None)


def headlines(part: pd.DataFrame) -> dict[str, float]:
    """mAP of each method's headline variant among leaderboard rows of one backbone, without floor and ceiling."""
    rows = part[~part["method"].isin(REFERENCES)].dropna(subset=[f"{MAIN.name}_mean"])
    return {
        row["method"]: float(row[f"{MAIN.name}_mean"])
        for _, row in rows.iterrows()
        if row["variant"] == variants(row["method"])[0]
    }


def beside_papers(part: pd.DataFrame) -> str:
    """What the leaderboard says of its order and the papers', backbone by backbone."""
    told = []
    for backbone, rows in part.groupby("backbone", sort=False):
        ours = headlines(rows)
        found = rank_correlation(ours, published(ours))
        told.append(f"{backbone}: {sentence(found)}")
    return "\n\n".join(told)


def sentence(found: RankCorrelation | None) -> str:
    """The coefficients, over which methods, and what they are worth."""
    if found is None:
        return f"fewer than {FEWEST} methods have a published number that was read at its authors; no correlation."
    how = "exact p" if found.exact else f"p of {RESAMPLES:,} random orders"
    over = f"the {len(found.methods)} methods whose number was read at its authors ({', '.join(found.methods)})"
    spearman = f"Spearman {found.spearman:+.2f} ({how} {found.spearman_p:.3f})"
    kendall = f"Kendall {found.kendall:+.2f} ({how} {found.kendall_p:.3f})"
    return f"rank correlation with the papers' mAP on {PAPERS} over {over}: {spearman}, {kendall}. {WORTH}"
