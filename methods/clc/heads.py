"""What CLC classifies and compares by: the suite's neck, or the layers of HHL (docs/methods/clc.md, "Network")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm1d
from core.losses import similarities
from core.precision import at_least_float32

EMBEDDED, COMPARED = 1024, 128
DROPPED = 0.5


class NeckHead(nn.Module):
    """Logits: cosines of the neck's feature and a row for each identity, times ``scale``; compared: what was pooled."""

    def __init__(self, dim: int, identities: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.rows = nn.Parameter(torch.empty(identities, dim))
        nn.init.normal_(self.rows)

    @torch.no_grad()
    def start(self, means: Tensor) -> None:
        """The rows become the mean features of the identities."""
        self.rows.copy_(means)

    def forward(self, pooled: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(b, K) logits and (b, D) compared features of pooled (b, D) and unit feature (b, D)."""
        return self.scale * similarities(feature, F.normalize(self.rows, dim=1)), pooled


class HHLHead(nn.Module):
    """pooled -> FC 1024, batch norm, ReLU; from there dropout and FC K for the logits, and FC 128 for what is compared.

    ``frozen``: the first layer, its batch norm and the last keep their initial weights, as in the released code, whose
    optimiser leaves them out.
    """

    def __init__(self, dim: int, identities: int, frozen: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, EMBEDDED)
        self.norm = GroupedBatchNorm1d(EMBEDDED)
        self.classifier = nn.Linear(EMBEDDED, identities)
        self.compare = nn.Linear(EMBEDDED, COMPARED)
        nn.init.kaiming_normal_(self.embed.weight, mode="fan_out")
        for layer in (self.classifier, self.compare):
            nn.init.normal_(layer.weight, std=0.001)
        for layer in (self.embed, self.classifier, self.compare):
            nn.init.zeros_(layer.bias)
        if frozen:
            for layer in (self.embed, self.norm, self.compare):
                layer.requires_grad_(False)

    def forward(self, pooled: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(b, K) logits and (b, 128) compared features of pooled (b, D); the neck's feature is not read."""
        embedded = F.relu(self.norm(at_least_float32(self.embed(pooled))))
        return self.classifier(self._dropped(embedded)), self.compare(embedded)

    def _dropped(self, embedded: Tensor) -> Tensor:
        """Dropout, drawn on the CPU from torch's global stream, so that devices agree."""
        if not self.training:
            return embedded
        kept = torch.rand(embedded.shape) >= DROPPED
        return embedded * kept.to(embedded) / (1 - DROPPED)
