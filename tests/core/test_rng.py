"""Random numbers that are the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.jobs import ROOT

PRINT = """
import torch
from core.rng import normal
drawn = normal((50, 18), torch.Generator().manual_seed(0))
print(drawn.dtype, drawn.view(torch.int32).flatten().tolist())
"""


def printed(capability: str) -> str:
    """What a process prints whose torch uses no more than these vector instructions."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return run.stdout


def test_normal_numbers_are_the_same_bits_with_and_without_vector_instructions() -> None:
    plain = printed("default")
    assert plain.startswith("torch.float32 [")
    assert printed("avx2") == plain
