"""FCU's two heads on one backbone: the whole image and its stripes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm1d
from core.memory import unit
from core.parts import cut, stripe_weights
from core.precision import at_least_float32


class GlobalHead(nn.Module):
    """Linear -> batch norm -> unit vector, as in BUC; the dropout after it is drawn by the method."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(dim, dim)
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        nn.init.zeros_(self.embedding.bias)
        self.norm = GroupedBatchNorm1d(dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """(b, D) unit vectors of pooled maps (b, D)."""
        return unit(self.norm(at_least_float32(self.embedding(pooled))))


class PatchHead(nn.Module):
    """Of every horizontal stripe: average -> linear -> batch norm -> unit vector, as in PAUL's unsupervised net."""

    def __init__(self, dim: int, patches: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, width) for _ in range(patches))
        self.norms = nn.ModuleList(GroupedBatchNorm1d(width) for _ in range(patches))

    def forward(self, feature_map: Tensor) -> Tensor:
        """(b, P, d) unit vectors of a map (b, D, h, w)."""
        weights = stripe_weights(len(self.down), *feature_map.shape[2:]).to(feature_map.device)
        stripes = cut(feature_map, weights).unbind(dim=1)
        rows = [
            norm(at_least_float32(down(stripe)))
            for stripe, down, norm in zip(stripes, self.down, self.norms, strict=True)
        ]
        return F.normalize(torch.stack(rows, dim=1), dim=2)
