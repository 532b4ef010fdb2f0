"""A run can be watched: the table is there after every epoch, and TensorBoard shows each epoch once."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from core.errors import UserError
from core.tracking import Tracker, check_tracker

HISTORY = [{"epoch": epoch, "loss_ce": 1.0 / epoch, "clusters": 10 + epoch} for epoch in (1, 2, 3)]


def test_the_table_holds_every_epoch_so_far(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        for epochs in (1, 2):
            tracker.update(HISTORY[:epochs])
            pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), pd.DataFrame(HISTORY[:epochs]))
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_tensorboard_shows_each_epoch_of_a_resumed_run_once(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Tracker(tmp_path, "tensorboard") as killed:
        killed.update(HISTORY[:1])
        killed.update(HISTORY[:2])
    with Tracker(tmp_path, "tensorboard") as resumed:
        resumed.update(HISTORY)
    events = reading.EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss_ce", "clusters"]
    assert [(event.step, event.value) for event in events.Scalars("clusters")] == [(1, 11), (2, 12), (3, 13)]


def test_a_missing_tensorboard_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"`pip install tensorboard`"):
        check_tracker("tensorboard")
    check_tracker(None)
