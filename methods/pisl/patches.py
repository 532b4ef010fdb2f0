"""Affine windows on a feature map, as a localisation net proposes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.precision import at_least_float32


def stripe_thetas(parts: int) -> Tensor:
    """(P, 2, 3) affine parameters of P horizontal stripes: [1, 0, 0; 0, 1/P, t_p]."""
    theta = torch.zeros(parts, 2, 3)
    theta[:, 0, 0] = 1
    theta[:, 1, 1] = 1 / parts
    theta[:, 1, 2] = (2 * torch.arange(parts) + 1) / parts - 1
    return theta


def affine_weights(theta: Tensor, height: int, width: int) -> Tensor:
    """(b, P, h, w) weights with which a patch's average sees each cell of the map; theta (b, P, 2, 3).

    Affine grid, bilinear sampling (align_corners False, zeros outside) and global average pooling are linear in the
    map: sum_ij weight_ij map_ij is what they give together, without a sampled map per patch, and with a gradient
    that needs no atomic additions.
    """
    with torch.autocast(theta.device.type, enabled=False):
        x = (2 * torch.arange(width, device=theta.device, dtype=theta.dtype) + 1) / width - 1
        y = (2 * torch.arange(height, device=theta.device, dtype=theta.dtype) + 1) / height - 1
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack([grid_x.flatten(), grid_y.flatten(), torch.ones_like(grid_x).flatten()])
        sampled_x, sampled_y = (theta @ grid).unbind(dim=2)
        taps_x = _bilinear_taps(sampled_x, width)
        taps_y = _bilinear_taps(sampled_y, height)
        return torch.einsum("bpsi,bpsj->bpij", taps_y, taps_x) / (height * width)


def _bilinear_taps(place: Tensor, cells: int) -> Tensor:
    """(..., cells) linear interpolation weights of normalised places (...) in [-1, 1]; none outside the map."""
    place = ((place + 1) * cells - 1) / 2
    below = place.detach().floor()
    share = (place - below)[..., None]
    offset = torch.arange(cells, device=place.device) - below[..., None]
    return torch.where(offset == 0, 1 - share, torch.where(offset == 1, share, torch.zeros_like(share)))


class Bounded(torch.autograd.Function):
    """Clamps values to [-1, 1], and drops only the part of the gradient that would lead further out.

    A plain clamp has no gradient outside, so a value that is out for every image would have no way back.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        outwards = ((values >= 1) & (gradient < 0)) | ((values <= -1) & (gradient > 0))  # of a descent step
        return gradient.masked_fill(outwards, 0)


def start_at(layer: nn.Linear, value: Tensor) -> None:
    """Let a layer give ``value`` at the start, whatever its input."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(value.flatten())


class LocalisationNet(nn.Module):
    """theta0 (b, P, 2, 3) of a map (b, C, h, w); at the start ``initial`` (P, 2, 3), whatever the map.

    ``padding`` of its convolution is 0 as released; a map narrower than 3 cells needs 1. ``bounded``: theta0 lies in
    [-1, 1], so that no window is larger than the map; the released net has no bound.
    """

    def __init__(self, dim: int, initial: Tensor, padding: int = 0, bounded: bool = True, hidden: int = 512) -> None:
        super().__init__()
        convolution = nn.Conv2d(dim, 2 * dim, 3, padding=padding)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.features = nn.Sequential(
            convolution, GroupedBatchNorm2d(2 * dim), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.hidden = nn.Linear(2 * dim, hidden)
        self.last = nn.Linear(hidden, initial.numel())
        start_at(self.last, initial)
        self.shape, self.bounded = initial.shape, bounded

    def forward(self, feature_map: Tensor) -> Tensor:
        pooled = at_least_float32(self.features(feature_map)).mean((2, 3))
        with torch.autocast(pooled.device.type, enabled=False):
            theta = self.last(torch.relu(self.hidden(pooled))).view(-1, *self.shape)
        return Bounded.apply(theta) if self.bounded else theta
