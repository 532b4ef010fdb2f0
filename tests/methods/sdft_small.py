"""SDFT at a size for unit tests, and what it trains on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import Embedder, seeded_init
from core.backbones.pooling import AveragePooling
from core.backbones.vit import VisionTransformer
from core.config import Config
from methods.sdft.method import SDFT, Settings
from tests.methods.draws import normal

STRIPES, DIM = 4, 16


def sdft(embedder: Embedder, **settings: object) -> SDFT:
    with seeded_init(torch.Generator().manual_seed(1)):
        return SDFT(Config(settings=Settings(**settings)), embedder, 1)  # type: ignore[arg-type]


class Convolution(nn.Module):
    """Stands in for a ResNet: images of 32 x 16 give a map of 4 x 2."""

    dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.dim, 8, stride=8)
        self.norm = GroupedBatchNorm2d(self.dim)

    def forward(self, images: Tensor, after: None = None) -> Tensor:
        return self.norm(self.conv(images)).relu()


def small_embedder(kind: str) -> Embedder:
    """A convolutional backbone, or a vision transformer; both have 4 x 2 patches."""
    with seeded_init(torch.Generator().manual_seed(0)):
        vit = VisionTransformer(Convolution.dim, 2, 3, image_size=(32, 16), patch=8, stride=8, drop_path=0.3)
        backbone = Convolution() if kind == "map" else vit
        return Embedder(backbone, AveragePooling(), Convolution.dim).double()


def pictures(generator: torch.Generator, count: int = 8, height: int = 32, width: int = 16) -> Tensor:
    return normal(generator, count, 3, height, width)
