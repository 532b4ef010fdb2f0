"""Pooling of a feature map (B, C, h, w) into (B, C), in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.precision import at_least_float32


class AveragePooling(nn.Module):
    """Global average pooling."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return at_least_float32(feature_map).mean((2, 3))


class GeM(nn.Module):
    """(mean of max(x, eps) ** p) ** (1 / p), p learned (arXiv 1711.02512, eq. 3)."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, feature_map: Tensor) -> Tensor:
        values = at_least_float32(feature_map).clamp(min=self.eps)
        return values.pow(self.p).mean((2, 3)).pow(1 / self.p)


POOLINGS: dict[str, type[nn.Module]] = {"avg": AveragePooling, "gem": GeM}
