"""SpCL at a size for unit tests, and what it trains on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Config
from core.data import Labels
from methods.cluster_contrast.method import ClusterContrast
from methods.spcl.method import Settings, SpCL
from tests.methods.draws import unit

DIM, M = 16, 0.2


class Data:
    """Stands in for the training data; counts how often features are extracted."""

    def __init__(self, features: Tensor, cameras: np.ndarray | None = None) -> None:
        self._features, self._cameras, self.extractions = features, cameras, 0

    def features(self) -> Tensor:
        self.extractions += 1
        return self._features

    def cameras(self, use: str) -> np.ndarray:
        assert use == "sampler"
        assert self._cameras is not None, "cameras were read although the sampler must not use them"
        return self._cameras

    def timer(self, name: str) -> torch.autograd.profiler.record_function:
        return torch.autograd.profiler.record_function(name)


def crowd_and_strangers(generator: torch.Generator) -> Tensor:
    """(200, DIM) float64 features around 20 centres, some groups tight and some loose, and 20 strangers."""
    spread = torch.linspace(0.1, 1.2, 20, dtype=torch.float64).repeat_interleave(9)
    noise = unit(generator, 180, DIM) * spread[:, None]
    crowd = unit(generator, 20, DIM).repeat_interleave(9, dim=0) + noise
    return F.normalize(torch.cat([crowd, unit(generator, 20, DIM)]), dim=1)


def config_of(**settings: object) -> Config:
    config = Config(settings=Settings(**settings))  # type: ignore[arg-type]
    return dataclasses.replace(config, clustering=dataclasses.replace(config.clustering, k1=12, k2=3, eps=0.6))


def spcl(**settings: object) -> SpCL:
    return SpCL(config_of(**settings), torch.nn.Identity(), 1)  # type: ignore[arg-type]


def begin(method: SpCL | ClusterContrast, data: Data, epoch: int = 0) -> Labels:
    labels = method.label(epoch, data)  # type: ignore[arg-type]
    method.start_epoch(labels, data, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return labels
