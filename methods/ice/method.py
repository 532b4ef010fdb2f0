"""ICE (Chen, Lagadec, Bremond, ICCV 2021): similarities within a batch give hard and soft labels for two views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.augment import Blur
from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.losses import similarities, smoothed_cross_entropy
from core.memory import ProxyMemory, cluster_means, unit
from core.method import Method
from core.proxy_losses import inter_camera, sum_of_camera_means
from core.sampling import camera_batches
from core.teacher import Teacher
from methods.ice.losses import hard_instance, soft_consistency


@dataclass(frozen=True)
class Settings:
    """docs/methods/ice.md, "Losses" and "Camera loss"; a weight of 0 leaves its loss out.

    proxy_similarity: ``columns`` divides the proxies by the norms of their columns (released), ``cosine`` leaves them
    unit. few_negatives: where other clusters have fewer than ``negatives`` proxies, the positives fill the list
    (``refilled``, as in CAP's code) or are ``excluded``. unit_centroids: False keeps the plain means of a cluster's
    features (released).
    """

    ema_momentum: float = 0.999
    tau_centroid: float = 0.5
    smoothing: float = 0.1
    unit_centroids: bool = False
    proxy_weight: float = 0.5
    tau_proxy: float = 0.07
    negatives: int = 50
    few_negatives: Literal["refilled", "excluded"] = "refilled"
    proxy_similarity: Literal["columns", "cosine"] = "columns"
    instance_weight: float = 1.0
    tau_instance: float = 0.1
    consistency_weight: float = 10.0
    tau_consistency: float = 0.4
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        Blur(self.blur_probability, self.blur_sigma)
        if not 0 <= self.ema_momentum <= 1:
            raise ValueError(f"settings.ema_momentum lies between 0 and 1, not {self.ema_momentum}")
        if self.negatives < 1:
            raise ValueError(f"settings.negatives must be at least 1, not {self.negatives}")


class ICE(Method):
    """An online network learns from centroids, proxies, and a teacher's features of other views of the batch.

    The teacher follows the online network; it is what labels and is tested.
    """

    Settings = Settings

    centroids: Tensor
    proxies: ProxyMemory
    bank: Tensor

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.teacher = Teacher(embedder)

    def weights_loaded(self) -> None:
        """The teacher starts as the online network."""
        self.teacher.reset(self.embedder)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras: for the sampler, and for the proxies; two strong views and a plain one."""
        uses = {"sampler"} if config.sampler.uses_camera else set()
        if config.settings.proxy_weight:
            uses.add("loss")
        return Needs(cameras=frozenset(uses), views=3)

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """View 1 for the online network; for the teacher views 1 and 2 and the plain images, shuffled."""
        blur = Blur(self.config.settings.blur_probability, self.config.settings.blur_sigma)
        first, second = (pixels.augmented(view, blur, shuffled=True) for view in range(2))
        return [pixels.augmented(0, blur), first, second, pixels.plain(shuffled=True)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the necks give, not normalised; the teacher's rows are those of the shuffled batch.

        Nothing reads what the teacher makes of view 1, but its running statistics take it in, as released.
        """
        online, *taught = batch.images
        with torch.no_grad():
            _, momentum, weak = (_neck(self.teacher.network, view) for view in taught)
        return {"online": _neck(self.embedder, online), "momentum": momentum, "weak": weak}

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """The teacher's feature."""
        return {"feature": self.teacher.network(images)["feature"]}

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Centroids and proxies, fixed for the epoch."""
        settings: Settings = self.config.settings
        features = data.features()
        means = cluster_means(features, labels.ids)
        self.centroids = unit(means) if settings.unit_centroids else means
        if settings.proxy_weight:
            self.fix_proxies(ProxyMemory(features, labels.ids, data.cameras("loss"), momentum=1.0))

    def fix_proxies(self, proxies: ProxyMemory) -> None:
        """Take the epoch's proxies, and the rows that features are compared with."""
        self.proxies = proxies
        released = self.config.settings.proxy_similarity == "columns"
        self.bank = F.normalize(proxies.rows, dim=0) if released else proxies.rows

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """K images of each cluster from as many cameras as it has; without cameras the baseline's batches."""
        sampler = self.config.sampler
        if not sampler.uses_camera:
            return super().batches(labels, data, rng)
        return camera_batches(labels.ids, data.cameras("sampler"), sampler.identities, sampler.instances, rng)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Centroid loss on the raw feature, camera loss, hard instance and soft consistency on the unit one."""
        settings: Settings = self.config.settings
        online = output["online"]
        queries = unit(online)
        keys, weak = (unit(batch.in_order(output[name])) for name in ("momentum", "weak"))
        logits = similarities(online, self.centroids) / settings.tau_centroid
        terms = {"centroid": smoothed_cross_entropy(logits, batch.targets, settings.smoothing)}
        if settings.proxy_weight:
            terms["proxy"] = settings.proxy_weight * self._camera_loss(queries, batch)
        if settings.instance_weight:
            hard = hard_instance(queries, keys, batch.targets, settings.tau_instance)
            terms["instance"] = settings.instance_weight * hard
        if settings.consistency_weight:
            soft = soft_consistency(queries, keys, weak, settings.tau_consistency)
            terms["consistency"] = settings.consistency_weight * soft
        return terms

    def _camera_loss(self, queries: Tensor, batch: Batch) -> Tensor:
        settings: Settings = self.config.settings
        assert batch.cameras is not None, "declared in needs"
        logits = similarities(queries, self.bank) / settings.tau_proxy
        refill = settings.few_negatives == "refilled"
        inter = inter_camera(logits, self.proxies.same_cluster(batch.targets), settings.negatives, refill)
        return sum_of_camera_means(inter, batch.cameras)

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """The teacher's parameters take a small step towards the online network's."""
        self.teacher.follow(self.embedder, self.config.settings.ema_momentum)


def _neck(network: Embedder, images: Tensor) -> Tensor:
    """(b, D) output of the neck, not normalised."""
    return network.neck(network.map_and_pool(images)[1])
