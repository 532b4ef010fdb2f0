"""The gate's intervals: how often unchanged code raises an alarm, and what loss is seen."""

from __future__ import annotations

import numpy as np
import pytest

from reports import gate

WORLDS = 6
WORLD_SD, START_SD, ROW_SD = 4.0, 2.0, 1.4  # points: people drawn, the warm start on another machine, one row's own
OWN = 0.5  # share of a row's variance that belongs to method and world; the rest is the run's
CALM = np.full(18, ROW_SD)
UNEQUAL = ROW_SD * np.exp(np.random.default_rng(1).normal(0, 0.4, 18))
WILD = np.append(CALM[:16], [4.0, 4.0])


def tables(
    rows: np.ndarray, count: int, worlds: int, same: bool, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A reference of WORLDS worlds and another machine's table by the same code, in the same worlds or in new ones."""

    def world(columns: int) -> np.ndarray:
        suits = rng.normal(0, 1, (draws, count, columns)) * rows[:, None] * np.sqrt(OWN)
        return rng.normal(0, WORLD_SD, (draws, 1, columns)) + suits

    def run(drawn: np.ndarray) -> np.ndarray:
        start = rng.normal(0, START_SD, (draws, 1, drawn.shape[-1]))
        return 50 + drawn + start + rng.normal(0, 1, drawn.shape) * rows[:, None] * np.sqrt(1 - OWN)

    first = world(WORLDS)
    return run(first), run(first[..., :worlds] if same else world(worlds))


def alarms(reference: np.ndarray, here: np.ndarray, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """(draws, R) whether a row leaves its interval, and (draws,) whether the table does."""
    rows = gate.predict(reference, here)
    pairs = [(world, world) for world in range(here.shape[-1])] if same else []
    table = gate.shift(reference, here, pairs)
    out = np.abs(rows.difference) > rows.tolerance(gate.ROWS / reference.shape[-2])
    return out, np.abs(table.difference) > table.tolerance(gate.TABLES)


@pytest.mark.parametrize("worlds", [1, WORLDS])
@pytest.mark.parametrize(("rows", "bound"), [(CALM, 0.01), (UNEQUAL, 0.01), (CALM[:6], 0.01), (WILD, 0.015)])
def test_unchanged_code_in_new_worlds_raises_an_alarm_in_one_table_of_a_hundred_at_most(
    rows: np.ndarray, bound: float, worlds: int
) -> None:
    """Of 4,000 tables: Monte Carlo standard error 0.16 points. Two wild rows of eighteen may cost half a point more."""
    reference, here = tables(rows, len(rows), worlds, False, 4_000, np.random.default_rng(7))
    out, moved = alarms(reference, here, False)
    assert (out.any(axis=1) | moved).mean() <= bound + 2 * 0.0016


def test_unchanged_code_in_the_same_worlds_raises_fewer_alarms() -> None:
    reference, here = tables(UNEQUAL, len(UNEQUAL), WORLDS, True, 4_000, np.random.default_rng(7))
    out, moved = alarms(reference, here, True)
    assert (out.any(axis=1) | moved).mean() <= 0.005
    unpaired = gate.shift(reference, here, [])
    assert np.mean(gate.shift(reference, here, [(w, w) for w in range(WORLDS)]).error) < 0.6 * np.mean(unpaired.error)


@pytest.mark.parametrize(("worlds", "loss"), [(1, 8.5), (WORLDS, 4.7)])
def test_the_loss_of_one_method_is_seen_in_four_of_five_tables_as_the_gate_says(worlds: int, loss: float) -> None:
    reference, here = tables(CALM, len(CALM), worlds, False, 1_000, np.random.default_rng(8))
    here[:, 0] -= loss
    out, _ = alarms(reference, here, False)
    assert 0.78 <= out[:, 0].mean() <= 0.86
    assert out[:, 1:].any(axis=1).mean() <= gate.ROWS + 0.005, "the other rows are not touched"
    told = gate.predict(reference, here).caught(gate.ROWS / len(CALM))[:, 0]
    assert np.mean(told) == pytest.approx(loss, rel=0.1)


def test_a_loss_of_all_methods_is_seen_as_the_table_s_own() -> None:
    reference, here = tables(CALM, len(CALM), WORLDS, True, 1_000, np.random.default_rng(9))
    out, moved = alarms(reference, here - 8.5, True)
    assert moved.mean() >= 0.8
    assert out.any(axis=1).mean() <= gate.ROWS + 0.005


def test_a_row_that_is_missing_in_some_worlds_is_compared_in_the_others() -> None:
    reference, here = (table[0] for table in tables(CALM[:6], 6, 4, True, 1, np.random.default_rng(2)))
    here[0, 1:], here[2, :] = np.nan, np.nan
    found = gate.predict(reference, here)
    alone = gate.predict(reference, here[:, :1])
    assert found.difference[0] == pytest.approx(alone.difference[0])
    assert found.error[0] == pytest.approx(alone.error[0])
    assert np.isnan(found.difference[2])
    here[3:, :] = np.nan
    assert np.isnan(gate.predict(reference, here).difference).all(), "two rows cannot tell what a world does"


def test_the_prior_finds_the_spread_that_variances_were_drawn_with() -> None:
    rng = np.random.default_rng(4)
    truth = 3.0 * 10 / rng.chisquare(10, (1, 4_000))
    mean, freedom = gate.prior(truth * rng.chisquare(5, truth.shape) / 5, 5)
    assert mean == pytest.approx(3.0, rel=0.05)
    assert freedom == pytest.approx(10, rel=0.15)
    assert np.isinf(gate.prior(3.0 * np.linspace(0.9, 1.1, 50)[None], 5)[1])
