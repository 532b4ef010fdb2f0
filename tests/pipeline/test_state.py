"""Records stand over their own files only, and a run that goes wrong ends as a row that says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from core.checkpoint import Checkpoint
from core.errors import UserError
from pipeline import evaluate, train
from reports.record import read_result
from tests.conftest import TinyWorld


@pytest.fixture(scope="module")
def trained(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("state") / "trained"
    assert train.main(world.train_arguments("cluster_contrast", out)) == 0
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run to damage."""
    return Path(shutil.copytree(trained, tmp_path / "trained"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["weights/epoch_001.pt", "weights/epoch_002.pt", "labels.npz", "history.csv"])
def test_a_run_whose_files_are_not_those_of_its_record_is_not_scored(world: TinyWorld, copied: Path, name: str) -> None:
    cut(copied / name)
    with pytest.raises(UserError, match=rf"{name} is not the file that was recorded.*`python -m pipeline.train` again"):
        evaluate.main(world.evaluate_arguments("cluster_contrast", copied, copied / "scored"))
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        evaluate.main(world.evaluate_arguments("cluster_contrast", copied, copied / "scored"))


def test_a_run_without_its_last_epoch_is_not_scored_by_an_earlier_one(world: TinyWorld, copied: Path) -> None:
    record = json.loads((copied / "train.json").read_text())
    del record["files"]["weights/epoch_002.pt"]
    (copied / "train.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"lacks the last epoch, weights/epoch_002\.pt"):
        evaluate.main(world.evaluate_arguments("cluster_contrast", copied, copied / "scored"))


def test_initial_weights_that_their_record_does_not_know_start_nothing(world: TinyWorld, tmp_path: Path) -> None:
    initial = Path(shutil.copytree(world.initial, tmp_path / "initial"))
    cut(initial / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt is not the file that was recorded.*pipeline\.pretrain"):
        train.main(world.train_arguments("cluster_contrast", tmp_path / "out", "--initial", str(initial)))


def test_a_result_whose_side_files_were_cut_is_quarantined(world: TinyWorld, trained: Path, tmp_path: Path) -> None:
    assert evaluate.main(world.evaluate_arguments("cluster_contrast", trained, tmp_path / "scored")) == 0
    assert read_result(tmp_path / "scored").ok
    cut(tmp_path / "scored/curves.csv")
    found = read_result(tmp_path / "scored")
    assert found.record.status == "quarantined"
    assert "curves.csv is not the file that was recorded" in found.record.reason


@pytest.mark.parametrize(
    ("optimiser", "said_by", "reason"),
    [
        (["name=sgd", "lr=1.0e+38", "weight_decay=10.0"], "trained", "after epoch 1, "),
        (["lr=1.0e+30"], "scored", "tested after epoch 1: "),
    ],
)
def test_what_the_last_step_destroyed_is_a_failed_row(
    world: TinyWorld, tmp_path: Path, optimiser: list[str], said_by: str, reason: str
) -> None:
    """Weights that are not finite after the last step, and weights so large that features are not."""
    last = ["--set", "schedule.epochs=1", "--set", "schedule.iterations=1"]
    last += [word for change in optimiser for word in ("--set", f"optimiser.{change}")]
    assert train.main(world.train_arguments("cluster_contrast", tmp_path / "trained", *last)) == 0
    assert evaluate.main(world.evaluate_arguments("cluster_contrast", tmp_path / "trained", tmp_path / "scored")) == 0
    file = {"trained": "trained/train.json", "scored": "scored/result.json"}[said_by]
    record = json.loads((tmp_path / file).read_text())
    assert record["status"] == "failed"
    assert record["reason"].startswith(reason)
    assert json.loads((tmp_path / "scored/metrics.json").read_text())["status"] == "failed"


def test_a_run_resumed_after_its_collapse_ends_where_it_would_have(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = world.train_arguments("cluster_contrast", tmp_path / "trained", "--set", "schedule.epochs=4")
    arguments += ["--set", "clustering.eps=0.0", "--cache", str(tmp_path / "cache")]
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoint, "delete", lambda self: None)  # as if it had died before
        assert train.main(arguments) == 0
    whole = json.loads((tmp_path / "trained/train.json").read_text())
    assert "epochs 1 and 2" in whole["reason"]
    assert train.main(arguments) == 0
    resumed = json.loads((tmp_path / "trained/train.json").read_text())
    assert [resumed[key] for key in ("status", "reason", "files")] == [
        whole[key] for key in ("status", "reason", "files")
    ]
    assert not [name for name in os.listdir(tmp_path / "cache/checkpoints") if not name.endswith(".lock")]
