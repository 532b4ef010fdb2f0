"""HCL at a size for unit tests, and what it trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.config import Clustering, Config
from core.data import Batch, Labels
from core.method import Method
from core.timing import PhaseTimer
from methods.hcl.method import HCL, Settings
from tests.methods.draws import unit

CLUSTERS, DIM, TAU = 5, 16, 0.05


class Data:
    """Stands in for the training data: features, how often they were asked for, and three cameras."""

    def __init__(self, features: Tensor) -> None:
        self._features, self.asked, self.timer = features, 0, PhaseTimer()

    def features(self) -> Tensor:
        self.asked += 1
        return self._features

    def cameras(self, use: str) -> np.ndarray:
        assert use == "sampler"
        return np.arange(len(self._features)) % 3


def hcl(clustering: Clustering | None = None, **settings: object) -> HCL:
    config = Config(settings=Settings(**settings), clustering=clustering or Clustering())  # type: ignore[arg-type]
    return HCL(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def filled(method: Method, features: Tensor, labels: Labels) -> Method:
    method.start_epoch(labels, Data(features), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return method


def batch_of(indices: Tensor, labels: Labels) -> Batch:
    extra = {name: value[indices] for name, value in labels.extra.items()}
    return Batch([], indices, torch.as_tensor(labels.ids)[indices], None, extra, 0)


def splits(base: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3) nested labelings: each finer one cuts clusters in two and drops some images, as a smaller eps does."""
    finer = [base]
    for _ in range(2):
        halves = finer[-1] * 2 + torch.randint(2, base.shape, generator=generator)
        dropped = (finer[-1] < 0) | (torch.rand(base.shape, generator=generator) < 0.1)
        finer.append(torch.where(dropped, -1, halves))
    return torch.stack(finer[::-1], dim=1)


def scene_of(generator: torch.Generator) -> tuple[Tensor, Labels, Tensor, Batch]:
    """60 features with outliers at three granularities, and a batch of clustered anchors, one image of it twice."""
    base = torch.randint(-1, CLUSTERS, (60,), generator=generator)
    base[:CLUSTERS] = torch.arange(CLUSTERS)
    labels = Labels(base.numpy(), {"granularities": splits(base, generator)})
    indices = torch.nonzero(base >= 0).flatten()[:12]
    indices[-1] = indices[0]
    return unit(generator, 60, DIM), labels, unit(generator, len(indices), DIM), batch_of(indices, labels)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
