"""Domain-adaptive rows: a group of their own in every table, beside the source alone and the target alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports import compare, exports, leaderboard, readme, reference, report
from reports.compare import SOURCE_ALONE
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(40), 4)
WORLDS = [1, 2, 3, 4]
PLAIN = {"warm_start": 0.3, "cluster_contrast": 0.5, "hhcl": 0.55, "supervised": 0.9}
ADAPTED = {SOURCE_ALONE: 0.4, "sal": 0.6, "clc": 0.395}
LABELLED: dict[str, Any] = {
    "needs": {"cameras": [], "identities": "source"},
    "cost": {"images_seen": 96, "source_images_seen": 48, "seconds_total": 6.0},
}
ALONE: dict[str, Any] = {**LABELLED, "cost": {"images_seen": 0, "source_images_seen": 77, "seconds_total": 6.0}}


def aps(level: float, world: int) -> np.ndarray:
    """APs around a level: people differ alike in all runs, runs of a world by a little."""
    people = np.random.default_rng(99).normal(0, 0.05, 40)[PEOPLE]
    return np.clip(level + people + np.random.default_rng([world, round(1000 * level)]).normal(0, 0.02), 0.01, 1)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of both groups in four worlds, and the file that lists them."""
    monkeypatch.chdir(tmp_path)
    for name, level in (PLAIN | ADAPTED).items():
        more = {} if name in PLAIN else ALONE if name == SOURCE_ALONE else LABELLED
        for world in WORLDS:
            write_result(name, 0, aps(level, world), PEOPLE, world=world, **more)
    return write_params(tmp_path, [*PLAIN, *ADAPTED], [0], WORLDS)


def families(params: Path) -> dict[str, pd.DataFrame]:
    assert compare.main(["--params", str(params), "--out", "out"]) == 0
    return dict(tuple(pd.read_csv("out/comparison.csv").groupby("family")))


def tabled(params: Path) -> tuple[pd.DataFrame, str]:
    assert leaderboard.main(["--params", str(params), "--out", "out"]) == 0
    return pd.read_csv("out/leaderboard.csv"), Path("out/leaderboard.md").read_text()


def test_a_domain_adaptive_row_is_compared_with_the_source_alone_and_with_the_target_alone(params: Path) -> None:
    found = families(params)
    first, beside = found["adaptation"], found["adaptation beside"]
    assert set(zip(first["a"], first["b"], strict=True)) == {("clc", SOURCE_ALONE), ("sal", SOURCE_ALONE)}
    assert dict(zip(first["a"], first["verdict"], strict=True)) == {
        "sal": "better",
        "clc": "not resolved at 4 worlds",
    }
    assert set(beside["a"]) == set(ADAPTED)
    assert set(beside["b"]) == {"cluster_contrast"}
    assert len(found["adaptation pairs"]) == 3


def test_rows_of_one_group_do_not_weaken_the_comparisons_of_the_other(params: Path, tmp_path: Path) -> None:
    both = families(params)
    alone = families(write_params(tmp_path, list(PLAIN), [0], WORLDS))
    for name in ("baseline", "pairs"):
        pd.testing.assert_frame_equal(both[name].reset_index(drop=True), alone[name].reset_index(drop=True))
    assert not set(alone) & {"adaptation", "adaptation beside", "adaptation pairs"}


def test_the_table_has_them_below_with_the_images_of_both_domains_and_both_differences(params: Path) -> None:
    table, text = tabled(params)
    above, _, below = text.partition("### Domain-adaptive methods: rendered")
    below = below.partition("###")[0]
    assert "hhcl" in above
    assert "| sal" not in above
    assert "hhcl" not in below
    lines = {
        line.split("|")[1].strip() + ":" + line.split("|")[2].strip(): line
        for line in below.splitlines()[3:]
        if "|" in line
    }
    assert "| 96 " in lines["sal:default"]
    assert "| 48 " in lines["sal:default"]
    assert "| 77 " in lines["supervised:source_longer"]
    row = table.set_index("method").loc["sal"]
    means = table.set_index(["method", "variant"])["mAP_mean"]
    assert row["difference"] == pytest.approx(row["mAP_mean"] - means["supervised", "source_longer"])
    assert row["target_alone_difference"] == pytest.approx(row["mAP_mean"] - means["cluster_contrast"].item())
    assert table["method"].tolist().index("sal") > table["variant"].tolist().index("source_longer")


def test_their_ranks_are_among_themselves_and_training_on_the_source_has_one(params: Path) -> None:
    ranks = tabled(params)[0].set_index(["method", "variant"])[["rank_low", "rank_high"]]
    assert ranks.loc["sal", "default"].tolist() == [1, 1]
    assert ranks.loc["supervised", "source_longer"].tolist() == [2, 3]
    assert ranks.loc["hhcl"].iloc[0].tolist() == [1, 1]
    assert ranks.loc["supervised", "bound"].isna().all()


def test_what_trains_on_the_source_alone_has_its_cost_in_the_table(params: Path) -> None:
    cost = tabled(params)[1].partition("### Cost")[2].partition("## Published")[0]
    assert "source_longer" in cost
    assert "bound" in cost


def test_a_table_without_such_rows_has_neither_their_columns_nor_their_section(params: Path, tmp_path: Path) -> None:
    table, text = tabled(write_params(tmp_path, list(PLAIN), [0], WORLDS))
    assert "Domain-adaptive" not in text
    assert not [name for name in table if name.startswith("target_alone") or name == "adaptive"]


def test_exports_give_each_group_a_table_and_mark_the_best_of_each(params: Path) -> None:
    tabled(params)
    assert exports.main(["--table", "out/leaderboard.csv", "--out", "ex"]) == 0
    plain, _, adapted = Path("ex/leaderboard.md").read_text().partition("domain-adaptive")
    assert [part.count("**") > 0 for part in (plain, adapted)] == [True, True]
    assert "domain-adaptive" in Path("ex/leaderboard.tex").read_text()
    assert "sal" not in plain.partition("##")[2].replace("Unsal", "")


def test_the_page_filters_by_group_and_draws_a_forest_of_each(params: Path) -> None:
    assert report.main(["--params", str(params), "--out", "report.html"]) == 0
    text = Path("report.html").read_text()
    assert "target alone" in text
    assert ">domain-adaptive<" in text
    assert "resnet18_half, domain-adaptive" in text.replace("rendered, tiny, ", "")


def test_readmes_show_the_group_in_a_table_of_its_own(params: Path, tmp_path: Path) -> None:
    from pipeline.params import read_params
    from reports.table import read_results

    results = read_results(read_params(params))
    reference.write(results, tmp_path / "reference")
    leaderboard.write_table(results, tmp_path / "reference")
    start, end = (mark.format(name="leaderboard", command="make readme") for mark in (readme.START, readme.END))
    text = readme.with_main_columns(f"{start}\n{end}", tmp_path / "reference")
    above, _, below = text.partition("Domain-adaptive, 4 worlds")
    assert "| sal" in below
    assert "| hhcl" in above
    assert "| hhcl" not in below
