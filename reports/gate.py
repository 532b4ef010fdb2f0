"""Whether a table is still what it was: prediction intervals over worlds at a stated rate of false alarms.

A row is measured in several worlds; where a dataset has none, with several seeds, which stand for worlds below. Arrays
are (..., rows, worlds), in percent, and leading axes are independent tables. docs/gate.md has the model and what it can
see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, polygamma, stdtrit

FALSE_ALARMS = 0.01  # chance that unchanged code shows anything but ``match`` anywhere
ROWS, TABLES = 0.005, 0.003  # what all rows and all tables spend of it; the rest is kept for variances being estimates
POWER = 0.8
LEAST = 0.5  # points of mAP: a smaller difference is no fault, however calm the worlds
FEWEST_OTHERS = 3  # rows beside a row, from which a world's own effect is taken
FEWEST_WORLDS = 4  # of the reference, for a slope of each row
CALMEST = 0.25  # of the median variance: what a calmer row counts as, beside which all others would look wild
FEWEST_SHARED = 3  # worlds that both sides have, for a paired comparison


@dataclass(frozen=True)
class Prediction:
    """Differences here minus reference, their standard errors and the degrees of freedom of these; arrays alike."""

    difference: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def tolerance(self, false_alarms: float) -> np.ndarray:
        """By how much a difference may leave zero: beyond it by chance in ``false_alarms`` of cases, both sides."""
        return np.maximum(stdtrit(self.freedom, 1 - false_alarms / 2) * self.error, LEAST)

    def caught(self, false_alarms: float) -> np.ndarray:
        """The true loss that is seen with probability POWER."""
        return np.asarray(self.tolerance(false_alarms) + stdtrit(self.freedom, POWER) * self.error)


def predict(reference: np.ndarray, here: np.ndarray) -> Prediction:
    """Each row's mean over the worlds ``here`` (..., R, V) against what the ``reference`` (..., R, W) lets expect.

    The worlds may be the same or others; NaN in ``here`` is a run that is not there. A row is expected to follow what a
    world does to the other rows (``others``), by a slope of its own that the reference's worlds give. The error is that
    of a regression's prediction for runs that share nothing: runs in the same worlds differ less. Where rows do not
    ``follow``, plain means are compared.
    """
    worlds = reference.shape[-1]
    follows = follow(*reference.shape[-2:])
    levels = reference.mean(axis=-1, keepdims=True)
    known, new = (others(values - levels) if follows else 0 * values for values in (reference, here))
    centre = known.mean(axis=-1, keepdims=True)
    known, new = known - centre, new - centre
    power = (known**2).sum(axis=-1, keepdims=True)
    power = np.where(power > 0, power, np.inf)  # worlds that are all alike give no slope
    slope = (known * reference).sum(axis=-1, keepdims=True) / power
    rest, left = reference - levels - slope * known, here - levels - slope * new
    freedom = worlds - 1 - follows
    variance, total = spread((rest**2).sum(axis=-1) / freedom, freedom, independent=follows)
    found = (~np.isnan(left)).sum(axis=-1)
    reach = mean(np.where(np.isnan(left), np.nan, new), found) ** 2 / power[..., 0]
    error = np.sqrt(variance * (1 / np.maximum(found, 1) + 1 / worlds + reach))
    return Prediction(mean(left, found), error, total)


def follow(rows: int, worlds: int) -> bool:
    """Whether a table of the reference is large enough to tell what a world does to all of its rows."""
    return rows > FEWEST_OTHERS and worlds >= FEWEST_WORLDS


def mean(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the ``found`` values that are no NaN; NaN of none."""
    return np.asarray(np.nansum(values, axis=-1) / np.where(found, found, np.nan))


def others(above: np.ndarray) -> np.ndarray:
    """What a world does to the other rows (..., R, W): the median of how far they are ``above`` their levels there.

    above (..., R, W). A median, so that a broken row does not flatter its neighbours.
    """
    rows = range(above.shape[-2])
    return np.stack([known_median(np.delete(above, row, axis=-2)) for row in rows], axis=-2)


