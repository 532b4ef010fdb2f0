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

MERGED = """
import pickle, torch, torch.distributed as dist
from core import distributed
group = distributed.start("cpu")
whole = []
for number in range(5):
    generator = torch.Generator().manual_seed(number)
    rows = torch.randn(8 if number < 4 else 3, 6, 5, 4, generator=generator)
    whole.append({
        "feature": rows[:, :, 0, 0],
        "map": rows.to(memory_format=torch.channels_last),
        "half": rows[:, 0].bfloat16(),
        "seen": rows[:, 0, 0] > 0,
        "none": rows[:, :0],
    })
mine = {i: chunk for i, chunk in enumerate(whole) if i % group.size == group.rank}
gather, told = dist.all_gather_object, []

def watched(into, given, *more):
    told.append(len(pickle.dumps(given)))
    gather(into, given, *more)

dist.all_gather_object = watched
merged = distributed.merge_chunks(mine, 5, group)
for found, expected in zip(merged, whole, strict=True):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert found["map"].is_contiguous(memory_format=torch.channels_last)
features = sum(value.nbytes for chunk in mine.values() for value in chunk.values())
assert sum(told) < features / 4, (told, features)
print("merged", flush=True)
distributed.finish(group)
"""


def launched(script: str, processes: int, folder: Path) -> str:
    """What ``processes`` ranks of the script print."""
    (folder / "script.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*launcher, str(folder / "script.py")], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_rank_has_all_chunks_to_the_bit_and_none_is_pickled(processes: int, tmp_path: Path) -> None:
    assert launched(MERGED, processes, tmp_path).count("merged") == processes


@pytest.mark.slow
def test_a_rank_waits_for_another_that_labels_for_hours(tmp_path: Path) -> None:
    told = launched(TOLD, 2, tmp_path)
    assert timedelta(seconds=float(told)) >= timedelta(hours=12)
