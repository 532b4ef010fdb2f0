"""The regression gate: states, notes and exit status."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.validation import read
from pipeline.params import read_params
from reports import gate, reference, verify
from reports.published import Row
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(10), 3)
LEVELS = {"warm_start": 0.40, "supervised": 0.85, "cluster_contrast": 0.60, "hhcl": 0.62, "spcl": 0.55}
WORLDS = (0, 1, 2, 3)
EASE = {0: 0.0, 1: 0.05, 2: -0.04, 3: 0.02, 10: 0.08, 11: 0.06}  # what a world does to all rows
OWN = np.random.default_rng(3).normal(0, 0.01, (5, 20))  # what it does to one
REFERENCE = Path("results/reference")
PUBLISHED = {
    **{"dataset": "rendered", "variant": "released", "backbone": "resnet18_half", "source": "a table"},
    **{"mAP": 70.0, "rank1": None, "rank5": None, "rank10": None},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose reference is five rows in four worlds, with the results that it was made of."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in LEVELS:
            write(name)
        write_params(folder, list(LEVELS), [0], worlds=WORLDS)
        assert verify.main(["--update"]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, change: float = 0.0, worlds: tuple[int, ...] = WORLDS, **more: Any) -> None:
    """The row's results in these worlds, better by ``change`` than the reference's."""
    row = list(LEVELS).index(name)
    for world in worlds:
        level = LEVELS[name] + EASE[world] + OWN[row, world] + change
        write_result(name, 0, np.full(len(PEOPLE), level), PEOPLE, world=world, **more)


def table() -> pd.DataFrame:
    return verify.verify(verify.present_results(read_params(Path("params.yaml"))), reference.read(REFERENCE))


def states(by: str = "reference") -> dict[str, str]:
    lines = table().query("expected_by == @by")
    return dict(zip(lines["method"], lines["state"], strict=True))


def line(method: str) -> pd.Series:
    return table().query("expected_by == 'reference'").set_index("method").loc[method]


ALL = dict.fromkeys([*LEVELS, verify.WHOLE], "match")


def test_unchanged_results_match_and_exit_zero(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([]) == 0
    assert states() == ALL
    assert "6 match, 0 above, 0 below" in capsys.readouterr().out


def test_a_loss_beyond_the_interval_is_below_and_fails_a_gain_is_above_and_does_not(here: Path) -> None:
    tolerance, caught = line("hhcl")[["tolerance", "caught"]]
    made = 100 * np.array([[LEVELS[name] + EASE[w] + OWN[row, w] for w in WORLDS] for row, name in enumerate(LEVELS)])
    expected = gate.predict(made, made).tolerance(gate.ROWS / len(LEVELS))
    assert tolerance == pytest.approx(expected[list(LEVELS).index("hhcl")]), "shared by all rows of the table"
    assert tolerance < caught
    write("hhcl", -0.8 * tolerance / 100)
    assert states() == ALL
    write("hhcl", -1.2 * tolerance / 100)
    assert states() == ALL | {"hhcl": "below"}, "the other rows do not look better for it"
    assert verify.main([]) == 1
    write("hhcl", 1.2 * tolerance / 100)
    assert states() == ALL | {"hhcl": "above"}
    assert verify.main([]) == 0


def test_other_worlds_are_compared_by_what_rows_differ_from_each_other(here: Path) -> None:
    for name in LEVELS:
        write(name, worlds=(10, 11))
    write_params(here, list(LEVELS), [0], worlds=(10, 11))
    assert states() == ALL, "easier worlds do not make a row better"
    write("spcl", -0.12, worlds=(10, 11))
    assert states() == ALL | {"spcl": "below"}


def test_a_loss_of_all_rows_is_below_as_a_whole(here: Path) -> None:
    for name in LEVELS:
        write(name, -0.1)
    assert states() == ALL | {verify.WHOLE: "below"}
    assert verify.main([]) == 1


def test_rows_too_few_to_tell_what_a_world_does_are_compared_as_they_are(here: Path) -> None:
    write_params(here, ["hhcl", "spcl"], [0], worlds=WORLDS)
    assert states() == dict.fromkeys(LEVELS, "not run") | {"hhcl": "match", "spcl": "match"}
    write("hhcl", -0.5)
    assert states()["hhcl"] == "below"


def test_what_was_not_run_does_not_fail(here: Path) -> None:
    for world in WORLDS:
        (here / f"results/runs/hhcl-rendered-{world}-resnet18_half-0/result.json").unlink()
    assert states() == ALL | {"hhcl": "not run"}
    assert verify.main([]) == 0


@pytest.mark.parametrize("other", [{"fingerprint": "drawn by another renderer"}, {"worlds": (10, 11), "size": "large"}])
def test_results_of_other_data_are_not_held_against_the_reference(here: Path, other: dict[str, Any]) -> None:
    write("hhcl", -0.4, **other)
    write_params(here, list(LEVELS), [0], worlds=other.get("worlds", WORLDS))
    state, note = line("hhcl")[["state", "note"]]
    assert (state, note) == ("not run", "the results are of other data than the reference")
    assert verify.main([]) == 0


def test_a_run_that_now_fails_in_every_world_is_below(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("hhcl", worlds=WORLDS[:1], failure="loss is not finite")
    assert states() == ALL, "three worlds are left"
    write("hhcl", failure="loss is not finite")
    assert verify.main([]) == 1
    assert "world 0, seed 0 failed" in capsys.readouterr().out


def test_a_quarantined_result_is_below_and_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for world in WORLDS:
        (here / f"results/runs/hhcl-rendered-{world}-resnet18_half-0/queries.csv").unlink()
    assert verify.main([]) == 1
    assert "quarantined: hhcl-rendered-0-resnet18_half-0: queries.csv cannot be read" in capsys.readouterr().err


def test_several_seeds_in_a_world_are_one_replicate() -> None:
    folders = []
    for world, seed, level in ((0, 0, 0.4), (0, 1, 0.6), (1, 0, 0.8)):
        folders.append(write_result("hhcl", seed, np.full(len(PEOPLE), level), PEOPLE, world=world))
    records = [verify.read_result(folder).record for folder in folders]
    assert verify.values(records, "last", "mAP") == pytest.approx({0: 50, 1: 80})


def test_without_a_reference_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, ["hhcl"], [0])
    assert verify.main([]) == 0


def print_in_paper(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    """Let PUBLISHED, read where ``mark`` says, be all that any paper prints."""
    row = read(Row, PUBLISHED | {"verified": mark}, "published.yaml")
    monkeypatch.setattr(verify, "published_rows", lambda method: (row,) if method == "hhcl" else ())


def test_a_paper_is_compared_by_its_own_selection_rule_with_its_own_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print_in_paper(monkeypatch, "readme")
    assert states("paper") == {"hhcl": "not run"}, "the tiny profile is not the paper's"
    for world in WORLDS:
        write_result("hhcl", 0, np.full(30, 0.6), PEOPLE, world=world, best=0.695, profile="published")
    assert states("paper") == {"hhcl": "match"}
    assert states()["hhcl"] == "not run"


@pytest.mark.parametrize(("profile", "state"), [("published", "match"), ("tiny", "below")])
def test_one_seed_is_held_to_a_paper_by_the_spread_of_the_rows_of_its_own_setting(
    here: Path, monkeypatch: pytest.MonkeyPatch, profile: str, state: str
) -> None:
    print_in_paper(monkeypatch, "readme")
    write_params(here, ["cluster_contrast", "hhcl"], [0, 1, 2])
    for seed, best in enumerate((0.48, 0.50, 0.52)):
        write_result("cluster_contrast", seed, np.full(30, 0.4), PEOPLE, best=best, profile=profile)
    write_result("hhcl", 0, np.full(30, 0.6), PEOPLE, best=0.65, profile="published")
    assert states("paper") == {"hhcl": state}


@pytest.mark.parametrize("mark", ["memory", "quoted"])
def test_a_run_below_a_number_that_was_not_read_at_its_authors_does_not_fail(
    here: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    print_in_paper(monkeypatch, mark)
    write("hhcl", -0.3, profile="published")
    assert states("paper") == {"hhcl": "unverified"}
    assert verify.main([]) == 0
    print_in_paper(monkeypatch, "image")
    assert states("paper") == {"hhcl": "below"}
    assert verify.main([]) == 1


def test_published_numbers_of_datasets_that_are_not_there_are_not_run(here: Path) -> None:
    assert set(states("paper").values()) == {"not run"}
