"""From images to an embedding: backbone, pooling, BNNeck."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm1d, set_bn_groups
from core.backbones.mobilenet import MobileNetV2, mobilenet_v2
from core.backbones.pooling import POOLINGS
from core.backbones.resnet import ResNet, resnet18_half, resnet50, resnet50_ibn
from core.backbones.vit import (
    VisionTransformer,
    vit_base,
    vit_base_ics,
    vit_small,
    vit_small_ics,
    vit_tiny,
    vit_tiny6_ics,
)
from core.errors import UserError
from core.names import unknown
from core.precision import at_least_float32

Value = TypeVar("Value")

BACKBONES: dict[str, Callable[..., ResNet | MobileNetV2 | VisionTransformer]] = {
    "resnet50": resnet50,
    "resnet50_ibn": resnet50_ibn,
    "resnet18_half": resnet18_half,
    "mobilenet_v2": mobilenet_v2,
    "vit_tiny": vit_tiny,
    "vit_tiny6_ics": vit_tiny6_ics,
    "vit_small": vit_small,
    "vit_small_ics": vit_small_ics,
    "vit_base": vit_base,
    "vit_base_ics": vit_base_ics,
}


class Embedder(nn.Module):
    """Backbone -> pooling (a vision transformer: its class token) -> BNNeck -> unit vector.

    backbone: maps images (B, 3, H, W) to a feature map (B, dim, h, w), and a vision transformer to its class token too.
    dim: length of the embedding.
    """

    def __init__(self, backbone: nn.Module, pooling: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.dim = dim
        self.bnneck = make_neck(self.dim)

    def map(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        after: Mapping[str, nn.Module] | None = None,
    ) -> Tensor:
        """Feature map (B, C, h, w); ``after`` as in the backbone's forward.

        ``cameras`` (B,) is for backbones that embed the camera; convolutional ones ignore it.
        """
        return self.map_and_pool(images, cameras, after)[0]

    def map_and_pool(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        after: Mapping[str, nn.Module] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``map`` and what the neck takes: the pooled map, or the class token of a vision transformer (B, C)."""
        if isinstance(self.backbone, VisionTransformer):
            token, feature_map = self.backbone(images, cameras, after)
            return feature_map, at_least_float32(token)
        feature_map = self.backbone(images, after=after)
        return feature_map, self.pool(feature_map)

    def pool(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w), whole or a part of it, -> (B, C), float32 or wider."""
        return self.pooling(feature_map)

    def neck(self, pooled: Tensor) -> Tensor:
        """Batch-normalised (B, C), float32 or wider; not L2-normalised."""
        return self.bnneck(at_least_float32(pooled))

    def forward(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        after: Mapping[str, nn.Module] | None = None,
    ) -> dict[str, Tensor]:
        """``map`` (B, C, h, w), ``pooled`` (B, C) before the neck, ``feature`` (B, C) after it, unit length."""
        feature_map, pooled = self.map_and_pool(images, cameras, after)
        feature = F.normalize(self.neck(pooled), dim=1)
        return {"map": feature_map, "pooled": pooled, "feature": feature}


def make_neck(dim: int) -> GroupedBatchNorm1d:
    """BNNeck (arXiv 1903.07071): batch norm whose bias stays 0, so that classes surround it."""
    neck = GroupedBatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck


def build(
    name: str,
    pooling: str = "avg",
    bn_groups: int = 1,
    *,
    generator: torch.Generator,
    **options: object,
) -> Embedder:
    """An untrained Embedder on the CPU, its weights drawn from ``generator`` alone.

    ``options`` go to the backbone's constructor, e.g. ``last_stride=2``.
    """
    make_backbone = lookup(BACKBONES, name, "backbone")
    make_pooling = lookup(POOLINGS, pooling, "pooling")
    with seeded_init(generator):
        backbone = make_backbone(**options)
        if isinstance(backbone, VisionTransformer) and pooling != "avg":
            raise UserError(
                f"{name} embeds an image by its class token, so backbone.pooling must be avg, not {pooling}"
            )
        model = Embedder(backbone, make_pooling(), backbone.dim)
    set_bn_groups(model, bn_groups)
    return model


@contextmanager
def seeded_init(generator: torch.Generator) -> Iterator[None]:
    """Modules constructed inside draw their weights from ``generator``; global state is restored.

    Torch's layers initialise themselves from the global CPU generator and accept no other.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the CUDA devices as well, which nothing would restore.
        torch.default_generator.manual_seed(seed)
        yield


def lookup(known: Mapping[str, Value], name: str, kind: str) -> Value:
    """``known[name]``, or a ValueError that names the nearest entry."""
    if name not in known:
        raise UserError(unknown(kind, name, known))
    return known[name]
