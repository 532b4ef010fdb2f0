"""How small a difference worlds resolve, by formulas that a library's regression gives as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, t

from pipeline.params import read_params
from reports import resolution
from reports.resolution import at_equal_starts, worlds_needed
from reports.table import read_results
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(30), 2)


def test_what_is_left_at_equal_starts_is_the_error_of_a_regression_s_mean() -> None:
    rng = np.random.default_rng(0)
    starts = rng.normal(40, 10, 6)
    differences = 3 - 0.4 * starts + rng.normal(0, 1, 6)
    line = linregress(starts, differences)
    rest = differences - line.intercept - line.slope * starts
    expected = t.ppf(0.975, 4) * np.sqrt((rest**2).sum() / 4 / 6)
    assert at_equal_starts(differences, starts) == pytest.approx(expected)
    assert at_equal_starts(1 - 0.2 * starts, starts) == pytest.approx(0, abs=1e-9)


def test_the_worlds_needed_are_the_first_number_that_reaches_the_goal() -> None:
    for sd in (0.2, 1.9, 5.3):
        n = worlds_needed(sd)
        half = [t.ppf(0.975, k - 1) * sd / np.sqrt(k) for k in (n - 1, n) if k > 1]
        assert half[-1] <= resolution.GOAL
        assert n == 2 or half[0] > resolution.GOAL


def tabled(folder: Path, runs: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(folder)
    for name, levels in runs.items():
        for world, level in enumerate(levels):
            write_result(name, 0, np.full(len(PEOPLE), level), PEOPLE, world=world, cameras=["sampler"])
    params = write_params(folder, list(runs), [0], range(max(map(len, runs.values()))))
    return resolution.resolution(read_results(read_params(params)))


def test_methods_are_listed_with_their_baseline_and_the_bounds_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {
        "warm_start": [0.3, 0.4, 0.5, 0.6],
        "cluster_contrast": [0.5, 0.55, 0.6, 0.66],
        "hhcl": [0.6, 0.62, 0.64, 0.67],
        "supervised": [0.9, 0.91, 0.9, 0.92],
    }
    table = tabled(tmp_path, runs, monkeypatch)
    assert list(zip(table["a"], table["b"], strict=True)) == [("hhcl", "cluster_contrast")]
    row = table.iloc[0]
    differences, starts = np.array([10, 7, 4, 1.0]), np.array([30, 40, 50, 60.0])
    assert row["difference"] == pytest.approx(5.5)
    assert row["half_width"] == pytest.approx(t.ppf(0.975, 3) * differences.std(ddof=1) / 2)
    assert row["correlation"] == pytest.approx(-1)
    assert row["half_width_equal_starts"] == pytest.approx(at_equal_starts(differences, starts), abs=1e-9)
    assert "Of 1 pairs, 0 have a half-width of at most 2.0" in resolution.markdown(table)


def test_a_warm_start_that_lacks_a_world_leaves_the_half_width_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"warm_start": [0.3], "cluster_contrast": [0.5, 0.55, 0.6, 0.66], "hhcl": [0.6, 0.62, 0.64, 0.67]}
    row = tabled(tmp_path, runs, monkeypatch).iloc[0]
    assert np.isnan([row["correlation"], row["half_width_equal_starts"]]).all()
    assert row["half_width"] > 2
