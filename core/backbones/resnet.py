"""ResNets for re-identification: last stride 1, no classifier, grouped batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.errors import UserError

if TYPE_CHECKING:  # blocks are imported where a network is made: they take longer to load than the rest of the suite
    from core.backbones.blocks import BasicBlock, Bottleneck

STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNet(nn.Module):
    """Stem and four stages of torchvision's residual blocks, with torchvision's parameter names.

    width: channels of the stem (64 in the published networks).
    last_stride: stride of the last stage; the field uses 1, torchvision 2. With 1, an image of
        256 x 128 gives a map of 16 x 8.
    stem_relu: False leaves out the ReLU after the stem, as some official codes do (CAP, AWB).
    dim: channels of the map.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        last_stride: int = 1,
        stem_relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = GroupedBatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True) if stem_relu else nn.Identity()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, (name, depth) in enumerate(zip(STAGES, depths, strict=True)):
            stride = (1, 2, 2, last_stride)[stage]
            setattr(self, name, make_stage(block, channels, width * 2**stage, depth, stride))
            channels = width * 2**stage * block.expansion
        self.dim = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, after: Mapping[str, nn.Module] | None = None, until: str = STAGES[-1]) -> Tensor:
        """The feature map (B, dim, h, w) of images (B, 3, H, W).

        ``after`` maps a stage's name to a module of the caller that its output passes through, for
        methods that put attention or WaveBlock between stages. ``until``: the last stage to run, for
        methods whose branches share the stages below.
        """
        unknown = set(after or {}) - set(STAGES)
        if unknown:
            raise UserError(f"a ResNet has the stages {STAGES}, not {sorted(unknown)}")
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in STAGES:
            features = getattr(self, name)(features)
            if after and name in after:
                features = after[name](features)
            if name == until:
                break
        return features


def with_stages(backbone: nn.Module, wanted: str, instead: str) -> ResNet:
    """``backbone`` for a method that reaches between or into stages, which a ResNet alone has.

    wanted: what the method does there, as a sentence about a ResNet; instead: the settings that do without. Raises
    UserError with both for any other network.
    """
    if not isinstance(backbone, ResNet):
        raise UserError(
            f"{wanted}, and {type(backbone).__name__} has no such stages; choose a resnet with --backbone, or {instead}"
        )
    return backbone


def make_stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    """``depth`` blocks; the first one strides and projects where the shapes differ."""
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), GroupedBatchNorm2d(out))
    blocks = [block(channels, planes, stride, shortcut, norm_layer=GroupedBatchNorm2d)]
    blocks += [block(out, planes, norm_layer=GroupedBatchNorm2d) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def end_without_relu(network: nn.Module) -> None:
    """Let a ResNet's map have negative values, as MAR's and its descendants' do; weights and their names stay."""
    from core.backbones.blocks import LINEAR

    wanted = "settings.last_relu=false leaves out the ReLU that ends the last stage of a ResNet"
    resnet = with_stages(network, wanted, "set settings.last_relu=true")
    *_, last = resnet.get_submodule(STAGES[-1]).children()
    last.__class__ = LINEAR.get(type(last), type(last))


class InstanceBatchNorm(nn.Module):
    """IBN: instance norm on the first half of the channels, batch norm on the rest (1807.09441)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The attribute names are those of the released IBN-Net checkpoints.
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = GroupedBatchNorm2d(channels - channels // 2)

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


def resnet50(last_stride: int = 1, stem_relu: bool = True) -> ResNet:
    """ResNet-50, 2048 channels."""
    from core.backbones.blocks import Bottleneck

    return ResNet(Bottleneck, (3, 4, 6, 3), last_stride=last_stride, stem_relu=stem_relu)


def resnet50_ibn(last_stride: int = 1, stem_relu: bool = True) -> ResNet:
    """IBN-ResNet-50-a: the first norm of each block of stages 1-3 is an InstanceBatchNorm."""
    network = resnet50(last_stride, stem_relu)
    for name in STAGES[:3]:
        for block in getattr(network, name):
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    return network


def resnet18_half(last_stride: int = 1, stem_relu: bool = True) -> ResNet:
    """ResNet-18 at half the width (32 to 256 channels), small enough to train on two CPU cores."""
    from core.backbones.blocks import BasicBlock

    return ResNet(BasicBlock, (2, 2, 2, 2), width=32, last_stride=last_stride, stem_relu=stem_relu)
