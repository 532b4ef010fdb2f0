"""The second view of PAUL's image-level loss: rotated, cropped and recoloured."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.data import Pixels

JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}


def second_view(pixels: Pixels, rotation: float, kept_area: tuple[float, float]) -> Tensor:
    """(b, 3, H, W) normalised: view 1 of the run's augmentation with colour jitter, of turned and cropped images.

    rotation: the largest angle, in degrees; kept_area: bounds of the share of the area that the crop keeps. With 0 and
    (1, 1), nothing is resampled.
    """
    recoloured = replace(pixels.config, **JITTER)
    if not rotation and kept_area == (1.0, 1.0):
        return pixels.augmented(1, config=recoloured)
    drawn = torch.rand(len(pixels.rows), 4, generator=pixels.stream("second view"))[pixels.part]
    return pixels.augmented(1, images=turned(pixels.images, drawn, rotation, kept_area), config=recoloured)


def turned(images: Tensor, drawn: Tensor, rotation: float, kept_area: tuple[float, float]) -> Tensor:
    """uint8 (b, 3, H, W): turned about the middle and cropped by ``drawn`` (b, 4) in [0, 1): angle, area, place.

    The crop has the image's proportions and lies within it; what the turn uncovers is black. In float64, so that values
    round to the same pixels on every processor.
    """
    drawn = drawn.to(images.device, torch.float64)
    height, width = images.shape[2:]
    angle = torch.deg2rad((2 * drawn[:, 0] - 1) * rotation)
    side = (kept_area[0] + (kept_area[1] - kept_area[0]) * drawn[:, 1]).sqrt()
    shift = (1 - side)[:, None] * (2 * drawn[:, 2:] - 1)
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    turn = torch.stack([torch.stack([cos, -sin * aspect], 1), torch.stack([sin / aspect, cos], 1)], 1)
    theta = torch.cat([turn * side[:, None, None], turn @ shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images.double(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round().clamp(0, 255).to(torch.uint8)
