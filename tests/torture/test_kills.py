"""A sample of what `make torture` does whole: stages killed at a file event leave nothing lost and nothing wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.jobs import ROOT

STAGES = ("prepare again", "pretrain", "train over another run", "evaluate", "configure", "leaderboard")


@pytest.mark.slow
def test_a_stage_killed_at_a_file_event_and_run_again_writes_what_it_would_have() -> None:
    """In a process of its own: forking is safe only where no threads run, and pytest's has had some."""
    command = [sys.executable, "-m", "tests.torture", "--sample", "2", "--pairs", "1", "--stages", "train", *STAGES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | | 14 | 14 |" in done.stdout
    assert "in 1 of 1 trials" in done.stdout
