"""The regression gate: states, tolerance and exit status."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.validation import read
from pipeline.params import read_params
from reports import verify
from reports.published import Row
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(10), 3)
RUNS = ["cluster_contrast", "hhcl"]
PUBLISHED = {
    **{"dataset": "rendered", "variant": "released", "backbone": "resnet18_half", "source": "a table"},
    **{"mAP": 70.0, "rank1": None, "rank5": None, "rank10": None},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose reference is CC at 50 and HHCL at 60 mAP, three seeds without spread."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        write("cluster_contrast", 0.5, seed)
        write("hhcl", 0.6, seed)
    write_params(tmp_path, RUNS, [0, 1, 2])
    assert verify.main(["--update"]) == 0
    return tmp_path


def write(name: str, level: float, seed: int = 0, **more: Any) -> None:
    write_result(name, seed, np.full(len(PEOPLE), level), PEOPLE, **more)


def states(name: str = "reference") -> dict[str, str]:
    params = read_params(Path("params.yaml"))
    table = verify.verify(verify.present_results(params), verify.read_reference(Path("results/reference")))
    chosen = table[table["expected_by"] == name]
    return dict(zip(chosen["method"], chosen["state"], strict=False))


def test_unchanged_results_match_and_exit_zero(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([]) == 0
    assert states() == {"cluster_contrast": "match", "hhcl": "match"}
    assert "2 match, 0 above, 0 below" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("level", "state", "status"),
    [(0.609, "match", 0), (0.591, "match", 0), (0.62, "above", 0), (0.58, "below", 1)],
)
def test_a_difference_beyond_one_point_is_a_state_and_only_below_fails(
    here: Path, level: float, state: str, status: int
) -> None:
    for seed in (0, 1, 2):
        write("hhcl", level, seed)
    assert states()["hhcl"] == state
    assert verify.main([]) == status


def test_the_tolerance_is_three_standard_errors_of_the_difference_of_two_means() -> None:
    assert verify.tolerance(0.0, 1, 1) == 1.0
    assert verify.tolerance(0.1, 3, 3) == 1.0
    assert verify.tolerance(2.0, 1, 3) == pytest.approx(6 * math.sqrt(4 / 3))
    assert verify.tolerance(2.0, 3, 3) == pytest.approx(6 * math.sqrt(2 / 3))


def test_a_rows_spread_is_its_own_or_that_of_the_rows_that_train_alike() -> None:
    still, calm, wild = [58.6, 58.6, 58.6], [75.5, 76.0, 76.5], [72.0, 76.0, 80.0]
    pooled = math.sqrt((0.25 + 16.0) / 2)
    assert verify.pooled_spread([still, calm, wild, [70.0]]) == pytest.approx(pooled)
    assert verify.spread_of(calm, [still, calm, wild]) == pytest.approx(pooled)
    assert verify.spread_of(wild, [still, calm, wild]) == pytest.approx(4.0)
    assert verify.spread_of([70.0], [calm, wild]) == pytest.approx(pooled)
    assert verify.spread_of(still, [still, calm, wild]) == 0.0, "a warm start is not trained"
    assert verify.spread_of([], []) == 0.0


def test_three_seeds_that_agree_by_chance_do_not_make_the_gate_narrow(here: Path) -> None:
    for seed, level in enumerate((0.48, 0.50, 0.52)):
        write("cluster_contrast", level, seed)
    for seed, level in enumerate((0.601, 0.599, 0.6)):
        write("hhcl", level, seed)
    verify.main(["--update"])
    for seed in (0, 1, 2):
        write("hhcl", 0.57, seed)
    assert states()["hhcl"] == "match", "the baseline's seeds scatter by 2 points"
    for seed in (0, 1, 2):
        write("hhcl", 0.56, seed)
    assert states()["hhcl"] == "below"


def test_the_reference_holds_every_seed_with_mean_and_sd(here: Path) -> None:
    for seed, level in enumerate((0.5, 0.6, 0.7)):
        write("hhcl", level, seed)
    verify.main(["--update"])
    name = "hhcl-released-resnet18_half-tiny-rendered.json"
    row = json.loads((here / "results/reference/runs" / name).read_text())
    assert row["seeds"] == [0, 1, 2]
    assert row["metrics"]["mAP"]["mean"] == pytest.approx(60)
    assert row["metrics"]["mAP"]["sd"] == pytest.approx(10)
    assert row["metrics"]["mAP"]["values"] == pytest.approx([50, 60, 70])
    assert row["selection"] == "last"
    assert (here / "results/reference/leaderboard.csv").is_file()
    assert (here / "results/reference/leaderboard.md").is_file()


def test_what_was_not_run_does_not_fail(here: Path) -> None:
    for seed in (0, 1, 2):
        (here / f"results/runs/hhcl-rendered-resnet18_half-{seed}/result.json").unlink()
    assert states()["hhcl"] == "not run"
    assert verify.main([]) == 0


def test_results_of_other_data_are_not_held_against_the_reference(here: Path) -> None:
    for seed in (0, 1, 2):
        write("hhcl", 0.2, seed, fingerprint="large")
    assert states()["hhcl"] == "not run"
    assert verify.main([]) == 0


def test_a_run_that_now_fails_is_below(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 2):
        write("hhcl", 0.6, seed, failure="loss is not finite")
    assert verify.main([]) == 1
    assert "seed 0 failed" in capsys.readouterr().out


def test_a_quarantined_result_is_below_and_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 2):
        (here / f"results/runs/hhcl-rendered-resnet18_half-{seed}/queries.csv").unlink()
    assert verify.main([]) == 1
    assert "quarantined: hhcl-rendered-resnet18_half-0: queries.csv cannot be read" in capsys.readouterr().err


def print_in_paper(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    """Let PUBLISHED, read where ``mark`` says, be all that any paper prints."""
    row = read(Row, PUBLISHED | {"verified": mark}, "published.yaml")
    monkeypatch.setattr(verify, "published_rows", lambda method: (row,) if method == "hhcl" else ())


def test_a_paper_is_compared_by_its_own_selection_rule_with_its_own_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print_in_paper(monkeypatch, "readme")
    assert states("paper") == {"hhcl": "not run"}, "the tiny profile is not the paper's"
    for seed in (0, 1, 2):
        write("hhcl", 0.6, seed, best=0.695, profile="published")
    assert states("paper") == {"hhcl": "match"}
    assert states()["hhcl"] == "not run"


@pytest.mark.parametrize(("profile", "state"), [("published", "match"), ("tiny", "below")])
def test_one_seed_is_held_to_a_paper_by_the_spread_of_the_rows_of_its_own_setting(
    here: Path, monkeypatch: pytest.MonkeyPatch, profile: str, state: str
) -> None:
    print_in_paper(monkeypatch, "readme")
    for seed, best in enumerate((0.48, 0.50, 0.52)):
        write("cluster_contrast", 0.4, seed, best=best, profile=profile)
        (here / f"results/runs/hhcl-rendered-resnet18_half-{seed}/result.json").unlink()
    write("hhcl", 0.6, 0, best=0.65, profile="published")
    assert states("paper") == {"hhcl": state}


@pytest.mark.parametrize("mark", ["memory", "quoted", "third-party", "second-hand", "unverified"])
def test_a_run_below_a_number_that_was_not_read_at_its_authors_does_not_fail(
    here: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    print_in_paper(monkeypatch, mark)
    for seed in (0, 1, 2):
        write("hhcl", 0.3, seed, profile="published")
    assert states("paper") == {"hhcl": "unverified"}
    assert verify.main([]) == 0
    print_in_paper(monkeypatch, "image")
    assert states("paper") == {"hhcl": "below"}
    assert verify.main([]) == 1


def test_published_numbers_of_datasets_that_are_not_there_are_not_run(here: Path) -> None:
    assert set(states("paper").values()) == {"not run"}


def test_without_a_reference_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, RUNS, [0])
    assert verify.main([]) == 0


def test_a_reference_is_not_made_of_failed_results(here: Path) -> None:
    before = {file: file.read_bytes() for file in Path("results/reference").rglob("*.*")}
    write("hhcl", 0.6, 1, failure="loss is not finite")
    with pytest.raises(ValueError, match="not written: hhcl, seed 1: loss is not finite"):
        verify.main(["--update"])
    assert before == {file: file.read_bytes() for file in Path("results/reference").rglob("*.*")}


def test_an_update_keeps_references_of_runs_that_were_not_run_now(here: Path) -> None:
    write_params(here, ["hhcl"], [0])
    verify.main(["--update"])
    assert len(verify.read_reference(Path("results/reference"))) == 2
