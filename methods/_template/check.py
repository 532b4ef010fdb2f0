"""NAME: docs/methods/NAME.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import Config
from core.data import Batch
from core.losses import cluster_nll
from core.memory import CentroidMemory
from methods._template.method import ClassName, Settings
from tests.methods.draws import unit

CLUSTERS, DIM = 5, 8


def losses(generator: torch.Generator, **settings: float) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The method's terms on a drawn batch, with the features, entries and targets that they were computed from."""
    method = ClassName(Config(settings=Settings(**settings)), torch.nn.Identity(), 1)
    features = unit(generator, 12, DIM)
    targets = torch.randint(CLUSTERS, (12,), generator=generator)
    method.memory = CentroidMemory(unit(generator, CLUSTERS, DIM), 0.1, "sequential")
    batch = Batch([], torch.arange(12), targets, None, {}, 0)
    return method.loss({"feature": features}, batch), features, method.memory.rows, targets


def test_without_its_pull_it_is_cluster_contrast(generator: torch.Generator) -> None:
    terms, features, entries, targets = losses(generator, pull_weight=0.0)
    assert set(terms) == {"cluster"}
    assert torch.equal(terms["cluster"], cluster_nll(features, entries, targets, 0.05))


def test_the_pull_is_the_mean_distance_to_the_own_entry(generator: torch.Generator) -> None:
    terms, features, entries, targets = losses(generator, pull_weight=2.0)
    by_hand = [1 - float(f @ entries[y]) for f, y in zip(features, targets, strict=True)]
    assert float(terms["pull"]) == pytest.approx(2 * np.mean(by_hand), rel=1e-5)
