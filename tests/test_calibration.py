"""Calibration tables pair runs of one start, and keep what other sessions and machines have measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import calibration
from core.validation import read_mapping
from pipeline import evaluate, train
from pipeline.jobs import Job
from pipeline.records import read_result
from tests.conftest import TinyWorld

WRITTEN = read_mapping(calibration.SETTINGS)
COLUMNS = [*calibration.KEY, *calibration.MEASURED]


def figures(*lines: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=COLUMNS)


def table(text: str) -> pd.DataFrame:
    """A Markdown table as text cells by column title."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return pd.DataFrame(rows[2:], columns=rows[0])


def test_a_difference_is_between_runs_of_one_world_and_one_start() -> None:
    told = calibration.sizes_table(
        figures(
            ("medium", "warm_start", 1000, "a", 40.0, 9),
            ("medium", "cluster_contrast", 1000, "a", 60.0, 100),
            ("medium", "hhcl", 1000, "a", 61.0, 100),
            ("medium", "cluster_contrast", 1001, "b", 70.0, 300),
            ("medium", "hhcl", 1001, "b", 75.0, 100),
            ("medium", "hhcl", 1001, "of another machine", 10.0, 100),
        ),
        WRITTEN,
    )
    (line,) = table(told).to_dict("records")
    assert line["setting"] == "96x48, 300 steps"
    assert line["cluster_contrast"] == "65.0 (2)"
    assert line["hhcl - cluster_contrast: mean, sd"] == "+3.0, 2.8"
    assert line["spcl - cluster_contrast: mean, sd"] == "-, -"
    assert line["s per cluster_contrast"] == "200"


def test_a_length_ranks_the_methods_over_the_worlds_that_have_them_all() -> None:
    long = "medium-schedule.iterations=60"
    told = calibration.lengths_table(
        figures(
            *(
                ("medium", run, 1000, "a", value, 1)
                for run, value in (("cluster_contrast", 60), ("hhcl", 62), ("spcl", 50))
            ),
            *(
                (long, run, 1000, "a", value, 1)
                for run, value in (("cluster_contrast", 70), ("hhcl", 69), ("spcl", 71))
            ),
            *(
                (long, run, 1001, "b", value, 1)
                for run, value in (("cluster_contrast", 74), ("hhcl", 75), ("spcl", 77))
            ),
            (long, "spcl", 1002, "c", 0.0, 1),
        ),
        WRITTEN,
    )
    once, twice = table(told).to_dict("records")
    assert (once["cluster_contrast"], once["hhcl"], once["spcl"]) == ("60.0 (2)", "62.0 (1)", "50.0 (3)")
    assert (twice["cluster_contrast"], twice["hhcl"], twice["spcl"]) == ("72.0 (2)", "72.0 (2)", "74.0 (1)")
    assert (once["worlds with these ranks"], twice["worlds with these ranks"]) == ("1", "0")
    assert twice["hhcl - cluster_contrast: mean, sd"] == "+0.0, 1.4"


def test_a_search_compares_rates_within_the_starts_that_have_all_three() -> None:
    half, double = "medium-optimiser.lr=0.000175", "medium-optimiser.lr=0.0007"
    told = calibration.search_table(
        figures(
            *((place, "spcl", 1000, "a", value, 1) for place, value in ((half, 50), ("medium", 60), (double, 64))),
            *((place, "spcl", 1001, "b", value, 1) for place, value in ((half, 50), ("medium", 60))),
            *((place, "hhcl", 1001, "b", value, 1) for place, value in ((half, 50), ("medium", 60))),
        ),
        WRITTEN,
    )
    (line,) = table(told).to_dict("records")
    assert (line["run"], line["worlds"], line["best"], line["above shared"]) == ("spcl", "1", "twice the rate", "+4.0")


def test_a_run_here_replaces_its_line_of_the_file_and_no_other(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = tmp_path / "calibration/medium" / Job("warm_start", "rendered-1000", "resnet18_half", 0).evaluated
    assert train.main(world.train_arguments("warm_start", tmp_path / "trained")) == 0
    assert evaluate.main(world.evaluate_arguments("warm_start", tmp_path / "trained", scored)) == 0
    record = read_result(scored)
    start = str(record.initial.sha256)[:8]
    monkeypatch.setattr(calibration, "FOLDER", tmp_path / "calibration")
    monkeypatch.setattr(calibration, "FIGURES", tmp_path / "figures.csv")
    before = figures(
        ("medium", "warm_start", 1000, start, 0.0, 1),
        ("medium", "warm_start", 1000, "12345678", 33.0, 1),
        ("of an earlier file", "hhcl", 1, "1e100000", 34.0, 1),
    )
    before.to_csv(calibration.FIGURES, index=False)
    known = calibration.known(WRITTEN).set_index("start")["mAP"].to_dict()
    score = record.selection.last.figure("mAP")
    assert score is not None
    assert known == {start: pytest.approx(100 * score, abs=1e-3), "12345678": 33.0, "1e100000": 34.0}
