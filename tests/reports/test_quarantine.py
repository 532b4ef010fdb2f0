"""The checks that a result passes on load, and what becomes of one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports import leaderboard
from reports.record import read_result
from reports.text import markdown_table
from tests.reports.synthetic import PEOPLE, aps, write_params, write_result, write_runs


def rewrite(folder: Path, **last: Any) -> None:
    record = json.loads((folder / "result.json").read_text())
    record["selection"]["last"].update(last)
    (folder / "result.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"rank1": 0.99, "rank5": 0.5}, "rank-k does not rise with k"),
        ({"valid_queries": 161}, "160 rows in queries.csv, but valid_queries is 161"),
        ({"mAP": 0.5999}, "mAP is 0.599900, but queries.csv gives"),
        ({"rank1": 0.0}, "rank1 is 0.000000, but queries.csv gives"),
        ({"mAP": 60.0}, "mAP is 60.0, not a number from 0 to 1"),
        ({"mAP": float("nan")}, "mAP is nan, not a number from 0 to 1"),
        ({"rank10": None}, "rank10 is None, not a number from 0 to 1"),
        ({"mAP": 0.9}, "best epoch on test"),
    ],
)
def test_figures_that_contradict_themselves_are_quarantined(here: Path, last: dict[str, Any], message: str) -> None:
    ap = np.where(np.arange(160) < 16, 1.0, 0.55)
    folder = write_result("hhcl", 0, ap, PEOPLE, best=0.7)
    assert read_result(folder).ok
    rewrite(folder, **last)
    result = read_result(folder)
    assert result.record.status == "quarantined"
    assert message in result.record.reason
    assert result.queries is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda side: side.unlink(), "cannot be read"),
        (lambda side: side.write_text(""), "cannot be read"),
        (lambda side: side.write_text("query,ap\n0,1\n"), "lacks the columns"),
        (lambda side: side.write_text(side.read_text().replace("\n0,0,", "\n0,zero,")), "no numbers"),
        (lambda side: side.write_text(side.read_text().replace("\n1,0,", "\n0,0,")), "names a query twice"),
    ],
)
def test_a_spoilt_side_file_is_quarantined(here: Path, spoil: Any, message: str) -> None:
    folder = write_result("hhcl", 0, aps(0.6), PEOPLE)
    spoil(folder / "queries.csv")
    assert message in read_result(folder).record.reason


def test_a_record_in_another_jobs_folder_is_quarantined(here: Path) -> None:
    folder = write_result("hhcl", 0, aps(0.6), PEOPLE)
    other = folder.with_name("spcl-rendered-resnet18_half-0")
    folder.rename(other)
    result = read_result(other)
    assert not result.ok
    assert "its record is of hhcl-rendered-resnet18_half-0" in result.record.reason


def test_a_reason_can_neither_end_its_cell_nor_be_read_as_html() -> None:
    shown = markdown_table({"status": ["failed: <b>a | b</b>\nc"], "mAP": [1.0]})
    assert shown.splitlines()[-1].startswith(r"| failed: &lt;b>a \| b&lt;/b> c | 1.0")


def test_a_quarantined_seed_enters_no_mean_and_is_named_in_the_table_and_on_screen(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs({"cluster_contrast": 0.5, "hhcl": 0.6}, [0, 1, 2, 3])
    rewrite(Path("results/runs/hhcl-rendered-resnet18_half-1"), mAP=0.1)
    params = write_params(here, ["cluster_contrast", "hhcl"], [0, 1, 2, 3])
    assert leaderboard.main(["--params", str(params), "--out", "results"]) == 0
    row = pd.read_csv("results/leaderboard.csv").set_index("method").loc["hhcl"]
    assert row["mAP_mean"] == pytest.approx(100 * np.mean([aps(0.6, seed).mean() for seed in (0, 2, 3)]))
    assert row["status"].startswith("quarantined (1 of 4 seeds): hhcl-rendered-resnet18_half-1: mAP is 0.1")
    assert row["verdict"] == "better"
    assert "quarantined: hhcl-rendered-resnet18_half-1: mAP is 0.1" in capsys.readouterr().err


def test_the_warning_of_jobs_that_were_not_run_names_some_and_counts_all(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs({"hhcl": 0.6}, [0])
    assert leaderboard.main(["--params", str(write_params(here, ["hhcl"], list(range(11)))), "--out", "results"]) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("not run"))
    assert warning.startswith("not run: 10 of 11 jobs: hhcl-rendered-resnet18_half-1, hhcl-rendered-resnet18_half-2, ")
    assert warning.endswith("hhcl-rendered-resnet18_half-8, and 2 more")


def test_a_result_that_is_no_json_says_what_to_run(here: Path) -> None:
    folder = write_result("hhcl", 0, aps(0.6), PEOPLE)
    (folder / "result.json").write_text('{"status": "ok"')
    with pytest.raises(
        ValueError,
        match=r"not valid JSON: .* another version .* run `python -m pipeline\.evaluate`",
    ):
        read_result(folder)
