"""MixStyle (Zhou et al., ICLR 2021): an image's feature statistics mixed with those of an image of another camera.

docs/methods/styles.md, "Feature statistics".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-6


def mixed_statistics(features: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """(x - mu) / sigma * (l sigma + (1 - l) sigma') + l mu + (1 - l) mu' per image and channel.

    features (b, C, H, W); partners (b,): the image that mu' and sigma' are of; share (b,): l. sigma = sqrt(var + 1e-6)
    with n - 1; all four are constant for the gradient.
    """
    mean = features.mean(dim=(2, 3), keepdim=True).detach()
    deviation = (features.var(dim=(2, 3), keepdim=True) + EPSILON).sqrt().detach()
    own = share.to(features)[:, None, None, None]
    new_deviation = own * deviation + (1 - own) * deviation[partners]
    return (features - mean) / deviation * new_deviation + own * mean + (1 - own) * mean[partners]


class MixStyle(nn.Module):
    """In training, with ``probability`` for each call, mixes every image with a random one of another camera.

    Shares are drawn from Beta(``alpha``, ``alpha``), all from torch's global stream, as dropout's. ``cameras`` (b,) are
    those of the batch and are set before it is forwarded; an image that no other camera stands beside is left as it is.
    """

    cameras: Tensor

    def __init__(self, probability: float = 0.5, alpha: float = 0.1) -> None:
        super().__init__()
        self.probability, self.alpha = probability, alpha

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or float(torch.rand(())) >= self.probability:
            return features
        partners = of_another_camera(self.cameras)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(features),))
        return mixed_statistics(features, partners.to(features.device), share)


def of_another_camera(cameras: Tensor) -> Tensor:
    """(b,) for each image a random one of another camera, or itself where there is none; cameras (b,) on the CPU."""
    chance = torch.rand(len(cameras), len(cameras))
    best, partner = chance.masked_fill(cameras[:, None] == cameras, -1.0).max(dim=1)
    return torch.where(best >= 0, partner, torch.arange(len(cameras)))
