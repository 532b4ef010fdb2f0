"""Projectors: from a token to a unit vector, and to its similarity with prototypes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core.precision import at_least_float32


class Projector(nn.Module):
    """Three layers with GELU between, unit length; then, with prototypes, the cosine to each of them.

    ``DINOHead`` of facebookresearch/dino @7c446df, whose last layer has weight norm with a gain that stays 1.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int = 0) -> None:
        super().__init__()
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False) if prototypes else None

    def forward(self, tokens: Tensor, frozen: bool = False) -> Tensor:
        """(..., bottleneck) of unit length or (..., prototypes), of tokens (..., width).

        frozen: prototypes get a gradient of 0, and so take part in the backward pass like any parameter, as DDP wants.
        """
        unit = F.normalize(at_least_float32(self.mlp(tokens)), dim=-1)
        if self.prototypes is None:
            return unit
        weight = self.prototypes.weight
        rows = F.normalize(weight.detach() + 0 * weight if frozen else weight, dim=1)
        return F.linear(unit, rows.to(unit.dtype))
