"""Exports hold the table's numbers in four formats that can be read back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from reports import exports, leaderboard
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(20), 3)
LEVELS = {"warm_start": 0.3, "supervised": 0.9, "cluster_contrast": 0.5, "hhcl": 0.6, "hhcl-paper": 0.5}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the leaderboard of five runs and three seeds, one run failed."""
    monkeypatch.chdir(tmp_path)
    for name, level in LEVELS.items():
        for seed in (0, 1, 2):
            rng = np.random.default_rng(seed)
            ap = np.clip(level + rng.normal(0, 0.02, len(PEOPLE)), 0, 1)
            write_result(name, seed, ap, PEOPLE, best=min(1.0, level + 0.1))
    for seed in (0, 1, 2):
        write_result("hhcl-paper", seed, ap, PEOPLE, failure="loss is not finite")
    params = write_params(tmp_path, list(LEVELS), [0, 1, 2])
    assert leaderboard.main(["--params", str(params)]) == 0
    return tmp_path


def export(*more: str) -> dict[str, str]:
    assert exports.main(["--out", "out", *more]) == 0
    return {file.name: file.read_text() for file in Path("out").iterdir()}


def test_csv_and_json_hold_the_leaderboards_numbers_and_where_they_came_from(here: Path) -> None:
    files = export()
    assert sorted(files) == [f"leaderboard.{ending}" for ending in ("csv", "json", "md", "tex")]
    board = pd.read_csv("results/leaderboard.csv")
    table = pd.read_csv("out/leaderboard.csv")
    assert list(table.columns) == exports.DATA_COLUMNS
    np.testing.assert_allclose(table["mAP_mean"], board["mAP_mean"])
    read = json.loads(files["leaderboard.json"])
    assert read["selection"] == "last"
    assert "commit" in read
    assert [row["mAP_mean"] for row in read["rows"]] == pytest.approx(
        [None if np.isnan(value) else value for value in board["mAP_mean"]]
    )


def test_latex_is_balanced_and_every_row_has_every_column(here: Path) -> None:
    text = export()["leaderboard.tex"]
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", code):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0
    assert re.findall(r"\\begin{(\w+)}", code) == re.findall(r"\\end{(\w+)}", code)[::-1]
    columns = len(re.search(r"begin{tabular}{(\w+)}", code)[1])
    rows = [line for line in code.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 5
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    assert [rule for rule in (r"\toprule", r"\midrule", r"\bottomrule") if code.count(rule) != 1] == []


def test_the_best_method_is_bold_and_the_supervised_bound_is_no_competitor(here: Path) -> None:
    files = export()
    cells = [line.split(" & ") for line in files["leaderboard.tex"].splitlines() if " & " in line]
    bold = {tuple(line[:2]) for line in cells if line[2].startswith(r"\textbf{")}
    assert bold == {("hhcl", "released")}
    cells = [[text.strip() for text in line.split("|")] for line in files["leaderboard.md"].splitlines()]
    bold = {tuple(line[1:3]) for line in cells if len(line) > 4 and line[4].startswith("**")}
    assert bold == {("hhcl", "released")}


def test_marks_follow_the_verdict_and_a_failed_row_says_so(here: Path) -> None:
    lines = export()["leaderboard.tex"].splitlines()
    marked = {line.split(" & ")[0] for line in lines if " & " in line and "$^{*}$" in line}
    assert marked == {"hhcl"}, "the warm start and the supervised bound are outside the family and have no verdict"
    failed = next(line for line in lines if line.startswith("hhcl & paper"))
    assert failed == r"hhcl & paper & failed & -- & -- & -- & -- \\"


def test_one_seed_has_no_mark(here: Path) -> None:
    params = write_params(here, ["cluster_contrast", "hhcl"], [0])
    leaderboard.main(["--params", str(params)])
    rows = [line for line in export()["leaderboard.tex"].splitlines() if line.startswith("hhcl & ")]
    assert len(rows) == 1
    assert "$^{*}$" not in rows[0]


def test_the_two_selection_rules_are_never_in_one_table(here: Path) -> None:
    last, files = export()["leaderboard.csv"], export("--selection", "best_on_test")
    assert files["leaderboard.csv"] == last
    best = pd.read_csv("out/leaderboard_best_on_test.csv")
    assert set(best["selection"]) == {"best_on_test"}
    assert best.set_index(["method", "variant"]).loc[("hhcl", "released"), "mAP_mean"] == pytest.approx(70)
    assert best[exports.LAST_ONLY].isna().all(axis=None)
    assert "Best epoch on the test split" in files["leaderboard_best_on_test.tex"]
    assert "$^{*}$" not in files["leaderboard_best_on_test.tex"]
    mixed = pd.read_csv("results/leaderboard.csv").assign(selection=["last", *["best_on_test"] * 4])
    with pytest.raises(ValueError, match="best_on_test"):
        exports.choose(mixed, "last")


def test_what_a_dataset_must_tell_stands_at_its_table(here: Path) -> None:
    board = pd.read_csv("results/leaderboard.csv").assign(dataset="dukemtmc")
    board.to_csv("results/leaderboard.csv", index=False)
    files = export()
    for name in ("leaderboard.md", "leaderboard.tex"):
        assert "DukeMTMC-reID was withdrawn by its authors in 2019." in files[name]
    assert "Notice: DukeMTMC-reID was withdrawn by its authors in 2019." in leaderboard.markdown(board)
    assert "withdrawn" not in leaderboard.markdown(board.assign(dataset="market1501")).partition("## Published")[0]


def test_what_a_profile_must_tell_stands_at_its_table_and_a_profile_that_is_gone_tells_nothing(here: Path) -> None:
    board = pd.read_csv("results/leaderboard.csv").assign(profile="controlled_real")
    board.to_csv("results/leaderboard.csv", index=False)
    told = "MobileNetV2, images of 128x64, 300 steps on a CPU: compare rows with each other, not with papers."
    assert told in export()["leaderboard.tex"]
    assert f"Notice: {told}" in leaderboard.markdown(board)
    assert "Notice" not in leaderboard.markdown(board.assign(profile="removed"))


def test_names_are_escaped() -> None:
    assert exports.escape(r"a_b & 50% {x} \y ~^#$") == (
        r"a\_b \& 50\% \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}\#\$"
    )


def test_a_missing_or_old_table_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `python -m pipeline\.leaderboard`"):
        exports.main(["--table", str(tmp_path / "none.csv"), "--out", str(tmp_path)])
    (tmp_path / "old.csv").write_text("method,selection\nhhcl,last\n")
    with pytest.raises(ValueError, match=r"lacks the columns .* `python -m pipeline\.leaderboard`"):
        exports.main(["--table", str(tmp_path / "old.csv"), "--out", str(tmp_path)])
