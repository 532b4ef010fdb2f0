"""A vision transformer at a size for unit tests, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor

from core.backbones.vit import VisionTransformer

SIZE = (64, 32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=generator(7))


def small(**options: object) -> VisionTransformer:
    """Three narrow blocks, patches of 16 and a grid of 4 x 2."""
    torch.manual_seed(0)
    return VisionTransformer(24, 3, 3, **{"image_size": SIZE, "drop_path": 0.0, **options}).double()
