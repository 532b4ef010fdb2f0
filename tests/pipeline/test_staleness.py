"""A folder is a unit of invalidation: what a change of one file makes stale, and what it leaves current."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datasets import protocol_of
from pipeline.jobs import ROOT
from pipeline.settings import code_hash, scoring_hash

ROOMS = ("core", "evaluation", "methods", "pipeline", "reports")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code of this checkout, to be changed."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def keys(root: Path) -> tuple[str, str]:
    """What names the code of a run of HHCL and of its result on `rendered`."""
    return code_hash("hhcl", root), scoring_hash(protocol_of("rendered"), root)


@pytest.mark.parametrize(
    ("touched", "run_is_stale", "result_is_stale"),
    [
        ("core/memory.py", True, False),
        ("methods/hhcl/method.py", True, False),
        ("pipeline/assemble.py", True, False),
        ("evaluation/ranking.py", False, True),
        ("pipeline/scoring.py", False, True),
        ("reports/statistics.py", False, False),
        ("methods/spcl/method.py", False, False),
        ("pipeline/cli.py", False, False),
    ],
)
def test_a_change_makes_stale_what_its_room_decides_and_nothing_else(
    touched: str, run_is_stale: bool, result_is_stale: bool, copy: Path
) -> None:
    run, result = keys(copy)
    assert (run, result) == keys(ROOT)
    file = copy / touched
    file.write_text(file.read_text() + "\n# one comment more\n")
    assert (keys(copy)[0] != run, keys(copy)[1] != result) == (run_is_stale, result_is_stale)


def test_a_rule_of_the_protocol_makes_results_stale_and_a_notice_does_not() -> None:
    protocol = protocol_of("cuhk03_classic_detected")
    assert scoring_hash(protocol.model_copy(update={"draws": 99})) != scoring_hash(protocol)
    assert scoring_hash(protocol.model_copy(update={"notices": ("another",)})) == scoring_hash(protocol)
