"""A checkpoint is there whole, is gone, or says which folder to remove."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from core.checkpoint import Checkpoint, DamagedCheckpoint
from core.distributed import ProcessGroup

ALONE = ProcessGroup(0, 1, torch.device("cpu"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Two epochs of a run."""
    made = Checkpoint(tmp_path, {"run": 1})
    for epoch in (1, 2):
        made.keep_weights(epoch, {"w": torch.full((3,), float(epoch))})
    made.save({"epoch": 2})
    return made


def test_a_deletion_that_is_cut_short_leaves_no_state_without_its_weights(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.delete()
    assert checkpoint.load(ALONE) is None


@pytest.mark.parametrize("damage", [b"", b"half of a file", None])
def test_a_damaged_state_names_the_folder_to_remove(checkpoint: Checkpoint, damage: bytes | None) -> None:
    state = checkpoint.folder / "state.pt"
    state.write_bytes(state.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(DamagedCheckpoint, match=rf"state\.pt cannot be read .*; remove {checkpoint.folder}"):
        checkpoint.load(ALONE)


def test_publishing_wants_every_due_epoch_and_leaves_no_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=rf"lacks the weights of the epochs \[3\]; remove {checkpoint.folder}"):
        checkpoint.publish_weights(tmp_path / "out", [1, 2, 3])
    checkpoint.publish_weights(tmp_path / "out", [1, 2])
    checkpoint.publish_weights(tmp_path / "out", [2])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["epoch_002.pt"]
