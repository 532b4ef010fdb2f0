"""One table of the metrics: what stands in it is what is scored, checked, stored and printed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation import metrics
from evaluation.protocol import available, load
from reports.table import COLUMNS

ROOT = Path(__file__).parents[2]
QUERIES = pd.DataFrame({"ap": [1.0, 0.25], "ap_trapezoid": [1.0, 0.2], "inp": [1.0, 0.5], "first_match_rank": [1, 6]})


def test_a_figure_is_the_mean_of_its_column_or_the_share_of_first_matches_that_high() -> None:
    figures = {metric.name: metric.of(QUERIES) for metric in metrics.METRICS}
    assert figures == {
        **{"mAP": 0.625, "mAP_trapezoid": 0.6, "mINP": 0.75},
        **{"rank1": 0.5, "rank5": 0.5, "rank10": 1.0, "rank20": 1.0},
    }


def test_a_protocol_is_judged_by_the_first_metric_that_it_defines() -> None:
    assert (metrics.headline("cmc_and_map"), metrics.headline("cmc")) == ("mAP", "rank1")
    assert {load(name).headline for name in available()} == {"mAP", "rank1"}
    assert {metric.name for metric in metrics.METRICS} - {metric.name for metric in metrics.defined("cmc")} == {
        *("mAP", "mINP", "mAP_trapezoid")
    }


def test_names_are_unique_and_what_is_judged_by_is_published_and_on_the_board() -> None:
    assert len(metrics.BY_NAME) == len(metrics.METRICS)
    assert set(metrics.JUDGES) <= set(metrics.BOARD) & set(metrics.PUBLISHED)


def test_columns_of_the_leaderboard_keep_their_places() -> None:
    assert COLUMNS[5:16] == [
        *("worlds", "seeds", "mAP_mean", "mAP_sd", "gain_over_warm_start", "rank1_mean", "rank5_mean", "rank10_mean"),
        *("mINP_mean", "published_mAP", "published_rank1"),
    ]


@pytest.mark.parametrize("name", [metric.name for metric in metrics.METRICS])
def test_a_metric_is_named_in_code_by_the_table_alone(name: str) -> None:
    named = re.compile(rf"""["']{name}(_\w+)?["']""")
    for folder in ("evaluation", "pipeline", "reports"):
        for file in sorted((ROOT / folder).glob("*.py")):
            found = [] if file.name == "metrics.py" else named.findall(file.read_text())
            allowed = file.name == "ranking.py" and name == "mAP"  # Scores.mAP, a convenience
            assert not found or allowed, f"{file.relative_to(ROOT)} names {name}"


def test_a_lower_figure_may_be_the_better_one() -> None:
    miss = dataclasses.replace(metrics.METRICS[0], name="miss", higher_is_better=False)
    assert miss.better(np.float64(0.1), 0.2)
    assert not miss.better(0.2, 0.2)
