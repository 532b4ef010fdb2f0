"""Comparison of stored runs, and its columns in the leaderboard."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from pipeline import evaluate, train
from pipeline.jobs import ROOT, Job
from pipeline.params import read_params
from reports import compare, leaderboard, statistics, table
from reports.published import read_published
from reports.record import read_result
from tests.conftest import TinyWorld
from tests.reports.synthetic import PEOPLE, aps, write_params, write_result, write_runs


def run_compare(folder: Path, runs: list[str], seeds: list[int]) -> pd.DataFrame:
    params = write_params(folder, runs, seeds)
    assert compare.main(["--params", str(params), "--out", "out"]) == 0
    return pd.read_csv("out/comparison.csv")


def pair(found: pd.DataFrame, a: str, b: str, family: str = "baseline") -> Any:
    rows = found[(found["a"] == a) & (found["b"] == b) & (found["family"] == family)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_two_rows_of_a_committed_reference_are_compared_without_its_runs(here: Path) -> None:
    assert compare.main(["--from", str(ROOT / "results/reference"), "--out", "out"]) == 0
    found = pd.read_csv("out/comparison.csv")
    board = pd.read_csv(ROOT / "results/reference/leaderboard.csv").set_index(["method", "backbone"])
    on_resnet = found[found["backbone"] == "resnet18_half"]
    assert pair(on_resnet, "jcl", "cluster_contrast")["difference"] == pytest.approx(
        board.loc[("jcl", "resnet18_half"), "difference"]
    )
    assert pair(on_resnet, "pisl", "jcl", "pairs")["worlds"] == board.loc[("pisl", "resnet18_half"), "worlds"]


LEVELS = {"warm_start": 0.3, "supervised": 0.8, "cluster_contrast": 0.6, "hhcl": 0.6, "hhcl-paper": 0.65}
NUMBERS = ["low", "high", "p", "p_holm", "probability", "difference_sd", "resolvable"]


def in_worlds(count: int, effects: dict[str, list[float]], seeds: Sequence[int] = (0,)) -> Path:
    """Results of LEVELS in ``count`` worlds, each with people and a level of its own, and the params.yaml of them.

    effects: what a method has above its level in each world, by name.
    """
    for world in range(count):
        shared = 0.05 * np.cos(world)
        for name, level in LEVELS.items():
            for seed in seeds:
                ap = np.clip(aps(level, seed, 0) + shared + effects.get(name, [0.0] * count)[world], 0.01, 1)
                write_result(name, seed, ap, PEOPLE + 100 * world, world=world, fingerprint=f"world {world}")
    return write_params(Path(), list(LEVELS), list(seeds), worlds=range(count))


def compare_worlds(params: Path) -> pd.DataFrame:
    assert compare.main(["--params", str(params), "--out", "out"]) == 0
    return pd.read_csv("out/comparison.csv")


def test_every_run_is_compared_with_its_baseline_and_every_two_methods_once(here: Path) -> None:
    write_runs(LEVELS, [0, 1, 2])
    found = run_compare(here, list(LEVELS), [0, 1, 2])
    planned, pairs = (found[found["family"] == family] for family in ("baseline", "pairs"))
    assert list(planned["a"]) == ["warm_start", "hhcl", "hhcl-paper", "supervised"]
    assert set(planned["b"]) == {"cluster_contrast"}
    methods = ["cluster_contrast", "hhcl", "hhcl-paper"]
    assert {frozenset(names) for names in zip(pairs["a"], pairs["b"], strict=True)} == {
        frozenset(names) for names in combinations(methods, 2)
    }
    assert len(pairs) == 3
    better = pair(found, "hhcl-paper", "cluster_contrast")
    assert better["difference"] == pytest.approx(5, abs=1)
    assert better["low"] < better["difference"] < better["high"]
    assert better["verdict"] == "better"
    assert better["probability"] > 0.99
    assert pair(found, "hhcl", "cluster_contrast")["verdict"] == "not resolved at 3 seeds"
    text = Path("out/comparison.md").read_text()
    assert "against the baseline" in text
    assert "every two methods" in text


def test_drawn_people_are_compared_within_each_world_by_one_t_test_over_worlds(here: Path) -> None:
    effects = [0.01, 0.03, 0.02, -0.01]
    found = compare_worlds(in_worlds(4, {"hhcl": effects}, seeds=[0, 1]))
    row = pair(found, "hhcl", "cluster_contrast")
    known = ttest_1samp(100 * np.array(effects), 0)  # of seeds that differ by nothing but their noise, here none
    assert (row["worlds"], row["seeds"]) == (4, 2)
    assert row["difference"] == pytest.approx(1.25)
    assert (row["low"], row["high"]) == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert row["p"] == pytest.approx(known.pvalue)
    assert row["difference_sd"] == pytest.approx(np.std(effects, ddof=1) * 100)
    assert row["resolvable"] == pytest.approx(statistics.noncentrality(3) * row["difference_sd"] / 2)
    assert row["verdict"] == "not resolved at 4 worlds"


def test_the_floor_and_the_ceiling_have_intervals_but_are_outside_the_family(here: Path) -> None:
    wave = [0.001, -0.001, 0.001, -0.001, 0.0]
    effects = {"hhcl": [0.02 + x for x in wave], "hhcl-paper": [-0.051 + x for x in wave[::-1]], "warm_start": wave}
    found = compare_worlds(in_worlds(5, {**effects, "supervised": wave[::-1]})).set_index(["family", "a"])
    for name in ("warm_start", "supervised"):
        row = found.loc["baseline", name]
        assert row["low"] < row["difference"] < row["high"]
        assert row["p"] < 0.001
        assert pd.isna(row["p_holm"])
        assert pd.isna(row["verdict"])
    methods = found.loc["baseline"].loc[["hhcl", "hhcl-paper"]]
    assert methods["p_holm"].min() == pytest.approx(2 * methods["p"].min())
    assert list(methods["verdict"]) == ["better", "not resolved at 5 worlds"]


def test_the_verdict_is_the_corrected_p_though_the_interval_of_the_row_leaves_out_zero(here: Path) -> None:
    weak = [0.002, 0.022, 0.034, 0.006, 0.026]
    assert 0.025 < ttest_1samp(weak, 0).pvalue < 0.05
    effects = {"hhcl": weak, "hhcl-paper": [-0.03, -0.1, -0.04, -0.16, -0.07]}
    row = pair(compare_worlds(in_worlds(5, effects)), "hhcl", "cluster_contrast")
    assert row["low"] > 0
    assert row["p"] < 0.05 < row["p_holm"]
    assert row["verdict"] == "not resolved at 5 worlds"


def test_one_world_has_differences_without_interval_and_verdict(here: Path) -> None:
    found = compare_worlds(in_worlds(1, {"hhcl": [0.05]}, seeds=[0, 1, 2]))
    assert set(found["verdict"]) == {"one world"}
    assert found[NUMBERS].isna().all(axis=None)
    assert pair(found, "hhcl", "cluster_contrast")["difference"] == pytest.approx(5)


def test_a_row_of_two_worlds_has_numbers_but_no_verdict_and_takes_no_part_in_the_tests_of_others(here: Path) -> None:
    params = in_worlds(4, {"hhcl": [0.01, 0.03, 0.02, 0.04], "hhcl-paper": [0.2, 0.21, 0.2, 0.2]})
    for world in (2, 3):
        shutil.rmtree(f"results/runs/hhcl-paper-rendered-{world}-resnet18_half-0")
    found = compare_worlds(params)
    few, alone = (pair(found, name, "cluster_contrast") for name in ("hhcl-paper", "hhcl"))
    assert few["verdict"] == "2 worlds are too few"
    assert few["p"] < 0.05
    assert np.isnan(few["p_holm"])
    assert alone["p_holm"] == alone["p"]
    assert leaderboard.main(["--params", str(params), "--out", "results"]) == 0
    board = pd.read_csv("results/leaderboard.csv").set_index(["method", "variant"])
    assert board.loc[("hhcl", "released"), "rank_high"] <= 2
    assert np.isnan(board.loc[("hhcl", "paper"), "rank_low"])


def test_a_method_that_lacks_a_world_is_compared_in_those_that_both_have(here: Path) -> None:
    params = in_worlds(4, {"hhcl": [0.01, 0.03, 0.02, 0.3]})
    shutil.rmtree("results/runs/hhcl-rendered-3-resnet18_half-0")
    row = pair(compare_worlds(params), "hhcl", "cluster_contrast")
    assert row["worlds"] == 3
    assert row["difference"] == pytest.approx(2)
    write_result("hhcl", 0, aps(0.6), PEOPLE, world=3, fingerprint="another size")
    row = pair(compare_worlds(params), "hhcl", "cluster_contrast")
    assert "hhcl world 3 seed 0 was tested on other data than cluster_contrast" in row["verdict"]


def test_the_gain_is_over_the_warm_starts_of_the_worlds_that_a_row_has(here: Path) -> None:
    for world, (start, level) in enumerate([(0.3, 0.5), (0.4, 0.7), (0.8, None)]):
        write_result("warm_start", 0, np.full(len(PEOPLE), start), PEOPLE, world=world)
        if level is not None:
            write_result("hhcl", 0, np.full(len(PEOPLE), level), PEOPLE, world=world)
    params = read_params(write_params(here, ["warm_start", "hhcl"], [0], range(3)))
    rows = table.leaderboard([result.record for result in table.read_results(params)]).set_index("method")
    assert rows.loc["hhcl", "gain_over_warm_start"] == pytest.approx((20 + 30) / 2)
    assert rows.loc["warm_start", "gain_over_warm_start"] == 0


def test_ranks_are_those_that_no_resolved_pair_excludes_and_the_bounds_have_none(here: Path) -> None:
    wave = np.array([0.001, -0.001, 0.002, -0.002, 0.0])
    effects = {"hhcl": [0.01, -0.01, 0.02, -0.02, 0.0], "hhcl-paper": list(wave)}  # hhcl ties, hhcl-paper is 5 above
    params = in_worlds(5, effects)
    assert leaderboard.main(["--params", str(params), "--out", "results"]) == 0
    board = pd.read_csv("results/leaderboard.csv").set_index(["method", "variant"])
    ranks = {key: tuple(row) for key, row in board[["rank_low", "rank_high"]].dropna().astype(int).iterrows()}
    assert ranks == {
        ("cluster_contrast", "sequential"): (2, 3),
        ("hhcl", "released"): (2, 3),
        ("hhcl", "paper"): (1, 1),
    }
    assert (board["worlds"] == 5).all()
    expected = np.std(0.05 * np.cos(np.arange(5)), ddof=1) * 100
    assert board.loc[("cluster_contrast", "sequential"), "mAP_sd"] == pytest.approx(expected)
    shown = Path("results/leaderboard.md").read_text()
    assert "| 2 to 3 " in shown


def test_worlds_csv_holds_every_run_s_difference_in_its_world_of_which_the_table_s_is_the_mean(here: Path) -> None:
    params = in_worlds(3, {"hhcl": [0.01, 0.03, 0.02]}, seeds=[0, 1])
    assert leaderboard.main(["--params", str(params), "--out", "results"]) == 0
    found = pd.read_csv("results/worlds.csv")
    assert len(found) == 5 * 3 * 2
    only = found[(found["method"] == "hhcl") & (found["variant"] == "released")]
    assert only.groupby("world")["difference"].mean().tolist() == pytest.approx([1, 3, 2])
    board = pd.read_csv("results/leaderboard.csv").set_index(["method", "variant"]).loc[("hhcl", "released")]
    assert only["mAP"].mean() == pytest.approx(board["mAP_mean"])
    assert only["difference"].mean() == pytest.approx(board["difference"])
    assert found.loc[found["method"] == "cluster_contrast", "difference"].isna().all()


@pytest.mark.parametrize(
    ("seeds", "verdict"), [([0], "one seed: of the trained models only"), ([0, 1], "2 seeds are too few")]
)
def test_one_seed_and_two_resolve_nothing_about_methods(here: Path, seeds: list[int], verdict: str) -> None:
    write_runs(LEVELS, seeds)
    found = run_compare(here, list(LEVELS), seeds)
    row = pair(found, "supervised", "cluster_contrast")
    assert row["low"] > 10
    assert pd.isna(row["p"]) == (len(seeds) == 1)
    assert set(found["verdict"]) == {verdict}


def test_a_pair_has_the_same_numbers_whatever_else_was_run(here: Path) -> None:
    write_runs(LEVELS, [0, 1])
    columns = ["difference", "low", "high", "p", "probability"]
    whole = pair(run_compare(here, list(LEVELS), [0, 1]), "hhcl", "cluster_contrast")
    alone = pair(run_compare(here, ["cluster_contrast", "hhcl"], [0, 1]), "hhcl", "cluster_contrast")
    assert list(whole[columns]) == list(alone[columns])
    assert alone["p_holm"] == alone["p"]


def test_a_method_may_name_another_baseline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = read_published("hhcl").model_copy(update={"baseline": ("cluster_contrast-hardest",)})
    monkeypatch.setattr(compare, "read_published", lambda method: stated if method == "hhcl" else None)
    write_runs({"cluster_contrast": 0.5, "cluster_contrast-hardest": 0.55, "hhcl": 0.6}, [0, 1])
    found = run_compare(here, ["cluster_contrast", "cluster_contrast-hardest", "hhcl"], [0, 1])
    planned = found[found["family"] == "baseline"]
    assert dict(zip(planned["a"], planned["b"], strict=True)) == {
        "cluster_contrast-hardest": "cluster_contrast",
        "hhcl": "cluster_contrast-hardest",
    }


@pytest.mark.parametrize(
    ("method", "runs", "measured_against"),
    [
        ("pisl", ["cluster_contrast", "pplr"], ["pplr", "cluster_contrast"]),
        ("pisl", ["cluster_contrast"], ["cluster_contrast"]),
        ("vitc_ureid", ["cluster_contrast", "cap", "o2cap"], ["cluster_contrast", "cap", "o2cap"]),
        ("vitc_ureid", ["o2cap"], ["o2cap"]),
    ],
)
def test_a_method_is_measured_against_every_baseline_it_lists_that_was_run(
    here: Path, method: str, runs: list[str], measured_against: list[str]
) -> None:
    write_runs(dict.fromkeys(runs, 0.5), [0, 1, 2])
    for seed in (0, 1, 2):
        write_result(method, seed, aps(0.6, seed), PEOPLE, cameras=["loss"])
    found = run_compare(here, [*runs, method], [0, 1, 2])
    planned = found[(found["family"] == "baseline")]
    rows = planned[planned["a"] == method]
    assert list(rows["b"]) == measured_against
    assert rows["p_holm"].min() == pytest.approx(len(planned) * planned["p"].min())
    leaderboard.main(["--params", str(write_params(here, [*runs, method], [0, 1, 2])), "--out", "results"])
    board = pd.read_csv("results/leaderboard.csv").set_index("method")
    assert board.loc[method, "baseline"] == measured_against[0]


@pytest.mark.parametrize(
    ("cameras", "baseline"),
    [
        ([], "cluster_contrast-no_cam"),
        (["test"], "cluster_contrast-no_cam"),
        (["sampler"], "cluster_contrast"),
        (["loss"], "cluster_contrast"),
        (["clustering", "test"], "cluster_contrast"),
    ],
)
def test_a_method_that_trains_with_cameras_anywhere_is_compared_with_the_baseline_that_does(
    here: Path, cameras: list[str], baseline: str
) -> None:
    write_runs({"cluster_contrast": 0.5, "cluster_contrast-no_cam": 0.45}, [0])
    write_result("selective_contrastive", 0, aps(0.5), PEOPLE, cameras=cameras)
    found = run_compare(here, ["cluster_contrast", "cluster_contrast-no_cam", "selective_contrastive"], [0])
    planned = found[(found["family"] == "baseline") & (found["a"] == "selective_contrastive")]
    assert list(planned["b"]) == [baseline]


def test_failed_seeds_and_failed_runs_are_left_out_and_the_rest_is_compared(here: Path) -> None:
    write_runs({"cluster_contrast": 0.5, "hhcl": 0.6}, [0, 1, 2])
    write_result("hhcl", 2, aps(0.6), PEOPLE, failure="loss is not finite")
    for seed in (0, 1, 2):
        write_result("hhcl-paper", seed, aps(0.6), PEOPLE, failure="loss is not finite")
    found = run_compare(here, ["cluster_contrast", "hhcl", "hhcl-paper"], [0, 1, 2])
    assert list(found["seeds"]) == [2, 2]  # the planned pair, and the same one among all pairs


def test_a_dataset_where_only_failures_are_left_gives_an_empty_comparison(here: Path) -> None:
    write_result("hhcl", 0, aps(0.6), PEOPLE, failure="loss is not finite")
    assert run_compare(here, ["hhcl"], [0]).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "hhcl seed 1 was tested on other data"),
        ({"people": PEOPLE[::-1]}, "hhcl seed 1 has other valid queries"),
    ],
)
def test_runs_of_other_data_or_other_queries_are_not_compared(here: Path, change: dict[str, Any], message: str) -> None:
    write_runs({"cluster_contrast": 0.5, "hhcl": 0.6}, [0, 1])
    write_result("hhcl", 1, aps(0.6), change.pop("people", PEOPLE), **change)
    row = pair(run_compare(here, ["cluster_contrast", "hhcl"], [0, 1]), "hhcl", "cluster_contrast")
    assert message in row["verdict"]
    assert pd.isna(row["difference"])


def test_runs_of_one_world_that_started_from_other_weights_are_not_compared(here: Path) -> None:
    params = in_worlds(3, {})
    start = {"source": "rendered source, labelled", "sha256": "made here"}
    place = {"world": 2, "fingerprint": "world 2"}
    write_result("cluster_contrast", 0, aps(0.6), PEOPLE + 200, **place, initial=start)
    unknown = pair(compare_worlds(params), "hhcl", "cluster_contrast")
    assert unknown["worlds"] == 3
    assert pd.notna(unknown["difference"])
    other = {**start, "sha256": "made on another machine"}
    write_result("hhcl", 0, aps(0.6), PEOPLE + 200, **place, initial=other)
    row = pair(compare_worlds(params), "hhcl", "cluster_contrast")
    assert "hhcl world 2 seed 0 started from other weights than cluster_contrast" in row["verdict"]
    assert pd.isna(row["difference"])
    other["images_seen"] = 96  # by a pre-training of the method's own
    write_result("hhcl", 0, aps(0.6), PEOPLE + 200, **place, initial=other)
    assert pd.notna(pair(compare_worlds(params), "hhcl", "cluster_contrast")["difference"])


def test_queries_are_matched_by_index_not_by_line(here: Path) -> None:
    write_runs({"cluster_contrast": 0.5, "hhcl": 0.6}, [0])
    before = pair(run_compare(here, ["cluster_contrast", "hhcl"], [0]), "hhcl", "cluster_contrast")
    folder = Path("results/runs/hhcl-rendered-resnet18_half-0")
    side, curves = (pd.read_csv(folder / name) for name in ("queries.csv", "curves.csv"))
    evaluate.write(folder, read_result(folder).record, side.sample(frac=1, random_state=0), curves)
    after = pair(run_compare(here, ["cluster_contrast", "hhcl"], [0]), "hhcl", "cluster_contrast")
    pd.testing.assert_series_equal(before, after)


def test_the_same_seed_listed_twice_is_no_second_piece_of_evidence(here: Path) -> None:
    write_runs({"cluster_contrast": 0.5, "cluster_contrast-sequential": 0.5}, [0])
    with pytest.raises(ValueError, match="listed twice in params"):
        run_compare(here, ["cluster_contrast", "cluster_contrast-sequential"], [0])


def test_the_leaderboard_shows_each_rows_difference_in_its_last_columns(here: Path) -> None:
    write_runs(LEVELS, [0, 1, 2])
    params = write_params(here, list(LEVELS), [0, 1, 2])
    assert leaderboard.main(["--params", str(params), "--out", "results"]) == 0
    board = pd.read_csv("results/leaderboard.csv")
    assert list(board.columns) == [*table.COLUMNS, *compare.TO_BASELINE, *compare.RANKS]
    assert len(board) == 5
    rows = board.set_index(["method", "variant"])
    assert pd.isna(rows.loc[("cluster_contrast", "sequential"), "baseline"])
    assert rows.loc[("hhcl", "paper"), "verdict"] == "better"
    assert "Differences to the baseline" in Path("results/leaderboard.md").read_text()


def test_results_of_the_real_entry_points_pass_the_checks_and_are_compared(here: Path, world: TinyWorld) -> None:
    Path("train.yaml").write_text(write_params(here, ["hhcl"], [0]).read_text().replace("threads: 1", "threads: 2"))
    for method in ("warm_start", "cluster_contrast"):
        trained, scored = here / "trained" / method, here / Job(method, "rendered", "resnet18_half", 0).evaluated
        assert train.main(world.train_arguments(method, trained, "--params", "train.yaml")) == 0
        assert evaluate.main(world.evaluate_arguments(method, trained, scored, "--params", "train.yaml")) == 0
    row = pair(run_compare(here, ["warm_start", "cluster_contrast"], [0]), "warm_start", "cluster_contrast")
    scores = [
        read_result(here / Job(name, "rendered", "resnet18_half", 0).evaluated).record for name in (row["a"], row["b"])
    ]
    last = [record.selection.last.mAP for record in scores]
    assert row["difference"] == pytest.approx(100 * (last[0] - last[1]))
    assert row["verdict"] == "one world"
