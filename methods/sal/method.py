"""SAL (Jiang et al., TIP 2020): agents, one for each person of a labelled source, describe and bridge to the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones.batchnorm import domain, per_domain
from core.backbones.net import Embedder
from core.backbones.resnet import end_without_relu
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, TrainingData
from core.losses import similarities
from core.memory import cluster_means, unit
from core.method import Method
from core.sampling import shuffled_batches
from methods.sal.losses import (
    bridge_contrast,
    camera_consistency,
    camera_statistics,
    log_multilabels,
    reference_agents,
    view_consistency,
)
from methods.sal.memory import SoftLabels, running
from methods.sal.pairs import all_pairs, first_threshold, largest, mined, pair_loss

THRESHOLD_RATE = 0.1  # at which the threshold of agreement follows the batches


@dataclass(frozen=True)
class Settings:
    """docs/methods/sal.md, "Losses". A weight of 0 leaves its loss out.

    scale: of similarities in every softmax over agents. agents: what they start as. source_batch: how source images are
    drawn. reference_weight, margin: of L_ref. consistency: L_con over ``pairs`` of images (MAR) or over the two
    ``views`` of each; mining_share: of the pairs; pairs_from: epoch in which the pair loss begins. bridge_weight,
    tau_bridge: of L_self. camera_weight: of L_cam, which reads cameras; camera_rate: at which its centres follow the
    batches. domain_norm: batch norms per domain. neck: whether features come after the BNNeck; last_relu: whether the
    map comes after the last block's ReLU.
    """

    scale: float = 30.0
    agents: Literal["source_means", "random"] = "source_means"
    source_batch: Literal["random", "people"] = "random"
    reference_weight: float = 0.2
    margin: float = 1.0
    consistency_weight: float = 0.02
    consistency: Literal["pairs", "views"] = "pairs"
    mining_share: float = 0.005
    pairs_from: float = per_epochs(1)
    bridge_weight: float = 0.1
    tau_bridge: float = 0.1
    camera_weight: float = 0.0
    camera_rate: float = 0.0128
    domain_norm: bool = False
    neck: bool = True
    last_relu: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "margin"):
            if not getattr(self, name) > 0:
                raise ValueError(f"settings.{name} must be above 0, not {getattr(self, name)}")
        for name in ("reference_weight", "consistency_weight", "bridge_weight", "camera_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"settings.{name} must not be negative, but is {getattr(self, name)}")
        if not 0 < self.mining_share <= 1:
            raise ValueError(f"settings.mining_share is a share of pairs in (0, 1], not {self.mining_share}")

    @property
    def views(self) -> int:
        """Views of a target image that a loss reads."""
        two = self.bridge_weight or (self.consistency_weight and self.consistency == "views")
        return 2 if two else int(bool(self.reference_weight or self.consistency_weight or self.camera_weight))


@dataclass
class Target:
    """What is kept of the target between batches; complete before the first one.

    centres: the running mean and standard deviation of log q over cameras (K,), or empty without the camera loss.
    """

    labels: SoftLabels
    threshold: Tensor
    centres: tuple[Tensor, ...]


@dataclass
class Visit:
    """What a batch changes of ``Target``: read by its own losses, kept after its step."""

    labels: Tensor | None = None
    threshold: Tensor | None = None
    centres: tuple[Tensor, ...] | None = None


class SAL(Method):
    """L = L_sup + reference L_ref + consistency L_con + bridge L_self + camera L_cam."""

    Settings = Settings

    target: Target | None = None

    def __init__(self, config: Config, embedder: Embedder, capacity: int, source_identities: int) -> None:
        super().__init__(config, embedder, capacity, source_identities)
        self.agents = nn.Parameter(torch.empty(source_identities, embedder.dim))
        nn.init.normal_(self.agents)
        self.visit = Visit()
        if not config.settings.neck:
            embedder.bnneck.requires_grad_(False)  # DDP insists on a use of what learns
        if not config.settings.last_relu:
            end_without_relu(embedder.backbone)

    def weights_loaded(self) -> None:
        """Batch norms of both domains start from the initial weights."""
        if self.config.settings.domain_norm:
            per_domain(self.embedder)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Source labels always; cameras where the camera loss is on."""
        cameras = frozenset({"loss"}) if config.settings.camera_weight else frozenset()
        return Needs(cameras=cameras, views=max(1, config.settings.views), source=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``source_logits`` (b_s, K) and ``source_feature`` (b_s, D); ``feature_0``, ``feature_1`` (b, D) of the views.

        Only the views that a loss reads go through the network: without any, this is training on the source.
        """
        assert batch.source is not None, "declared in needs"
        with domain(self.embedder, "source"):
            source = self._feature(batch.source.images[0])
        output = {"source_feature": source, "source_logits": self.source_logits(source)}
        views = batch.images[: self.config.settings.views]
        return output | {f"feature_{number}": self._feature(images) for number, images in enumerate(views)}

    def source_logits(self, features: Tensor) -> Tensor:
        """(b, K) scale <f, a_k>, the only place where agents learn."""
        return self.config.settings.scale * similarities(features, unit(self.agents))

    def _feature(self, images: Tensor) -> Tensor:
        """(b, D), unit length."""
        _, pooled = self.embedder.map_and_pool(images)
        return unit(self.embedder.neck(pooled) if self.config.settings.neck else pooled)

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """The feature, by the target's batch norms."""
        return {"feature": self._feature(images)}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every image by itself: nothing is clustered. Notes where the threshold of agreement stands."""
        notes = {} if self.target is None else {"agreement_threshold": float(self.target.threshold)}
        return Labels(np.arange(len(data)), notes=notes)

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Before the first epoch: agents from the source's features, threshold and centres from all target images."""
        if self.target is not None:
            return
        settings: Settings = self.config.settings
        source = data.source
        assert source is not None, "declared in needs"
        if settings.agents == "source_means":
            features = source.extract(lambda pixels, rows: self.embed(source.prepare(pixels)))["feature"]
            self.agents.copy_(unit(cluster_means(features, source.identities)))
        cameras = data.cameras("loss") if settings.camera_weight else None
        self.begin(data.features(), cameras)

    def begin(self, features: Tensor, cameras: np.ndarray | None) -> None:
        """Threshold and centres from the features (N, D) of all target images, none of which was visited."""
        settings: Settings = self.config.settings
        log_q = log_multilabels(features, unit(self.agents.detach()), settings.scale)
        centres: tuple[Tensor, ...] = ()
        if cameras is not None:
            found = camera_statistics(log_q, torch.as_tensor(cameras, device=log_q.device))
            centres = tuple(statistic.mean(dim=0) for statistic in found)
        threshold = first_threshold(log_q.exp(), settings.mining_share)
        self.target = Target(SoftLabels.empty(len(features), len(self.agents), log_q), threshold, centres)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Shuffled target images; an incomplete last batch is dropped."""
        return self._shuffled(len(data), rng)

    def source_batches(self, source: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Shuffled source images, or P people x K images; as many as of the target."""
        by_people = self.config.settings.source_batch == "people"
        return super().source_batches(source, rng) if by_people else self._shuffled(len(source), rng)

    def _shuffled(self, images: int, rng: np.random.Generator) -> Iterable[np.ndarray]:
        size = self.config.sampler.batch
        return (rows for rows in shuffled_batches(images, size, rng) if len(rows) == size)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """All terms by the agents as they are before the step."""
        settings: Settings = self.config.settings
        assert batch.source is not None, "declared in needs"
        terms = {"source": F.cross_entropy(output["source_logits"], batch.source.targets)}
        self.visit = Visit()
        agents = unit(self.agents.detach())
        views = [output[f"feature_{number}"] for number in range(settings.views)]
        log_q = [log_multilabels(view, agents, settings.scale) for view in views]
        if settings.reference_weight:
            reference = reference_agents(
                output["source_feature"], batch.source.targets, views[0], agents, settings.margin
            )
            terms["reference"] = settings.reference_weight * reference
        if settings.consistency_weight:
            by_pairs = settings.consistency == "pairs"
            consistency = self._pairs(views[0], log_q[0], batch) if by_pairs else view_consistency(log_q[0], log_q[1])
            terms["consistency"] = settings.consistency_weight * consistency
        if settings.bridge_weight:
            bridge = bridge_contrast((views[0], views[1]), (log_q[0], log_q[1]), agents, settings.tau_bridge)
            terms["bridge"] = settings.bridge_weight * bridge
        if settings.camera_weight:
            terms["camera"] = settings.camera_weight * self._cameras(log_q[0], batch)
        return terms

    def _pairs(self, features: Tensor, log_q: Tensor, batch: Batch) -> Tensor:
        """MAR's pair loss by the labels after this visit and the threshold before it; 0 until ``pairs_from``."""
        settings: Settings = self.config.settings
        assert self.target is not None, "start_epoch comes first"
        count = mined(settings.mining_share, len(features))
        if batch.epoch < settings.pairs_from or not count:
            return features.new_zeros(())
        labels = self.target.labels.moved(batch.indices, log_q.exp())
        pairs = all_pairs(features, labels)
        threshold = running(self.target.threshold, largest(pairs.agreement, count), THRESHOLD_RATE)
        self.visit = replace(self.visit, labels=labels, threshold=threshold)
        return pair_loss(pairs, self.target.threshold, count)

    def _cameras(self, log_q: Tensor, batch: Batch) -> Tensor:
        """MAR's cross-view consistency, by centres that this batch has moved."""
        assert self.target is not None, "start_epoch comes first"
        assert batch.cameras is not None, "declared in needs"
        found = camera_statistics(log_q, batch.cameras)
        centres = self.target.centres
        if len(found[0]):
            rate = self.config.settings.camera_rate
            means = (statistic.detach().mean(dim=0) for statistic in found)
            centres = tuple(running(old, new, rate) for old, new in zip(centres, means, strict=True))
        self.visit = replace(self.visit, centres=centres)
        return camera_consistency(found, (centres[0], centres[1]))

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Keep what this batch's losses have read already."""
        assert self.target is not None, "start_epoch comes first"
        visit, self.visit = self.visit, Visit()
        if visit.labels is not None and visit.threshold is not None:
            self.target.labels.store(batch.indices, visit.labels)
            self.target.threshold = visit.threshold
        if visit.centres is not None:
            self.target.centres = visit.centres

    def param_groups(self) -> list[dict[str, Any]]:
        """Batch-norm parameters do not decay."""
        norms = {id(p) for layer in self.modules() if isinstance(layer, _BatchNorm) for p in layer.parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [parameter for parameter in trained if id(parameter) not in norms]},
            {"params": [parameter for parameter in trained if id(parameter) in norms], "weight_decay": 0.0},
        ]

    def memory_state(self) -> dict[str, Any]:
        """Labels, threshold and centres outlive the epoch."""
        if self.target is None:
            return {}
        labels = self.target.labels
        return {
            "labels": labels.rows.clone(),
            "seen": labels.seen.clone(),
            "threshold": self.target.threshold.clone(),
            "centres": [centre.clone() for centre in self.target.centres],
        }

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """As saved; a run that has not begun has none."""
        if state:
            labels = SoftLabels(state["labels"], state["seen"])
            self.target = Target(labels, state["threshold"], tuple(state["centres"]))
