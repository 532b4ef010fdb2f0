"""Adaptive instance and batch normalisation, the alternative to images in other styles that IICS uses.

docs/methods/camera_styles.md, "AIBN".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, cat, nn, tensor

from core.backbones.batchnorm import GroupedBatchNorm, GroupedBatchNorm2d
from core.errors import UserError
from core.precision import at_least_float32

START = 0.1  # share of the batch's statistics before training


class AIBN(GroupedBatchNorm2d):
    """Normalises by (1 - a) x the image's own statistics + a x the batch's, a in [0, 1] learned, one for the layer.

    Image: mean and variance over its pixels, the latter with n - 1. Batch: mean of the means, and mean of variance +
    mean^2 less the squared batch mean; in eval mode the running ones. Batches are parted as in GroupedBatchNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mix = nn.Parameter(tensor(START))

    @classmethod
    def in_place_of(cls, norm: GroupedBatchNorm) -> AIBN:
        """With the weights, running statistics and groups of a batch norm."""
        made = cls(norm.num_features).to(norm.weight)
        made.load_state_dict(norm.state_dict(), strict=False)
        made.groups = norm.groups
        return made

    def forward(self, input: Tensor) -> Tensor:
        features = at_least_float32(input)
        if features[0, 0].numel() == 1:
            raise UserError(
                "aibn: an image has one value per channel here, which has no variance; use larger images or `norm: bn`"
            )
        if not self.training:
            return self._normalised(features, self.running_mean, self.running_var).to(input.dtype)
        chunks = features.chunk(self.groups)
        # The first chunk's statistics enter the running ones, as in GroupedBatchNorm.
        made = [self._by_batch(chunk, place == 0) for place, chunk in enumerate(chunks)]
        return cat(made).to(input.dtype)

    def _by_batch(self, features: Tensor, remember: bool) -> Tensor:
        mean, variance = features.mean(dim=(2, 3)), features.var(dim=(2, 3))
        batch_mean = mean.mean(dim=0)
        batch_variance = (variance + mean.square()).mean(dim=0) - batch_mean.square()
        if remember:
            self.running_mean.lerp_(batch_mean.detach().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(batch_variance.detach().to(self.running_var.dtype), self.momentum)
        return self._normalised(features, batch_mean, batch_variance)

    def _normalised(self, features: Tensor, batch_mean: Tensor, batch_variance: Tensor) -> Tensor:
        share = F.hardtanh(self.mix, 0.0, 1.0)
        mean = (1 - share) * features.mean(dim=(2, 3)) + share * batch_mean
        variance = (1 - share) * features.var(dim=(2, 3)) + share * batch_variance
        scale = self.weight / (variance + self.eps).sqrt()
        return (features - mean[:, :, None, None]) * scale[:, :, None, None] + self.bias[:, None, None]


def adapt(module: nn.Module) -> None:
    """Put an AIBN in the place of every two-dimensional batch norm inside ``module``."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, GroupedBatchNorm2d) and not isinstance(child, AIBN)
    ]
    for parent, name, child in found:
        parent.add_module(name, AIBN.in_place_of(child))
