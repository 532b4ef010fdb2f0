"""Parts of a feature map as averages over its cells: the weights of stripes, and the cut."""

from __future__ import annotations

import torch
from torch import Tensor

from core.precision import at_least_float32


def stripe_weights(parts: int, height: int, width: int) -> Tensor:
    """(P, h, w) averaging weights of P stripes whose borders are those of adaptive average pooling."""
    row, part = torch.arange(height), torch.arange(parts)[:, None]
    first = part * height // parts
    last = -((part + 1) * height // -parts)
    inside = ((row >= first) & (row < last)).float()
    return (inside / inside.sum(dim=1, keepdim=True) / width)[:, :, None].expand(parts, height, width)


def cut(feature_map: Tensor, weights: Tensor) -> Tensor:
    """(b, P, C) part features, float32 or wider, of a map (b, C, h, w) and weights (P, h, w) or (b, P, h, w)."""
    values = at_least_float32(feature_map).flatten(2)
    weights = weights.to(values.dtype).flatten(-2).expand(len(values), -1, -1)
    with torch.autocast(values.device.type, enabled=False):
        return weights @ values.transpose(1, 2)
