"""The committed reference: what is written of the runs is enough to make every table again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from core.validation import RecordError
from pipeline.jobs import ROOT
from pipeline.params import read_params
from pipeline.settings import resolve_run
from reports import leaderboard, reference, verify
from reports.readme import ADAPTATION, REAL
from reports.record import read_result
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(10), 3)
RUNS = ["warm_start", "cluster_contrast", "hhcl"]
WORLDS = (0, 1, 2)
FOLDER = Path("results/reference")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of three rows in three worlds, and the results that it was made of."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in RUNS:
            for world in WORLDS:
                write_result(name, 0, rng.uniform(0.1, 0.9, len(PEOPLE)), PEOPLE + world, world=world)
        write_params(folder, RUNS, [0], worlds=WORLDS)
        verify.main(["--update"])
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents() -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in FOLDER.rglob("*.*") if file.is_file()}


def test_every_record_query_and_curve_comes_back_from_the_reference(here: Path) -> None:
    ran = {result.folder: result for result in verify.present_results(read_params(Path("params.yaml")))}
    stored = reference.read(FOLDER)
    assert {result.folder for result in stored} == set(ran)
    for result in stored:
        original = ran[result.folder]
        assert result.record == original.record
        assert result.queries is not None
        pd.testing.assert_frame_equal(result.queries, original.queries[list(result.queries)], rtol=1e-6)
        pd.testing.assert_frame_equal(result.curves, original.curves, rtol=1e-5)


def test_the_leaderboard_of_a_clone_without_runs_is_that_of_the_runs(here: Path) -> None:
    leaderboard.main(["--out", "ran"])
    shutil.rmtree("results/runs")
    (here / "params.yaml").unlink()
    leaderboard.main(["--from", str(FOLDER), "--out", "cloned"])
    tables = [pd.read_csv(f"{folder}/leaderboard.csv") for folder in ("ran", "cloned")]
    assert tables[0]["low"].notna().sum() == 2, "two rows have an interval"
    pd.testing.assert_frame_equal(*tables, rtol=1e-6, atol=1e-6)
    curves = [pd.read_csv(f"{folder}/curves.csv").sort_values(["run", "epoch"]) for folder in ("ran", "cloned")]
    pd.testing.assert_frame_equal(*[table.reset_index(drop=True) for table in curves], rtol=1e-5)


def test_adding_a_row_leaves_the_files_of_the_others_as_they_are(here: Path) -> None:
    before = contents()
    shutil.rmtree("results/runs")
    for world in WORLDS:
        write_result("spcl", 0, np.full(len(PEOPLE), 0.5), PEOPLE + world, world=world)
    write_params(here, ["spcl"], [0], worlds=WORLDS)
    verify.main(["--update"])
    after = contents()
    tables = {FOLDER / name for name in ("leaderboard.csv", "leaderboard.md", "worlds.csv")}
    assert {file for file in before if after[file] != before[file]} == tables
    added = {file.relative_to(FOLDER / "runs").parent.name for file in after.keys() - before.keys()}
    assert added == {"spcl-released-resnet18_half-tiny-rendered"}, "its queries are there already"
    assert set(pd.read_csv(FOLDER / "leaderboard.csv")["method"]) == {*RUNS, "spcl"}


def test_a_row_keeps_the_worlds_that_were_not_run_now_and_takes_those_that_were(here: Path) -> None:
    shutil.rmtree("results/runs")
    before = {result.record.world: result for result in reference.read(FOLDER) if result.record.run.name == "hhcl"}
    for world in (1, 7):
        write_result("hhcl", 0, np.full(len(PEOPLE), 0.5), PEOPLE + world, world=world)
    write_params(here, ["hhcl"], [0], worlds=(1, 7))
    verify.main(["--update"])
    after = [result for result in reference.read(FOLDER) if result.record.run.name == "hhcl"]
    assert [result.record.world for result in after] == [0, 1, 2, 7]
    for result in after:
        assert result.queries is not None
        if result.record.world in (1, 7):
            assert (result.queries["ap"] == 0.5).all()
        else:
            pd.testing.assert_frame_equal(result.queries, before[result.record.world].queries)
            pd.testing.assert_frame_equal(result.curves, before[result.record.world].curves)


def test_a_row_is_not_made_of_worlds_by_different_settings(here: Path) -> None:
    before = contents()
    shutil.rmtree("results/runs")
    other = resolve_run("hhcl", "rendered", "tiny", {"clustering": {"eps": 0.7}}, backbone="resnet18_half")
    write_result("hhcl", 0, np.full(len(PEOPLE), 0.5), PEOPLE + 7, world=7, run=other.record())
    write_params(here, ["hhcl"], [0], worlds=(7,))
    with pytest.raises(UserError, match=r"not written: .*hhcl-released.* has 3 more results by other settings"):
        verify.main(["--update"])
    assert before == contents()


def test_a_reference_is_not_made_of_failed_results(here: Path) -> None:
    before = contents()
    write_result("hhcl", 0, np.full(30, 0.6), PEOPLE, world=1, failure="loss is not finite")
    with pytest.raises(UserError, match="not written: hhcl, seed 0: loss is not finite"):
        verify.main(["--update"])
    assert before == contents()


def test_queries_that_no_row_asks_any_more_are_removed(here: Path) -> None:
    assert len(list((FOLDER / "queries").iterdir())) == len(WORLDS)
    for name in RUNS:
        write_result(name, 0, np.full(30, 0.6), PEOPLE + 7, world=0)
    verify.main(["--update"])
    assert len(list((FOLDER / "queries").iterdir())) == len(WORLDS)
    assert len(reference.read(FOLDER)) == len(RUNS) * len(WORLDS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("queries.npz", "queries.npz is not the file that was recorded"),
        ("curves.csv", "curves.csv is not the file that was recorded"),
        ("row.json", "mAP is 0.9.*, but queries.csv gives"),
        ("ids", "holds other queries than its name tells"),
        ("no ids", "does not exist, but rows of the reference ask its queries"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_named(here: Path, damage: str, message: str) -> None:
    row, ids = FOLDER / "runs/hhcl-released-resnet18_half-tiny-rendered", sorted((FOLDER / "queries").iterdir())[0]
    if damage == "row.json":
        stored = json.loads((row / damage).read_text())
        stored["replicates"][1]["record"]["selection"]["last"]["mAP"] = 0.9
        stored["replicates"][1]["record"]["selection"]["best_on_test"]["mAP"] = 0.9
        (row / damage).write_text(json.dumps(stored))
    elif damage == "no ids":
        ids.unlink()
    elif damage == "ids":
        shutil.copy(sorted((FOLDER / "queries").iterdir())[1], ids)
    else:
        with (row / damage).open("ab") as file:
            file.write(b" ")
    with pytest.raises(RecordError, match=message):
        reference.read(FOLDER)


def test_a_reference_of_the_earlier_format_says_what_to_do(here: Path) -> None:
    (FOLDER / "runs/hhcl-released-resnet18_half-tiny-rendered.json").write_text("{}")
    with pytest.raises(UserError, match=r"earlier format.*remove its \*\.json and write it again"):
        verify.main([])


def test_nested_records_are_parted_and_put_together_again() -> None:
    records = [
        {"seed": 0, "run": {"name": "a", "config": {"x": 1, "y": {}}}, "cost": {"train": 2.0}},
        {"seed": 1, "run": {"name": "a", "config": {"x": 2, "y": {}}}, "cost": {"label": 1.0}},
    ]
    shared = reference.common(records)
    assert shared == {"run": {"name": "a", "config": {"y": {}}}, "cost": {}}
    assert [reference.merged(shared, reference.without(record, shared)) for record in records] == records


@pytest.mark.parametrize("folder", [Path(), Path(ADAPTATION), Path(REAL)])
def test_a_committed_reference_is_whole_and_its_table_is_that_of_its_rows(folder: Path) -> None:
    folder = ROOT / "results/reference" / folder
    results = reference.read(folder)
    assert results
    made = leaderboard.compared_table(results).reset_index(drop=True)
    committed = pd.read_csv(folder / "leaderboard.csv")
    assert list(made) == list(committed), "write the tables again: `make readme`"
    for column in made:
        if pd.api.types.is_numeric_dtype(committed[column]):
            np.testing.assert_allclose(made[column].astype(float), committed[column], rtol=1e-6, atol=1e-6)


def test_what_is_read_back_of_a_result_folder_holds_its_curves(here: Path) -> None:
    result = read_result(Path("results/runs/hhcl-rendered-0-resnet18_half-0"))
    assert list(result.curves["epoch"]) == [1, 2]
