"""What PPLR and its descendants share: parts beside the whole image, each with a BNNeck and a classifier of its own.

Equations: docs/methods/pplr.md, "Losses".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder, make_neck
from core.config import Config
from core.data import Batch, Labels, Needs, TrainingData
from core.errors import UserError
from core.losses import similarities, softmax_triplet
from core.memory import ProxyMemory, cluster_centroids
from core.method import Method
from core.part_losses import (
    consistency_smoothed_cross_entropy,
    refined_cross_entropy,
    smoothed_part_cross_entropy,
)
from core.proxy_losses import camera_contrast

SCORE = "consistency"  # the extra of the labels that holds every part's score (N, P)


class PartMethod(Method):
    """L_global + L_parts + L_triplet + camera_weight L_cam; a method says where the parts are and scores them.

    Its settings hold parts, own_label_share, consistency_from, label_smoothing, camera_weight, camera_temperature and
    camera_negatives; its ``label`` puts the scores in [0, 1] into the labels' extra ``consistency``.
    """

    clusters: int
    cameras: ProxyMemory
    part_cameras: list[ProxyMemory]

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        parts = config.settings.parts
        self.part_necks = nn.ModuleList(make_neck(embedder.dim) for _ in range(parts))
        # One cluster has, in all but freak cases, min_samples images or more. Entry 0 is the global classifier.
        rows = max(2, capacity // config.clustering.min_samples)
        self.classifiers = nn.Parameter(torch.zeros(1 + parts, rows, embedder.dim))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras in the sampler and, with the camera loss, in the loss."""
        uses = {"sampler": config.sampler.uses_camera, "loss": config.settings.camera_weight > 0}
        return Needs(cameras=frozenset(use for use, wanted in uses.items() if wanted))

    def with_logits(self, embedding: Tensor, parts: Tensor) -> dict[str, Tensor]:
        """Both, ``logits`` (b, C) and ``part_logits`` (b, P, C) over the epoch's C clusters.

        embedding (b, D) and parts (b, P, D) are after their BNNecks, not normalised.
        """
        spaces = [embedding, *parts.unbind(dim=1)]
        logits, *part_logits = (
            similarities(features, rows[: self.clusters])
            for features, rows in zip(spaces, self.classifiers, strict=True)
        )
        return {
            "embedding": embedding,
            "parts": parts,
            "logits": logits,
            "part_logits": torch.stack(part_logits, dim=1),
        }

    def part_features(self, pooled: Tensor) -> Tensor:
        """(b, P, D) pooled parts (b, P, D) after each part's own BNNeck."""
        return torch.stack(
            [neck(part) for neck, part in zip(self.part_necks, pooled.unbind(dim=1), strict=True)], dim=1
        )

    def extracted(self, embedding: Tensor, parts: Tensor) -> dict[str, Tensor]:
        """``feature`` (b, D), tested; ``parts`` (b, P, D), unit length, read by pseudo-labelling alone."""
        return {"feature": F.normalize(embedding, dim=1), "parts": F.normalize(parts, dim=2)}

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Classifier rows become the clusters' mean features; camera proxies are set, and stay for the epoch."""
        self.clusters = labels.clusters
        rows = self.classifiers.shape[1]
        if self.clusters > rows:
            raise UserError(
                f"{self.clusters} clusters, but the classifier has {rows} rows (training images / "
                "clustering.min_samples); lower clustering.min_samples if clusters this small are wanted"
            )
        spaces = [data.features(), *data.embedded("parts").unbind(dim=1)]
        for rows_of_space, features in zip(self.classifiers.detach(), spaces, strict=True):
            rows_of_space[: self.clusters] = cluster_centroids(features, labels.ids)
        if self.config.settings.camera_weight > 0:
            cameras = data.cameras("loss")
            self.cameras, *self.part_cameras = (ProxyMemory(f, labels.ids, cameras, momentum=1.0) for f in spaces)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The refined global and the smoothed part losses, the triplet, and the camera term where it is on."""
        settings = self.config.settings
        targets, scores = batch.targets, batch.extra[SCORE].to(output["part_logits"].dtype)
        logits, part_logits = output["logits"], output["part_logits"]
        if batch.epoch >= settings.consistency_from:
            part = consistency_smoothed_cross_entropy(part_logits, targets, scores)
        else:
            part = smoothed_part_cross_entropy(part_logits, targets, settings.label_smoothing)
        terms = {
            "global": refined_cross_entropy(logits, part_logits, targets, scores, settings.own_label_share),
            "part": part,
            "triplet": softmax_triplet(output["embedding"], targets),
        }
        if settings.camera_weight > 0:
            terms["camera"] = settings.camera_weight * self._camera_loss(output, batch)
        return terms

    def refills_negatives(self) -> bool:
        """Whether the camera term's list of negatives is filled up as ``core/proxy_losses.py`` says."""
        return False

    def _camera_loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """That of the global feature plus the mean over the parts."""
        assert batch.cameras is not None
        settings = self.config.settings
        same_cluster = self.cameras.same_cluster(batch.targets)
        same_camera = self.cameras.same_camera(batch.cameras)
        spaces = [(output["embedding"], self.cameras)]
        spaces += zip(output["parts"].unbind(dim=1), self.part_cameras, strict=True)
        whole, *parts = (
            camera_contrast(
                features,
                same_cluster,
                same_camera,
                memory.rows,
                settings.camera_temperature,
                settings.camera_negatives,
                self.refills_negatives(),
            )
            for features, memory in spaces
        )
        return whole + torch.stack(parts).mean()
