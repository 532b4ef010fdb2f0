"""Random tensors for tests of methods, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    """Vectors of length one along the last axis."""
    return F.normalize(normal(generator, *shape), dim=-1)
