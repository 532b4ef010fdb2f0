"""Adding a dataset takes one file: it is prepared, trained on, scored and tabled by its name alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import datasets
from core.errors import UserError
from pipeline import evaluate, prepare, train
from reports import leaderboard
from tests import trees
from tests.conftest import TinyWorld

FILE = """
from datasets.base import MARKET_LAYOUT, Dataset, index_names

DATASET = Dataset(
    name="newcomers",
    folders=("newcomers",),
    layouts=(tuple(MARKET_LAYOUT),),
    obtain="from their authors",
    index=lambda folder: index_names(folder, r"(?P<person>-?\\d+)_c(?P<camera>\\d+)"),
    notices=("taken on one day",),
)
"""
PARAMS = """
profile: tiny
backbones: {cnn: resnet18_half}
threads: 1
runs: {cnn: [supervised]}
datasets: [newcomers]
seeds: [0]
launch: python
data_root: "."
rendered: {size: tiny}
"""


def add(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``folder`` the place of all datasets, with one file more."""
    folder.mkdir()
    for path in datasets.HERE.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "newcomers.py").write_text(text)
    monkeypatch.setattr(datasets, "HERE", folder)
    monkeypatch.setattr(datasets, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, "datasets.newcomers", raising=False)


def test_a_dataset_of_one_file_is_trained_on_scored_and_tabled(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path / "datasets", FILE, monkeypatch)
    (tmp_path / "newcomers").symlink_to(world.data.resolve() / "images" / "Market-1501-v15.09.15")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["--dataset", "newcomers", "--root", "."]) == 0
    assert "scored by the protocol market1501" in capsys.readouterr().out
    run = ["--method", "supervised", "--dataset", "newcomers", "--device", "cpu"]
    initial = ["--initial", str(world.initial), "--set", "schedule.epochs=1"]
    assert train.main([*run, *initial]) == 0
    assert evaluate.main(run) == 0
    assert leaderboard.main([]) == 0
    result = json.loads(Path("results/runs/supervised-newcomers-resnet18_half-0/result.json").read_text())
    assert result["protocol"]["name"] == "market1501"
    assert result["selection"]["last"]["mAP"] > 0
    assert "Notice: taken on one day." in Path("results/leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('protocol="marked1501",', "unknown protocol 'marked1501'; did you mean 'market1501'"),
        ("folds=3,", "newcomers has 3 fold.s., its protocol market1501 has 1"),
    ],
)
def test_a_dataset_that_no_protocol_scores_is_refused_before_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str, message: str
) -> None:
    add(tmp_path / "datasets", FILE.replace('name="newcomers",', f'name="newcomers", {fields}'), monkeypatch)
    trees.named(tmp_path / "newcomers", trees.MARKET_NAMES)
    arguments = ["--dataset", "newcomers", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--fold", "0"]
    with pytest.raises(UserError, match=message):
        prepare.main(arguments)
    assert not (tmp_path / "out").exists()
