"""The generated part of a page stands between its markers, and nothing else is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import methods
from pipeline.jobs import ROOT
from pipeline.settings import resolve_run
from reports import readme, verify
from reports.readme import (
    ADAPTATION,
    END,
    START,
    ablation_rows,
    leaderboard_rows,
    replace_between,
    with_forecast,
    with_leaderboard,
    with_main_columns,
    with_measured,
    with_real_people,
    with_resolution,
)
from reports.record import read_result
from reports.reference import read as read_reference
from tests.reports.synthetic import write_result

TEXT = (
    f"before\n{START.format(name='leaderboard', command='make readme')}\nold\n{END.format(name='leaderboard')}\nafter\n"
)


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = replace_between(TEXT, "leaderboard", "new table")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "new table" in text
    assert "old" not in text
    assert replace_between(text, "leaderboard", "new table") == text


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        replace_between("no markers here", "leaderboard", "table")


def test_a_clone_without_runs_and_data_shows_the_rows_of_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    people = np.repeat(np.arange(10), 3)
    ran = [write_result("hhcl", 0, np.full(30, level), people, world=world) for world, level in enumerate((0.5, 0.75))]
    verify.update([read_result(folder) for folder in ran], Path("results/reference"))
    shutil.rmtree("results/runs")
    Path("results/reference/leaderboard.csv").unlink()
    Path("docs").mkdir()
    for page in ("README.md", "docs/leaderboard.md"):
        Path(page).write_text(TEXT + TEXT.replace("leaderboard", "real people"))
    Path("docs/statistics.md").write_text("".join(TEXT.replace("leaderboard", it) for it in ("resolution", "forecast")))
    readme.show(Path("results/reference"), Path("README.md"))
    for page in ("README.md", "docs/leaderboard.md"):
        assert "| 62.5 " in Path(page).read_text()
    assert "Nothing yet." in Path("README.md").read_text()
    assert "One world: nothing yet." in Path("docs/statistics.md").read_text()
    assert Path("results/reference/leaderboard.csv").is_file()
    assert Path("docs/curves.png").stat().st_size > 10_000
    assert Path("docs/starts.png").is_file()


REFERENCE = ROOT / "results" / "reference"
SURVEYED = [name for name in methods.available() if (methods.folder(name) / "README.md").is_file()]


@pytest.mark.parametrize(
    ("page", "shown"),
    [("README.md", with_main_columns), ("README.md", with_real_people), ("docs/leaderboard.md", with_leaderboard)],
)
def test_a_page_shows_the_committed_leaderboard(page: str, shown: Callable[[str, Path], str]) -> None:
    text = (ROOT / page).read_text()
    assert shown(text, REFERENCE) == text, "results/reference has changed: run `make readme`"


def test_real_people_stand_beside_drawn_ones_by_run_and_start(tmp_path: Path) -> None:
    start, end = (mark.format(name="real people", command="make readme") for mark in (START, END))
    rows = {"method": ["hhcl", "hhcl"], "variant": ["released", "paper"], "mAP_mean": [64.4, 69.9]}
    place = {"backbone": "resnet18_half", "profile": "controlled", "dataset": "rendered"}
    pd.DataFrame({**rows, **place}).to_csv(tmp_path / "leaderboard.csv")
    real = {"method": ["hhcl"] * 3, "variant": ["released", "released", "paper"], "mAP_mean": [2.1, 9.3, None]}
    datasets = ["cuhk03np_detected", "cuhk03np_detected-from-cuhk01", "cuhk03np_detected"]
    pd.DataFrame({**real, "dataset": datasets}).to_csv(tmp_path / "cuhk03np_detected.csv")
    text = with_real_people(f"{start}\n{end}", tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    head, _, *body = lines
    assert head[0] == "run"
    assert [title.startswith("from ImageNet") for title in head[1:3]] == [True, True]
    assert "CUHK01" in head[2] or "cuhk01" in head[2]
    assert body == [["hhcl-released", "2.1", "9.3", "64.4"]]


def test_the_page_of_statistics_shows_what_the_committed_worlds_resolve() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text()
    read = [read_reference(folder) for folder in (REFERENCE, REFERENCE / ADAPTATION)]
    assert with_resolution(text, *read) == text, "results/reference has changed: run `make readme`"
    assert with_forecast(text, read[0]) == text, "results/reference has changed: run `make readme`"


def test_the_readme_s_table_has_each_row_s_verdict_and_says_why_a_row_has_no_number(tmp_path: Path) -> None:
    lost = {**board_row("hcl", float("nan")), "status": "failed: no clusters", "difference": None, "verdict": None}
    pd.DataFrame([board_row("hhcl", 71.26), lost]).to_csv(tmp_path / "leaderboard.csv")
    markers = f"{START.format(name='leaderboard', command='make readme')}\n{END.format(name='leaderboard')}"
    lines = [" ".join(line.split()) for line in with_main_columns(markers, tmp_path).splitlines()]
    assert (
        "| hhcl | resnet18_half | 71.3 | cluster_contrast | +1.0 [-1.0, +3.0] | better | sampler | adapted |" in lines
    )
    assert "| hcl | resnet18_half | failed: no clusters | cluster_contrast | - | - | sampler | adapted |" in lines


def test_the_readme_s_table_marks_a_mean_over_fewer_worlds_than_the_other_rows_have(tmp_path: Path) -> None:
    rows = [{**board_row("hhcl", 71.26), "worlds": 6}, {**board_row("hcl", 80.0), "worlds": 2}]
    pd.DataFrame(rows).to_csv(tmp_path / "leaderboard.csv")
    markers = f"{START.format(name='leaderboard', command='make readme')}\n{END.format(name='leaderboard')}"
    text = with_main_columns(markers, tmp_path)
    assert "| 80.0 in 2 worlds |" in text
    assert "| 71.3             |" in text


def test_rows_of_the_reference_for_adaptation_have_a_table_of_their_own_and_repeat_no_row(tmp_path: Path) -> None:
    (tmp_path / ADAPTATION).mkdir()
    pd.DataFrame([board_row("hhcl", 71.26)]).to_csv(tmp_path / "leaderboard.csv")
    rows = [board_row("hhcl", 60.14), board_row("fcu", 36.3)]
    pd.DataFrame(rows).to_csv(tmp_path / ADAPTATION / "leaderboard.csv")
    markers = f"{START.format(name='leaderboard', command='make readme')}\n{END.format(name='leaderboard')}"
    first, second = with_main_columns(markers, tmp_path).split("rows of `params.adaptation.yaml`")
    assert "| hhcl  | resnet18_half | 71.3  |" in first
    assert "fcu" not in first
    assert "| 60.1 " in second
    assert "| fcu " in second
    measured = markers.replace("leaderboard", "measured")
    assert "71.3" in with_measured(measured, "hhcl", tmp_path)
    assert "60.1" not in with_measured(measured, "hhcl", tmp_path)
    assert "36.3" in with_measured(measured, "fcu", tmp_path)


def test_two_tables_of_one_page_have_headings_of_their_own(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / ADAPTATION):
        folder.mkdir(exist_ok=True)
        (folder / "leaderboard.csv").write_text("")
        (folder / "leaderboard.md").write_text("# Leaderboard\n\n## rendered\n\n| # |\n\n### Cost: rendered\n")
    markers = f"{START.format(name='leaderboard', command='make readme')}\n{END.format(name='leaderboard')}"
    headings = [line for line in with_leaderboard(markers, tmp_path).splitlines() if line.startswith("#")]
    own = ", rows of `params.adaptation.yaml`"
    assert headings == ["## rendered", "### Cost: rendered", f"## rendered{own}", f"### Cost: rendered{own}"]


@pytest.mark.parametrize("method", SURVEYED)
def test_a_method_s_readme_shows_its_committed_results(method: str) -> None:
    text = (methods.folder(method) / "README.md").read_text()
    assert with_measured(text, method, REFERENCE) == text, "results/reference has changed: run `make readme`"


def test_a_method_s_table_holds_its_own_rows_only(tmp_path: Path) -> None:
    board = pd.DataFrame([board_row("hhcl", 71.26), board_row("jcl", 80.0)])
    board.to_csv(tmp_path / "leaderboard.csv")
    markers = f"{START.format(name='measured', command='make readme')}\n{END.format(name='measured')}"
    text = with_measured(markers, "hhcl", tmp_path)
    assert "71.3" in text
    assert "80.0" not in text
    assert "Nothing yet" in with_measured(markers, "pisl", tmp_path)


def test_a_row_without_a_baseline_has_dashes_for_its_difference() -> None:
    row = {**board_row("cluster_contrast", 70.0), **dict.fromkeys(["difference", "low", "high", "baseline", "verdict"])}
    line = leaderboard_rows(pd.DataFrame([row])).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")][-4:] == ["-", "-", "-", "-"]


def ablation_row() -> dict[str, object]:
    where = {"dataset": "rendered", "profile": "controlled", "backbone": "resnet18_half"}
    made_by = resolve_run("jcl-no_wam", "rendered", "controlled", backbone="resnet18_half").config.digest()
    numbers = {"seeds": 1, "mAP_mean": 70.0, "mAP_sd": None, "difference": -1.24, "low": -2.0, "high": 0.5}
    return {"row": "no_wam", **where, **numbers, "verdict": "one seed", "config_hash": made_by}


def test_an_ablation_of_one_seed_says_so() -> None:
    text = ablation_rows("jcl", pd.DataFrame([ablation_row()]))
    assert "One seed" in text
    assert "-1.2" in text
    assert "One seed" not in ablation_rows("jcl", pd.DataFrame([{**ablation_row(), "seeds": 3}]))


def test_an_ablation_by_other_settings_than_the_checkouts_says_so() -> None:
    row = ablation_row()
    assert "earlier settings" not in ablation_rows("jcl", pd.DataFrame([row]))
    assert "earlier settings" in ablation_rows("jcl", pd.DataFrame([{**row, "config_hash": "0" * 16}]))
    assert "earlier settings" in ablation_rows("jcl", pd.DataFrame([row]).drop(columns="config_hash"))
    assert "earlier settings" in ablation_rows("jcl", pd.DataFrame([{**row, "row": "a_row_of_before"}]))


def board_row(method: str, mean: float) -> dict[str, object]:
    """What the table of a method reads of a leaderboard row."""
    return {
        **{"method": method, "variant": "default", "dataset": "rendered", "profile": "controlled"},
        **{
            "backbone": "resnet18_half",
            "worlds": float("nan"),
            "seeds": 3,
            "mAP_mean": mean,
            "mAP_sd": 1.0,
            "gain_over_warm_start": 5.0,
        },
        **{"baseline": "cluster_contrast", "difference": 1.0, "low": -1.0, "high": 3.0, "verdict": "better"},
        **{"status": "ok", "camera_use": "sampler", "fidelity": "adapted"},
    }
