"""Named random streams: every draw in the suite is a function of (seed, name, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


class Streams:
    """Independent generators derived from one seed.

    A stream does not depend on how much any other stream has been used, so a resumed run, another number of
    processes or an extra metric cannot shift the draws of a sampler.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def derive(self, name: str, epoch: int = 0) -> int:
        """A 63-bit integer seed for the stream ``name`` at ``epoch``."""
        digest = hashlib.sha256(f"{self.seed}/{name}/{epoch}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def torch(self, name: str, epoch: int = 0) -> torch.Generator:
        """A fresh CPU generator; draws are moved to the device afterwards, so devices agree."""
        return torch.Generator().manual_seed(self.derive(name, epoch))

    def numpy(self, name: str, epoch: int = 0) -> np.random.Generator:
        """A fresh numpy generator (PCG64)."""
        return np.random.Generator(np.random.PCG64(self.derive(name, epoch)))


def normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, float32. They are drawn in float64: torch draws float32 by other code with AVX2."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).float()
