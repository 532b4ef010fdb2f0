"""Global and stripe-wise embedding heads: docs/methods/selective_contrastive.md, "Heads"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm1d
from core.errors import UserError
from core.precision import at_least_float32


class Projection(nn.Module):
    """Linear -> batch norm -> unit length: (b, C) -> (b, d), float32 or wider.

    ``fan_out``: the weights start at a standard deviation of sqrt(2 / d), as the released code's global head; otherwise
    at torch's default for linear layers, sqrt(1 / (3 C)), as its local ones. Batch norm takes the scale out of the
    output, but a gradient step turns weights the less, the larger they are.
    """

    def __init__(self, channels: int, dim: int, fan_out: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.norm = GroupedBatchNorm1d(dim)
        if fan_out:
            nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
            nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.norm(at_least_float32(self.linear(pooled))), dim=1)


class Heads(nn.Module):
    """Views of an image, each of length 1: ``global`` (b, 1, C) and, with S > 0 stripes, ``local`` (b, S, C / S).

    Side by side the stripes are as wide as the global feature, so that both are compared with one mixture bank.
    """

    def __init__(self, channels: int, stripes: int) -> None:
        super().__init__()
        if stripes and channels % stripes:
            raise UserError(
                f"settings.stripes {stripes} does not divide the {channels} channels of the backbone, so the stripes "
                "side by side would not be as wide as the global feature; choose a divisor"
            )
        self.whole = Projection(channels, channels, fan_out=True)
        self.stripes = nn.ModuleList([Projection(channels, channels // stripes, fan_out=False) for _ in range(stripes)])

    def forward(self, feature_map: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Of a map (b, C, h, w) and its global pooling (b, C)."""
        views = {"global": self.whole(pooled)[:, None]}
        if len(self.stripes):
            means = stripe_means(feature_map, len(self.stripes))
            views["local"] = torch.stack([project(means[:, s]) for s, project in enumerate(self.stripes)], dim=1)
        return views


def stripe_means(feature_map: Tensor, stripes: int) -> Tensor:
    """(b, S, C) means of S stripes of floor(h / S) rows of (b, C, h, w); rows left over at the bottom are not read."""
    height = feature_map.shape[2]
    tall = height // stripes
    if tall == 0:
        raise UserError(
            f"settings.stripes {stripes} cannot be cut from a feature map of {height} rows; set it to {height} or less"
        )
    rows = at_least_float32(feature_map)[:, :, : stripes * tall]
    return rows.unflatten(2, (stripes, tall)).mean((3, 4)).transpose(1, 2)


def standardised(views: Tensor) -> Tensor:
    """(N, V, d) eval-mode views of all images, standardised over them, instead of the heads' batch norm in training.

    Its running statistics are still those of initialisation when the banks are filled: a random projection of
    positive pooled values is all but parallel for any two images, and would not compare with trained features.
    """
    spread = views.std(dim=0, correction=0).clamp(min=torch.finfo(views.dtype).eps)
    return F.normalize((views - views.mean(dim=0)) / spread, dim=2)
