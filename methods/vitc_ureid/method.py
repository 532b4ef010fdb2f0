"""ViTC-UReID (Pham, Nguyen, Nguyen, JCC 2025): a vision transformer trained on camera-aware proxies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core import proxy_losses
from core.backbones.net import Embedder
from core.backbones.vit import VisionTransformer
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, TrainingData
from core.errors import UserError
from core.losses import cluster_nll
from core.memory import CentroidMemory, ProxyMemory
from core.method import Method
from core.sampling import proxy_batches

MODES = ("dual", "cap", "o2cap")


@dataclass(frozen=True)
class Settings:
    """Modes and constants, most of them a relative's, for the paper's text is not public: docs/methods/vitc_ureid.md.
    mode: ``dual`` = L_id + lambda_cam L_inter; ``cap`` = L_intra + w_inter L_inter from epoch inter_start on;
        ``o2cap`` = L_inter + the online term. CAP and O2CAP sum over cameras the mean over each camera's images.
    sampling: ``proxies`` draws P proxies x K images (CAP), ``identities`` P clusters x K as Cluster Contrast does.
    outliers: ``drop``, or ``own_cluster``: each becomes a cluster of one image.
    association_weight: share of <f, V_u> in the similarity that the online term chooses by; online_positives: posK.
    sie_cameras: rows of the camera embedding, 0 = none. With it cameras are needed at the test as well.
    """

    mode: str = "dual"
    temperature: float = 0.05  # of the cluster memory
    proxy_temperature: float = 0.07
    momentum: float = 0.2
    update: str = "sequential"  # of the cluster memory; TransReID-SSL's scripts use "hardest"
    lambda_cam: float = 0.5
    w_inter: float = 0.5
    inter_start: float = per_epochs(5)
    negatives: int = 50
    online_positives: int = 3
    association_weight: float = 0.15
    sampling: str = "proxies"
    outliers: str = "drop"
    sie_cameras: int = 0

    def __post_init__(self) -> None:
        choices = {
            "mode": (self.mode, MODES),
            "sampling": (self.sampling, ("proxies", "identities")),
            "outliers": (self.outliers, ("drop", "own_cluster")),
        }
        for name, (chosen, known) in choices.items():
            if chosen not in known:
                raise ValueError(f"settings.{name} is one of {', '.join(known)}, not '{chosen}'")
        if self.negatives < 1 or self.online_positives < 1:
            raise ValueError("settings.negatives and settings.online_positives must be at least 1")
        if self.sie_cameras < 0:
            raise ValueError(f"settings.sie_cameras is a number of cameras or 0, not {self.sie_cameras}")

    @property
    def uses_clusters(self) -> bool:
        """Whether the loss reads the cluster memory."""
        return self.mode == "dual"

    @property
    def uses_proxies(self) -> bool:
        """Whether the loss reads the proxy memory."""
        return self.mode != "dual" or self.lambda_cam > 0


class ViTCUReID(Method):
    """Clusters are split by camera into proxies; an image is contrasted with its cluster and with its proxies."""

    Settings = Settings

    clusters: CentroidMemory
    proxies: ProxyMemory

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        if config.settings.sie_cameras:
            backbone = embedder.backbone
            if not isinstance(backbone, VisionTransformer):
                raise UserError(
                    f"settings.sie_cameras needs a vision transformer, but backbone '{config.backbone.name}' is none; "
                    "set it to 0 or choose a vit backbone"
                )
            backbone.embed_cameras(config.settings.sie_cameras)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras: for the proxies, for the sampler that draws them, and with an embedding of them everywhere."""
        settings: Settings = config.settings
        uses = set()
        if settings.sampling == "proxies" or config.sampler.uses_camera:
            uses.add("sampler")
        if settings.uses_proxies:
            uses.add("loss")
        if settings.sie_cameras:
            uses |= {"loss", "test"}
        return Needs(cameras=frozenset(uses))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The feature; with an embedding of cameras, each image enters with its own."""
        embeds = self.config.settings.sie_cameras and batch.cameras is not None
        cameras = batch.cameras[batch.part] if embeds else None
        return {"feature": self.embedder(batch.images[0], cameras)["feature"]}

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """The feature; ``cameras`` come with the images where ``needs`` declares them for the test."""
        return {"feature": self.embedder(images, cameras)["feature"]}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Clusters of Jaccard distance and DBSCAN; outliers may become clusters of their own."""
        labels = super().label(epoch, data)
        if self.config.settings.outliers == "own_cluster":
            outliers = labels.ids < 0
            labels.ids[outliers] = labels.clusters + np.arange(outliers.sum())
        return labels

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Cluster rows are the mean features of clusters, proxy rows those of their images in one camera."""
        settings: Settings = self.config.settings
        features, ids, momentum = data.features(), labels.ids, settings.momentum
        if settings.uses_clusters:
            self.clusters = CentroidMemory.of_clusters(features, ids, momentum, settings.update)
        if settings.uses_proxies:
            self.proxies = ProxyMemory(features, ids, data.cameras("loss"), momentum)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """P proxies x K images each; or the baseline's batches."""
        if self.config.settings.sampling == "identities":
            return super().batches(labels, data, rng)
        sampler = self.config.sampler
        return proxy_batches(labels.ids, data.cameras("sampler"), sampler.identities, sampler.instances, rng)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """L_id of the mode ``dual``, and the camera terms of each mode."""
        settings: Settings = self.config.settings
        terms = {}
        if settings.uses_clusters:
            rows = self.clusters.rows
            terms["identity"] = cluster_nll(output["feature"], rows, batch.targets, settings.temperature)
        if settings.uses_proxies:
            terms |= self._camera_terms(self.proxies.logits(output["feature"], settings.proxy_temperature), batch)
        return terms

    def _camera_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms over proxies; logits (B, U) are similarities over the proxy temperature."""
        settings: Settings = self.config.settings
        inter = proxy_losses.inter_camera(logits, self.proxies.same_cluster(batch.targets), settings.negatives)
        if settings.mode == "dual":
            return {"inter": settings.lambda_cam * inter.mean()}
        assert batch.cameras is not None, "declared in needs"
        own = self.proxies.of_image[batch.indices]
        per_camera = partial(proxy_losses.sum_of_camera_means, cameras=batch.cameras)
        if settings.mode == "o2cap":
            return {"inter": per_camera(inter), "online": per_camera(self._online(logits, own))}
        intra = proxy_losses.intra_camera(logits, own, self.proxies.same_camera(batch.cameras))
        terms = {"intra": per_camera(intra)}
        if batch.epoch >= settings.inter_start:
            terms["inter"] = settings.w_inter * per_camera(inter)
        return terms

    def _online(self, logits: Tensor, own: Tensor) -> Tensor:
        """(B,) O2CAP's online term for images of the proxies ``own`` (B,)."""
        settings: Settings = self.config.settings
        similarity = logits.detach() * settings.proxy_temperature
        association = proxy_losses.associations(similarity, self.proxies.rows, own, settings.association_weight)
        cameras = self.proxies.cameras
        return proxy_losses.online(logits, association, cameras, settings.online_positives, settings.negatives)

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """V_u <- unit(mu V_u + (1 - mu) f) in batch order, and the cluster rows by their rule."""
        settings: Settings = self.config.settings
        if settings.uses_clusters:
            self.clusters.update(output["feature"], batch.targets)
        if settings.uses_proxies:
            self.proxies.update(output["feature"], self.proxies.of_image[batch.indices])
