"""How processes that train together wait for each other."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.jobs import ROOT

TOLD = """
import torch, torch.distributed as dist
from core import distributed
group = distributed.start("cpu")
waits = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
if group.main:
    print(waits.total_seconds())
distributed.finish(group)
"""


@pytest.mark.slow
def test_a_rank_waits_for_another_that_labels_for_hours(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{TOLD}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "told.py")], check=True, capture_output=True, text=True)
    assert timedelta(seconds=float(done.stdout)) >= timedelta(hours=12)
