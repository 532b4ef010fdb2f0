"""The table of faults fits the code, so that each of them can be put in; ``python -m tests.faults`` does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import faults
from tests.replay.check import asked_for


def test_there_are_at_least_forty_faults_and_few_are_excused() -> None:
    table = faults.read_faults()
    assert len(table) >= 40
    assert sum(bool(fault.missed) for fault in table) <= (1 - faults.SHARE) * len(table)


@pytest.mark.parametrize("fault", faults.read_faults(), ids=lambda fault: fault.title)
def test_a_fault_can_be_put_in_and_concerns_replays_that_exist(fault: faults.Fault, tmp_path: Path) -> None:
    (tmp_path / fault.file).parent.mkdir(parents=True)
    shutil.copyfile(faults.ROOT / fault.file, tmp_path / fault.file)
    before = fault.apply(tmp_path)
    assert (tmp_path / fault.file).read_text() != before
    assert asked_for(fault.runs)


def test_a_fault_whose_line_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\nx = 1\n")
    for old, count in (("x = 1", 2), ("y", 0)):
        with pytest.raises(ValueError, match=f"{count} times instead of once"):
            faults.Fault("one.py", "title", old, "z", ("hhcl",)).apply(tmp_path)
