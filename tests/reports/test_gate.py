"""The gate's intervals: how often unchanged code raises an alarm, and what loss is seen."""

from __future__ import annotations

import numpy as np
import pytest

from reports import gate

WORLDS = 6
WORLD_SD, START_SD, ROW_SD = 3.0, 2.0, 1.4  # points: people drawn, the warm start on another machine, one row's own
OWN = 0.5  # share of a row's variance that belongs to method and world; the rest is the run's
FEELS = np.random.default_rng(2).uniform(0.3, 1.7, 18)  # how much of a world's and a start's effect a row has
CALM = np.full(18, ROW_SD)
UNEQUAL = ROW_SD * np.exp(np.random.default_rng(1).normal(0, 0.4, 18))
WILD = np.append(CALM[:16], [3 * ROW_SD, 3 * ROW_SD])


def tables(
    rows: np.ndarray, worlds: int, same: bool, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A reference of WORLDS worlds and another machine's table by the same code, in the same worlds or in new ones."""
    feels = FEELS[: len(rows), None]

    def world(columns: int) -> np.ndarray:
        suits = rng.normal(0, 1, (draws, len(rows), columns)) * rows[:, None] * np.sqrt(OWN)
        return feels * rng.normal(0, WORLD_SD, (draws, 1, columns)) + suits

    def run(drawn: np.ndarray) -> np.ndarray:
        start = feels * rng.normal(0, START_SD, (draws, 1, drawn.shape[-1]))
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
@pytest.mark.parametrize("rows", [CALM, UNEQUAL, CALM[:6]], ids=["alike", "unlike", "few"])
def test_unchanged_code_in_new_worlds_raises_an_alarm_in_one_table_of_a_hundred_at_most(
    rows: np.ndarray, worlds: int
) -> None:
    """Of 4,000 tables: Monte Carlo standard error 0.16 points."""
    reference, here = tables(rows, worlds, False, 4_000, np.random.default_rng(7))
    out, moved = alarms(reference, here, False)
    assert (out.any(axis=1) | moved).mean() <= gate.FALSE_ALARMS + 2 * 0.0016


@pytest.mark.parametrize("rows", [UNEQUAL, WILD], ids=["unlike", "two wild"])
def test_unchanged_code_in_the_same_worlds_raises_no_more(rows: np.ndarray) -> None:
    reference, here = tables(rows, WORLDS, True, 4_000, np.random.default_rng(7))
    out, moved = alarms(reference, here, True)
    assert (out.any(axis=1) | moved).mean() <= gate.FALSE_ALARMS + 2 * 0.0016
    unpaired = gate.shift(reference, here, [])
    assert np.mean(gate.shift(reference, here, [(w, w) for w in range(WORLDS)]).error) < 0.8 * np.mean(unpaired.error)


def test_two_wild_rows_of_eighteen_in_new_worlds_raise_it_to_three() -> None:
    """A limit of lending spreads, which docs/gate.md states."""
    reference, here = tables(WILD, WORLDS, False, 4_000, np.random.default_rng(7))
    out, moved = alarms(reference, here, False)
    assert (out.any(axis=1) | moved).mean() <= 0.03
    assert not out[:, :16].any(axis=1).mean() > gate.ROWS


@pytest.mark.parametrize(("worlds", "loss"), [(1, 9.7), (WORLDS, 5.2)])
def test_the_loss_of_one_method_is_seen_in_four_of_five_tables_as_the_gate_says(worlds: int, loss: float) -> None:
    """Monte Carlo standard error 1.3 points."""
    reference, here = tables(CALM, worlds, False, 1_000, np.random.default_rng(8))
    here[:, 0] -= loss
    out, _ = alarms(reference, here, False)
    assert 0.77 <= out[:, 0].mean() <= 0.84
    assert out[:, 1:].any(axis=1).mean() <= gate.ROWS + 0.005, "the other rows are not touched"
    told = gate.predict(reference, here).caught(gate.ROWS / len(CALM))[:, 0]
    assert np.mean(told) == pytest.approx(loss, rel=0.1)


def test_a_broken_method_does_not_make_the_others_look_better() -> None:
    reference, here = tables(CALM, WORLDS, False, 1_000, np.random.default_rng(10))
    here[:, 0] -= 40
    out, moved = alarms(reference, here, False)
    assert out[:, 0].all()
    assert (out[:, 1:].any(axis=1) | moved).mean() <= 0.02


def test_a_loss_of_all_methods_is_seen_as_the_table_s_own() -> None:
    reference, here = tables(CALM, WORLDS, True, 1_000, np.random.default_rng(9))
    _, moved = alarms(reference, here - 8.0, True)
    assert moved.mean() >= 0.8


def test_a_row_that_is_missing_in_some_worlds_is_compared_in_the_others() -> None:
    reference, here = (table[0] for table in tables(CALM[:6], 4, True, 1, np.random.default_rng(2)))
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
