"""MobileNetV2 (arXiv 1801.04381) for re-identification: last stride 1, no classifier, grouped batch norm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.errors import UserError


class MobileNetV2(nn.Module):
    """torchvision's layers under torchvision's parameter names, up to the map of 1280 channels.

    last_stride: of the last blocks that stride, those of 160 channels; the field uses 1, torchvision 2. With 1, an
        image of 128 x 64 gives a map of 8 x 4.
    dim: channels of the map.
    """

    def __init__(self, last_stride: int = 1) -> None:
        from torchvision.models import MobileNetV2 as TorchvisionMobileNetV2  # takes seconds to load: see blocks.py

        super().__init__()
        blocks = [  # expansion, channels, how many, stride of the first
            [1, 16, 1, 1],
            [6, 24, 2, 2],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, last_stride],
            [6, 320, 1, 1],
        ]
        whole = TorchvisionMobileNetV2(1, inverted_residual_setting=blocks, norm_layer=GroupedBatchNorm2d)
        self.features = whole.features
        self.dim = whole.last_channel

    def forward(self, images: Tensor, after: Mapping[str, nn.Module] | None = None) -> Tensor:
        """The feature map (B, dim, h, w) of images (B, 3, H, W); there are no stages for ``after`` to follow."""
        if after:
            raise UserError(f"MobileNetV2 has no stages, so no module can follow {sorted(after)}; choose a resnet")
        feature_map: Tensor = self.features(images)
        return feature_map


def mobilenet_v2(last_stride: int = 1) -> MobileNetV2:
    """MobileNetV2 at its full width, 1280 channels."""
    return MobileNetV2(last_stride)
