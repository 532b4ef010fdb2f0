"""Records that stages leave for one another: what is written is read back, and a fault names file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserError
from pipeline.records import read_result, read_train, write_record
from tests.reports.synthetic import write_result


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / write_result("hhcl", 0, np.array([0.5, 0.25, 1.0]), np.array([1, 2, 3]))


def test_a_record_is_read_as_it_was_written(scored: Path) -> None:
    record = read_result(scored)
    write_record(record, scored / "again.json")
    assert (scored / "again.json").read_bytes() == (scored / "result.json").read_bytes()
    assert record.selection.last.mAP == record.selection.figure("last", "mAP") == pytest.approx(1.75 / 3)
    assert record.run.setting == ("rendered", "tiny", "resnet18_half")


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ((), "sed", 0, r"result\.json: unknown key 'sed'; did you mean 'seed'"),
        ((), "code", None, r"'code' must be a valid string, not None"),
        (("selection", "last"), "mAp", 0.1, r"unknown key 'selection\.last\.mAp'; did you mean 'selection\.last\.mAP'"),
        (("selection", "last"), "mAP", "0.1", r"'selection\.last\.mAP' must be a valid number, not '0\.1'"),
        (("run",), "dataset", ..., r"'run\.dataset' is missing"),
        (("cost",), "images_seen", 1.5, r"'cost\.images_seen' must be a valid integer, not 1\.5"),
    ],
)
def test_a_key_that_is_unknown_missing_or_of_another_type_is_named(
    scored: Path, place: tuple[str, ...], key: str, value: Any, message: str
) -> None:
    record = json.loads((scored / "result.json").read_text())
    inner = record
    for part in place:
        inner = inner[part]
    inner[key] = value
    if value is ...:
        del inner[key]
    (scored / "result.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        read_result(scored)


def test_a_record_that_is_not_there_says_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no trained run; run `python -m pipeline\.train` first"):
        read_train(tmp_path)
    with pytest.raises(UserError, match=r"result\.json does not exist; run `python -m pipeline\.evaluate` first"):
        read_result(tmp_path)
