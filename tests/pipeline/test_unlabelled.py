"""Training images whose people nobody knows: they train, they are not audited, and what needs ids says so."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from core.manifest import UNKNOWN, Manifest, ManifestError, read_manifest
from pipeline import evaluate, train
from tests.conftest import TinyWorld


@pytest.fixture
def unlabelled(world: TinyWorld, tmp_path: Path) -> list[str]:
    """``--data`` of the tiny world with nine training images of unknown people."""
    manifest = read_manifest(world.data)
    table = manifest.table.copy()
    table.loc[table.index[table["split"] == "train"][:9], "person_id"] = UNKNOWN
    Manifest(table, manifest.root.resolve(), manifest.name, manifest.fingerprint).write(tmp_path / "data")
    return ["--data", str(tmp_path / "data")]


def test_no_ground_truth_is_no_audit_and_a_note_says_why(
    world: TinyWorld, unlabelled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, scored = tmp_path / "trained", tmp_path / "scored"
    assert train.main(world.train_arguments("hhcl", trained, *unlabelled, "--set", "schedule.epochs=1")) == 0
    assert evaluate.main(world.evaluate_arguments("hhcl", trained, scored, *unlabelled)) == 0
    note = "no audit of the pseudo-labels: 9 of 100 training images of 'rendered' have no person id"
    assert json.loads((scored / "result.json").read_text())["notes"] == [note]
    assert f"note: {note}" in capsys.readouterr().out
    curves = pd.read_csv(scored / "curves.csv")
    assert not [name for name in curves if name.startswith("audit_")]
    assert curves["clusters"].notna().all()


def test_supervised_training_names_the_ids_that_are_missing(
    world: TinyWorld, unlabelled: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="trained on person ids, but 9 of 100 train images of 'rendered' have none"):
        train.main(world.train_arguments("supervised", tmp_path / "out", *unlabelled))
    assert not (tmp_path / "out").exists()
