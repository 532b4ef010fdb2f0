"""Lines over the warm start foretell later worlds from earlier ones alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.params import read_params
from reports import forecast
from reports.table import read_results
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(30), 2)
STARTS = np.array([0.3, 0.4, 0.5, 0.6, 0.2, 0.7])
FITTED = (0, 1, 2, 3)


def table(folder: Path, monkeypatch: pytest.MonkeyPatch, hhcl: np.ndarray) -> pd.DataFrame:
    """Of a method and a baseline that is 0.1 above the warm start everywhere."""
    monkeypatch.chdir(folder)
    runs = {"warm_start": STARTS, "cluster_contrast": STARTS + 0.1, "hhcl": hhcl, "supervised": STARTS + 0.2}
    for name, levels in runs.items():
        for world, level in enumerate(levels):
            write_result(name, 0, np.full(len(PEOPLE), level), PEOPLE, world=world, cameras=["sampler"])
    params = write_params(folder, list(runs), [0], range(len(STARTS)))
    return forecast.forecasts(forecast.points(read_results(read_params(params))), FITTED)


def test_a_difference_that_hangs_on_the_start_is_foretold_by_the_line_and_not_by_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = table(tmp_path, monkeypatch, STARTS + 0.1 + 0.2 * (1 - STARTS))
    assert list(zip(found["a"], found["b"], strict=True)) == [("hhcl", "cluster_contrast")]
    row = found.iloc[0]
    assert row["slope"] == pytest.approx(-0.2)
    assert row["worlds"] == 2
    assert row["error_of_line"] == pytest.approx(0, abs=1e-5)
    assert row["error_of_mean"] == pytest.approx(100 * 0.2 * 0.25)  # both worlds are 0.25 from the mean start
    assert "foretold 1 of 1 pairs" in forecast.markdown(found)


def test_what_is_foretold_has_no_part_in_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = np.where(np.arange(len(STARTS)) < len(FITTED), 0, [0, 0, 0, 0, 0.05, -0.15])
    row = table(tmp_path, monkeypatch, STARTS + 0.1 + 0.2 * (1 - STARTS) + later).iloc[0]
    assert row["slope"] == pytest.approx(-0.2)
    assert row["error_of_line"] == pytest.approx(100 * np.sqrt((0.05**2 + 0.15**2) / 2), rel=1e-5)


def test_without_later_worlds_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.reports.test_forecast.STARTS", STARTS[:4])
    found = table(tmp_path, monkeypatch, STARTS[:4] + 0.1)
    assert found.empty
    assert forecast.markdown(found) == "No world after these yet."


def test_a_panel_shows_later_worlds_apart_and_the_line_of_the_earlier_ones() -> None:
    part = pd.DataFrame({"world": range(6), "start": 100 * STARTS, "difference": [7, 6, 5, 4, 0, 0]})
    axis = Figure().subplots()
    forecast.draw_pair(axis, part, FITTED)
    _, earlier, later, fitted = (np.array(drawn.get_xydata()) for drawn in axis.get_lines())
    assert earlier == pytest.approx(np.array([[30, 7], [40, 6], [50, 5], [60, 4]]))
    assert later == pytest.approx(np.array([[20, 0], [70, 0]]))
    assert fitted == pytest.approx(np.array([[20, 8], [70, 3]]))
