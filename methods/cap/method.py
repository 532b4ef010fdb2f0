"""CAP (Wang et al., AAAI 2021): clusters are split by camera into proxies, contrasted within and across cameras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor, nn

from core import proxy_losses
from core.backbones.net import Embedder
from core.backbones.resnet import ResNet
from core.config import Config, per_epochs
from core.data import Batch, Labels, TrainingData
from core.proxy_method import ProxyMethod, require_sampling

FEW_NEGATIVES = ("excluded", "refilled")


@dataclass(frozen=True)
class Settings:
    """docs/methods/cap.md, "Settings".

    few_negatives: where other clusters have fewer than ``negatives`` proxies, the positives are ``excluded`` from the
        negatives, or fill their list (``refilled``), as released.
    stem_relu: the ReLU after a ResNet's first layer, which the released network lacks.
    by_camera: False makes a proxy of every cluster. sampling: ``proxies`` P proxies x K images, ``identities`` P
        clusters x K as Cluster Contrast.
    """

    temperature: float = 0.07
    momentum: float = 0.2
    w_inter: float = 0.5
    inter_start: float = per_epochs(5)
    negatives: int = 50
    few_negatives: str = "refilled"
    stem_relu: bool = False
    by_camera: bool = True
    sampling: str = "proxies"

    def __post_init__(self) -> None:
        require_sampling(self.sampling)
        if self.few_negatives not in FEW_NEGATIVES:
            raise ValueError(f"settings.few_negatives is one of {', '.join(FEW_NEGATIVES)}, not '{self.few_negatives}'")
        if self.negatives < 1:
            raise ValueError(f"settings.negatives must be at least 1, not {self.negatives}")


class CAP(ProxyMethod):
    """sum_c mean_{i in c} ( L_intra(i) + w_inter L_inter(i) ), the second term from epoch inter_start on."""

    Settings = Settings

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        backbone = getattr(embedder, "backbone", None)
        if isinstance(backbone, ResNet) and not config.settings.stem_relu:
            backbone.relu = nn.Identity()

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """As many batches of proxies as the clustered images fill, in one pass over the proxies or more.

        The batches of clusters are the baseline's.
        """
        if self.config.settings.sampling == "identities":
            return super().batches(labels, data, rng)
        clustered = int((labels.ids >= 0).sum())
        return islice(self._passes(labels, data, rng), max(1, clustered // self.config.sampler.batch))

    def _passes(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield from super().batches(labels, data, rng)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The intra-camera term, and from its epoch on the inter-camera term."""
        settings: Settings = self.config.settings
        logits, own = self.logits(output), self.own_proxies(batch)
        same_camera = self.proxies.same_camera(self.proxies.cameras[own])
        terms = {"intra": self.per_camera(proxy_losses.intra_camera(logits, own, same_camera), batch)}
        if batch.epoch >= settings.inter_start and settings.w_inter > 0:
            same_cluster = self.proxies.same_cluster(batch.targets)
            refill = settings.few_negatives == "refilled"
            inter = proxy_losses.inter_camera(logits, same_cluster, settings.negatives, refill)
            terms["inter"] = settings.w_inter * self.per_camera(inter, batch)
        return terms
