"""The WaveBlock attention module: WaveBlock and an attention block, one after the other.

WaveBlock and both attention blocks follow Attentive WaveBlock (Wang et al., TIP 2022, arXiv 2006.06525):
docs/methods/jcl.md, "WaveBlock", "Attention" and "Order".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d, chunk_sizes
from core.backbones.net import Embedder
from core.backbones.resnet import STAGES, with_stages


@dataclass(frozen=True)
class Wam:
    """Parts of the module and their places. ``order``: ``post`` (attention after WaveBlock) or ``pre`` (before it).

    ``attention``: nonlocal, cbam or none. ``block_rate``: share of the rows that WaveBlock leaves as they are;
    ``wave``: factor of the others, 1.0 for no WaveBlock. ``stages``: the stages whose output passes through a module.
    """

    order: str = "post"
    attention: str = "nonlocal"
    block_rate: float = 0.3
    wave: float = 1.5
    stages: tuple[str, ...] = ("layer2", "layer3")

    def __post_init__(self) -> None:
        if self.order not in ("pre", "post"):
            raise ValueError(f"settings.wam.order is pre or post, not '{self.order}'")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"settings.wam.attention is one of {', '.join(ATTENTIONS)}, not '{self.attention}'")
        if not 0 < self.block_rate <= 1 or self.wave <= 0:
            raise ValueError(
                "settings.wam: block_rate is a share in (0, 1] and wave a factor above 0, "
                f"not {self.block_rate} and {self.wave}"
            )
        if not set(self.stages) <= set(STAGES):
            raise ValueError(f"settings.wam.stages are among {', '.join(STAGES)}, not {list(self.stages)}")

    @property
    def active(self) -> bool:
        """Whether there is anything to insert."""
        return self.attention != "none" or self.wave != 1.0


class WaveBlock(nn.Module):
    """Training only: a random band of rows keeps its values, all others are multiplied by ``wave``.

    The band is as high as ``block_rate`` of the map. One draw serves all channels and all samples of a batch-norm
    group, since in the official training every GPU draws for its own chunk of the batch. Until ``draw_from`` is
    called there is one group, and torch's global stream draws for it.
    """

    def __init__(self, block_rate: float, wave: float) -> None:
        super().__init__()
        self.block_rate, self.wave = block_rate, wave
        self._generator: torch.Generator | None = None
        self._groups, self._own = 1, slice(0, 1)

    def draw_from(self, generator: torch.Generator, groups: int, own: slice) -> None:
        """Draw the bands of all ``groups`` of the full batch from a CPU ``generator`` and use those of ``own``.

        Each process draws for all, so that the bands do not depend on how many processes share the groups.
        """
        self._generator, self._groups, self._own = generator, groups, own

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        batch, _, height, _ = features.shape
        band = round(self.block_rate * height)
        starts = torch.randint(height - band + 1, (self._groups,), generator=self._generator)[self._own]
        sizes = chunk_sizes(batch, len(starts))
        starts = starts[: len(sizes)].repeat_interleave(torch.tensor(sizes))
        ratios = wave_ratios(starts, band, height, self.wave).to(features)
        return features * ratios[:, None, :, None]


def wave_ratios(starts: Tensor, band: int, height: int, wave: float) -> Tensor:
    """(B, height) factor of each row: 1 in rows start..start+band-1 of each sample's start (B,), ``wave`` elsewhere."""
    row = torch.arange(height)
    inside = (row >= starts[:, None]) & (row < starts[:, None] + band)
    return torch.full(inside.shape, wave, dtype=torch.float64).masked_fill(inside, 1.0)


class NonLocal(nn.Module):
    """Dot-product non-local block (arXiv 1711.07971): X + BN(W y), y_i = 1/N sum_j <theta_i, phi_j> g_j.

    N = H W positions, no softmax. The batch norm's scale and bias start at 0, and so the block starts as the identity:
    a pretrained network is what it was until the first step.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.norm = GroupedBatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        theta, phi, g = (conv(features).flatten(2) for conv in (self.theta, self.phi, self.g))
        # theta is divided, not the affinity: a sum over many channels can leave the range of float16.
        affinity = (theta / (height * width)).transpose(1, 2) @ phi
        context = (g @ affinity.transpose(1, 2)).unflatten(2, (height, width))
        return features + self.norm(self.expand(context))


class ResidualCbam(nn.Module):
    """X + CBAM(X): a gate over channels, then one over positions (CBAM: arXiv 1807.06521).

    Unlike NonLocal it does not start as the identity: both gates start near one half.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), GroupedBatchNorm2d(1, momentum=0.01))

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.channel(features.mean(dim=(2, 3))) + self.channel(features.amax(dim=(2, 3)))
        gated = features * pooled.sigmoid()[:, :, None, None]
        summary = torch.stack([gated.amax(dim=1), gated.mean(dim=1)], dim=1)
        return features + gated * self.spatial(summary).sigmoid()


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "nonlocal": NonLocal,
    "cbam": ResidualCbam,
    "none": lambda channels: nn.Identity(),
}


class WaveAttention(nn.Module):
    """WaveBlock and attention over a map of ``channels``, in the order that ``wam`` says."""

    def __init__(self, channels: int, wam: Wam) -> None:
        super().__init__()
        self.wave = WaveBlock(wam.block_rate, wam.wave)
        self.attention = ATTENTIONS[wam.attention](channels)
        self.attention_first = wam.order == "pre"

    def forward(self, features: Tensor) -> Tensor:
        if self.attention_first:
            return self.wave(self.attention(features))
        return self.attention(self.wave(features))


def wave_attention(embedder: Embedder, wam: Wam) -> nn.ModuleDict:
    """A WaveAttention for each of ``wam.stages`` of a ResNet, by stage name; empty where there is nothing to insert."""
    if not wam.active:
        return nn.ModuleDict()
    wanted = "the WaveBlock attention module sits between the stages of a ResNet"
    instead = "set settings.wam.attention=none and settings.wam.wave=1.0, as the row jcl-no_wam does"
    backbone = with_stages(embedder.backbone, wanted, instead)
    # A ResNet doubles its channels from stage to stage.
    channels = {name: backbone.dim >> (len(STAGES) - 1 - place) for place, name in enumerate(STAGES)}
    return nn.ModuleDict({name: WaveAttention(channels[name], wam) for name in wam.stages})
