"""The suite's two kinds of network, narrow enough that a replay takes about a second."""

from __future__ import annotations

from torchvision.models.resnet import BasicBlock

from core.backbones.resnet import ResNet
from core.backbones.vit import VisionTransformer


def cnn(**options: int) -> ResNet:
    """A ResNet with one block per stage, 8 to 64 channels; what ``options`` leave out is the suite's default."""
    return ResNet(BasicBlock, (1, 1, 1, 1), width=8, **options)


def vit() -> VisionTransformer:
    """Three blocks of width 48 behind the ICS stem; overlapping patches; drop path as in the last block of ViT-S."""
    return VisionTransformer(48, 3, 3, image_size=(48, 24), patch=24, stride=8, stem=8, drop_path=0.3)


NETWORKS = {"replay_cnn": cnn, "replay_vit": vit}
