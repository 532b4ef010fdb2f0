"""Clustered images of several cameras, and a batch of them: what methods with camera proxies are tested on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from core.data import Batch, Labels
from core.method import Method
from tests.methods.draws import unit

IMAGES, CLUSTERS, CAMERAS, DIM, TAU, MU = 80, 7, 4, 16, 0.07, 0.2


class Data:
    """Stands in for the training data: features, and cameras for declared uses."""

    def __init__(self, features: Tensor, cameras: Tensor, uses: frozenset[str]) -> None:
        self._features, self._cameras, self._uses = features, cameras, uses

    def features(self) -> Tensor:
        return self._features

    def cameras(self, use: str) -> np.ndarray:
        assert use in self._uses, f"cameras are read for the {use}, which is not declared"
        return self._cameras.numpy()

    def __len__(self) -> int:
        return len(self._features)


@dataclasses.dataclass
class Scene:
    """Clustered images with outliers, and a batch of some of them with fresh features."""

    features: Tensor
    labels: Tensor
    cameras: Tensor
    rows: Tensor
    queries: Tensor

    def batch(self, epoch: int = 9) -> Batch:
        return Batch([], self.rows, self.labels[self.rows], self.cameras[self.rows], {}, epoch)


def make_scene() -> Scene:
    """80 images; outliers are among them, cluster 2 has one camera, and three images of the batch repeat."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, CLUSTERS, (IMAGES,), generator=generator)
    labels[:CLUSTERS] = torch.arange(CLUSTERS)
    cameras = torch.randint(0, CAMERAS, (IMAGES,), generator=generator)
    cameras[labels == 2] = 1  # a cluster of one camera
    inside = torch.nonzero(labels >= 0).flatten()
    rows = inside[torch.randperm(len(inside), generator=generator)[:14]]
    rows = torch.cat([rows, rows[:3]])
    return Scene(unit(generator, IMAGES, DIM), labels, cameras, rows, unit(generator, len(rows), DIM))


def filled(made: Method, scene: Scene):  # type: ignore[no-untyped-def]
    data = Data(scene.features, scene.cameras, made.needs(made.config).cameras)
    made.start_epoch(Labels(scene.labels.numpy()), data, torch.Generator())  # type: ignore[arg-type]
    return made
