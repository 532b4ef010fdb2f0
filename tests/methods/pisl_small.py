"""PISL at a size for unit tests, and what it trains on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.backbones.pooling import AveragePooling
from core.config import Backbone, Clustering, Config
from core.data import Batch, Labels
from core.timing import PhaseTimer
from methods.pisl.diffusion import (
    signal_shares,
)
from methods.pisl.method import PISL, Settings

T, D, CLUSTERS, PARTS = 1000, 16, 6, 3
SHARES = signal_shares(T)
PPLR = {"sdm": "stripes", "score": "jaccard", "scd_weight": 0.0, "camera_weight": 0.0}
RELEASED = {
    "diffusion": "released",
    "score": "released",
    "shared_neck": True,
    "sampling_steps": 1000,
    "localisation_lr_scale": 1.0,
}


class SmallBackbone(nn.Module):
    """Images (b, 3, 64, 32) to a map (b, D, 8, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 8, stride=8)

    def forward(self, images: Tensor, after: object = None) -> Tensor:
        return torch.relu(self.conv(images))


class Data:
    """Stands in for the training data: eval-mode outputs and cameras."""

    def __init__(self, count: int, cameras: np.ndarray | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.outputs = {
            "feature": F.normalize(torch.randn(count, D, generator=generator), dim=1),
            "parts": F.normalize(torch.randn(count, PARTS, D, generator=generator), dim=2),
        }
        self.timer = PhaseTimer()
        self._cameras = cameras

    def __len__(self) -> int:
        return len(self.outputs["feature"])

    def features(self) -> Tensor:
        return self.outputs["feature"]

    def embedded(self, key: str) -> Tensor:
        return self.outputs[key]

    def cameras(self, use: str) -> np.ndarray:
        assert use == "loss"
        assert self._cameras is not None, "cameras were read although nothing declares them"
        return self._cameras


def pisl(bn_groups: int = 1, **settings: object) -> PISL:
    config = Config(
        settings=Settings(**settings),  # type: ignore[arg-type]
        backbone=Backbone(bn_groups=bn_groups),
        clustering=Clustering(k1=5, k2=2, eps=0.9),
    )
    torch.manual_seed(0)
    return PISL(config, Embedder(SmallBackbone(), AveragePooling(), D), capacity=48).double()


def started(method: PISL) -> PISL:
    """The method at the start of an epoch with 48 images, 8 of each cluster, from 4 cameras."""
    data = Data(48, np.arange(48) % 4)
    ids = np.repeat(np.arange(CLUSTERS), 8)
    method.start_epoch(Labels(ids), data, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    return method.train()


def batch_of(size: int = 8, epoch: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randperm(48, generator=generator)[:size]
    return Batch(
        images=[torch.randn(size, 3, 64, 32, generator=generator, dtype=torch.float64)],
        indices=rows,
        targets=rows // 8,
        cameras=rows % 4,
        extra={"consistency": torch.rand(size, PARTS, generator=generator)},
        epoch=epoch,
    )
