"""The whole body and its parts, each seen by a branch of its own: docs/methods/ppan.md, "Branches"."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder, make_neck
from core.backbones.resnet import with_stages
from core.parts import cut, stripe_weights
from core.precision import at_least_float32


class Branches(nn.Module):
    """What stands above the shared layers, for branch 0 (the whole body) and R parts from top to bottom.

    stages: with ``own_stage``, copies of a ResNet's last stage for the parts; the whole body keeps the embedder's.
    necks: of every branch but, where the embedding has the network's own length, the whole body's, which is the
        embedder's neck. projections: to ``embedding`` values before the neck; empty where that is None.
    """

    def __init__(
        self, embedder: Embedder, parts: int, own_stage: bool, part_images: bool, embedding: int | None
    ) -> None:
        super().__init__()
        self.parts, self.part_images = parts, part_images
        self.dim = embedding or embedder.dim
        self.stages = nn.ModuleList()
        if own_stage:
            wanted = "settings.branches=layer4 copies the last stage of a ResNet"
            last = with_stages(embedder.backbone, wanted, "set settings.branches=heads").get_submodule("layer4")
            self.stages.extend(copy.deepcopy(last) for _ in range(parts))
        self.own_stage = own_stage
        if embedding:
            embedder.bnneck.requires_grad_(False)  # nothing passes through it
        projected = range(1 + parts) if embedding else ()
        self.projections = nn.ModuleList(nn.Linear(embedder.dim, self.dim, bias=False) for _ in projected)
        self.necks = nn.ModuleList(make_neck(self.dim) for _ in (projected or range(parts)))

    def reset(self, embedder: Embedder) -> None:
        """Stages and necks of the parts start as the embedder's; a projected embedding has a neck of its own."""
        for stage in self.stages:
            stage.load_state_dict(embedder.backbone.get_submodule("layer4").state_dict())
        if not self.projections:
            for neck in self.necks:
                neck.load_state_dict(embedder.bnneck.state_dict())

    def forward(self, embedder: Embedder, images: Tensor) -> Tensor:
        """(b, 1 + R, D) unit features of images (b, 3, H, W)."""
        if self.part_images:
            seen = [images, *part_images(images, self.parts)]
            pooled = [self._pooled(embedder, branch, image) for branch, image in enumerate(seen)]
        else:
            pooled = self._pooled_stripes(embedder, images)
        return torch.stack([self._embedded(embedder, branch, values) for branch, values in enumerate(pooled)], dim=1)

    def _pooled(self, embedder: Embedder, branch: int, images: Tensor) -> Tensor:
        """(b, C) of images that this branch sees whole."""
        if not self.own_stage:
            return embedder.map_and_pool(images)[1]
        return embedder.pool(self._last_stages(embedder)[branch](shared_map(embedder, images)))

    def _pooled_stripes(self, embedder: Embedder, images: Tensor) -> list[Tensor]:
        """(b, C) of the whole image, and of the stripe of its map, or of the branch's own map, that is each part's."""
        if self.own_stage:
            shared = shared_map(embedder, images)
            whole, *maps = (stage(shared) for stage in self._last_stages(embedder))
            pooled = embedder.pool(whole)
        else:
            whole, pooled = embedder.map_and_pool(images)
            maps = [whole] * self.parts
        weights = stripe_weights(self.parts, *whole.shape[-2:]).to(whole.device)
        return [pooled, *(cut(found, weights[part : part + 1])[:, 0] for part, found in enumerate(maps))]

    def _last_stages(self, embedder: Embedder) -> list[nn.Module]:
        return [embedder.backbone.get_submodule("layer4"), *self.stages]

    def _embedded(self, embedder: Embedder, branch: int, pooled: Tensor) -> Tensor:
        if self.projections:
            return F.normalize(self.necks[branch](at_least_float32(self.projections[branch](pooled))), dim=1)
        neck = self.necks[branch - 1] if branch else embedder.bnneck
        return F.normalize(neck(at_least_float32(pooled)), dim=1)


def shared_map(embedder: Embedder, images: Tensor) -> Tensor:
    """What a ResNet makes of images before its last stage."""
    found: Tensor = embedder.backbone(images, until="layer3")
    return found


def part_images(images: Tensor, parts: int) -> list[Tensor]:
    """Horizontal slices of images (b, 3, H, W), top first, each resized to half the height: (b, 3, H/2, W)."""
    size = (max(1, images.shape[2] // 2), images.shape[3])
    return [F.interpolate(part, size, mode="bilinear", align_corners=False) for part in slices(images, parts)]


def slices(images: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Horizontal slices that tile the images, none more than a row higher than another."""
    return torch.tensor_split(images, parts, dim=2) if parts else ()