def known_median(above: np.ndarray) -> np.ndarray:
    """(..., W) medians of ``above`` (..., rows, W) without NaN, and NaN of fewer than FEWEST_OTHERS."""
    if not np.isnan(above).any():
        return np.asarray(np.median(above, axis=-2))
    known = (~np.isnan(above)).sum(axis=-2)
    filled = np.where(known[..., None, :] > 0, above, 0.0)  # nanmedian warns of a world without any
    return np.where(known >= FEWEST_OTHERS, np.nanmedian(filled, axis=-2), np.nan)


def spread(variances: np.ndarray, freedom: int, independent: bool) -> tuple[np.ndarray, np.ndarray]:
    """What one world more varies by: ``variances`` (..., R) of ``freedom`` each, moderated, and degrees of freedom.

    Six worlds know a standard deviation within a factor of two, so rows lend each other theirs:
    (d0 * prior + d * own) / (d0 + d), the prior and its weight d0 by ``prior`` (limma's empirical Bayes). A row that
    varies more than that keeps its own: methods do differ in how calm they are. Rows that are
    not ``independent`` share what their worlds do, and know together no more than one.
    """
    rows = variances.shape[-1]
    if not independent or not variances.any(axis=-1).all():
        pooled = np.maximum(variances, variances.mean(axis=-1, keepdims=True))
        return pooled, np.full(variances.shape, float(freedom))
    variances = np.maximum(variances, CALMEST * np.median(variances, axis=-1, keepdims=True))
    location, weight = prior(variances, freedom)
    share = 1 / (1 + freedom / weight)
    moderated = share * location + (1 - share) * variances
    total = np.minimum(weight + freedom, freedom * (rows - 1.0))
    return np.maximum(moderated, variances), np.broadcast_to(total, variances.shape)


def prior(variances: np.ndarray, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (..., 1) and degrees of freedom (..., 1) of the scaled inverse chi-square that ``variances`` (..., R) have.

    By the moments of their logarithms (Smyth, Statistical Applications in Genetics and Molecular Biology 2004, section
    6.2). Infinite degrees of freedom where they scatter no more than variances of one truth.
    """
    half = freedom / 2
    logs = np.log(variances) - digamma(half) + np.log(half)
    excess = logs.var(axis=-1, ddof=1, keepdims=True) - polygamma(1, half)
    mean = logs.mean(axis=-1, keepdims=True)
    alike = excess <= 1e-3  # more than 2,000 degrees of freedom
    weight = 2 * trigamma_inverse(np.where(alike, 1.0, excess))
    location = np.exp(mean + digamma(weight / 2) - np.log(weight / 2))
    return np.where(alike, np.exp(mean), location), np.where(alike, np.inf, weight)


def trigamma_inverse(values: np.ndarray) -> np.ndarray:
    """x of trigamma(x) = ``values``, by Newton's method on 1 / trigamma, which is nearly a line and convex."""
    x = 0.5 + 1 / values
    for _ in range(10):
        trigamma = polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / polygamma(2, x)
    return np.asarray(x)


def shift(reference: np.ndarray, here: np.ndarray, pairs: list[tuple[int, int]]) -> Prediction:
    """The whole table's move, which rows that follow each other cannot show: the median row's, in the mean over worlds.

    ``pairs`` are the columns (reference, here) of worlds that both have. With FEWEST_SHARED of them they are compared
    one by one, by the spread of their own differences: a world's difficulty is in both. Otherwise the spread is that
    of the reference's worlds.
    """
    levels = reference.mean(axis=-1)[..., None]
    before, now = np.median(reference - levels, axis=-2), np.nanmedian(here - levels, axis=-2)
    if len(pairs) >= FEWEST_SHARED:
        theirs, ours = np.transpose(pairs)
        moved = now[..., ours] - before[..., theirs]
        error = np.sqrt(moved.var(axis=-1, ddof=1) / len(pairs))
        return Prediction(moved.mean(axis=-1), error, np.full(error.shape, len(pairs) - 1.0))
    worlds = before.shape[-1]
    error = np.sqrt(before.var(axis=-1, ddof=1) * (1 / now.shape[-1] + 1 / worlds))
    return Prediction(now.mean(axis=-1) - before.mean(axis=-1), error, np.full(error.shape, worlds - 1.0))
