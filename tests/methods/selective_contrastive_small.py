"""Selective contrastive learning at a size for unit tests, and what it trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones.net import Embedder, seeded_init
from core.backbones.pooling import AveragePooling
from core.config import Config, Sampler
from core.data import Batch, Labels
from methods.selective_contrastive.method import SelectiveContrastive, Settings
from tests.methods.draws import unit

IMAGES, BATCH, DIM, STRIPES, K, NEGATIVES = 40, 8, 16, 4, 3, 12


class Backbone(nn.Module):
    """Stands in for a ResNet: one convolution that halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, DIM, 3, stride=2, padding=1)

    def forward(self, images: Tensor, after: object = None) -> Tensor:
        return self.conv(images).relu()


class Data:
    """Stands in for the training data: eval-mode views, cameras, and nothing else."""

    def __init__(self, views: dict[str, Tensor], cameras: np.ndarray | None = None) -> None:
        self.views, self._cameras = views, cameras

    def __len__(self) -> int:
        return IMAGES

    def embedded(self, key: str) -> Tensor:
        return self.views[key]

    def cameras(self, use: str) -> np.ndarray:
        assert use == "loss"
        assert self._cameras is not None, "cameras were read although the penalty is off"
        return self._cameras


def views_of(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"global": unit(generator, count, 1, DIM), "local": unit(generator, count, STRIPES, DIM // STRIPES)}


def build(sampler: Sampler | None = None, config: Config | None = None, **settings: object) -> SelectiveContrastive:
    """An untrained method in float64; no warm-up and no camera term unless asked for."""
    small = {"stripes": STRIPES, "positives": K, "negatives": NEGATIVES, "warmup": 0, "lambda_c": 0.0}
    if config is None:
        chosen = Settings(**{**small, **settings})  # type: ignore[arg-type]
        config = Config(settings=chosen, sampler=sampler or Sampler())
    with seeded_init(torch.Generator().manual_seed(0)):
        method = SelectiveContrastive(config, Embedder(Backbone(), AveragePooling(), DIM), IMAGES)
    return method.double()


def filled(method: SelectiveContrastive, cameras: np.ndarray | None = None, seed: int = 1) -> SelectiveContrastive:
    """With banks of G, L from the data and, unlike at the start of a run, a mixture of unit rows."""
    data = Data(views_of(IMAGES, seed), cameras)
    method.start_epoch(Labels(np.arange(IMAGES)), data, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    method.banks["mixture"].rows.copy_(unit(torch.Generator().manual_seed(seed + 1), IMAGES, DIM))
    return method


def batch_of(indices: Tensor | None = None, epoch: int = 9) -> Batch:
    indices = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(4))[:BATCH] if indices is None else indices
    return Batch([], indices, indices, None, {}, epoch)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
