"""JCL at a size for unit tests, and what it trains on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.backbones.batchnorm import set_bn_groups
from core.backbones.net import seeded_init
from core.config import Backbone, Config
from core.data import Batch, Labels
from core.distributed import ProcessGroup
from methods.jcl.attention import Wam
from methods.jcl.method import JCL, Settings

DIM = 16
NO_WAM = Wam(attention="none", wave=1.0)


class Data:
    """Stands in for the training data: features, and the processes that share it."""

    def __init__(self, features: Tensor, rank: int = 0, size: int = 1) -> None:
        self._features = features
        self.group = ProcessGroup(rank, size, torch.device("cpu"))

    def features(self) -> Tensor:
        return self._features


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jcl(embedder: nn.Module | None = None, bn_groups: int = 1, **settings: object) -> JCL:
    """Without an embedder: JCL without the attention module, for its losses and memories."""
    if embedder is None:
        settings = {"wam": NO_WAM, **settings}
    config = Config(settings=Settings(**settings), backbone=Backbone(bn_groups=bn_groups))  # type: ignore[arg-type]
    with seeded_init(seeded(1)):
        method = JCL(config, embedder or nn.Identity(), 1)  # type: ignore[arg-type]
    set_bn_groups(method, bn_groups)
    return method


def batch_of(targets: Tensor, indices: Tensor | None = None, pixels: Tensor | None = None) -> Batch:
    rows = torch.arange(len(targets)) if indices is None else indices
    return Batch([] if pixels is None else [pixels], rows, targets, None, {}, 0)


def filled(method, features: Tensor, labels: Tensor, **data: int):
    method.start_epoch(Labels(labels.numpy()), Data(features, **data), seeded(0))
    return method
