"""SDFT (IET Software 2025), our reading: stripe tokens fused into the backbone, tied to the global feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder, make_neck
from core.config import Config
from core.data import Batch, Labels, TrainingData
from core.losses import cluster_nll
from core.memory import CentroidMemory
from core.method import Method
from methods.sdft.losses import (
    StripeMemory,
    cluster_consistency,
    feature_consistency,
    identity_view,
    joint_view,
    stripe_view,
)
from methods.sdft.trunk import make_trunk


@dataclass(frozen=True)
class Settings:
    """Sizes, terms and weights of SDFT, all of them assumptions: docs/methods/sdft.md says on what grounds.

    blocks (F) and stripes (S): fusion blocks, of S stripes each. From two on the part path reaches g, through the
    patches that the next block reads. With F = 0, the four parts below off and ``test_feature`` global it is Cluster
    Contrast. sdr_feature, sdr_cluster: R_feat and R_clu, weighted lambda_r.
    sdcl_identity, sdcl_stripe: l_id and mu_s l_str, weighted lambda_c; ``sdcl`` joint puts both into one softmax
    (mu_s does not enter). update: rule of M_g (hardest optional). test_feature: ``global`` g, or ``concat`` of g and
    f_s / S. A weight of 0 switches its terms off.
    """

    blocks: int = 2
    stripes: int = 4
    sdr_feature: bool = True
    sdr_cluster: bool = True
    sdcl_identity: bool = True
    sdcl_stripe: bool = True
    sdcl: str = "sum"
    lambda_r: float = 0.5
    lambda_c: float = 0.5
    mu_s: float = 0.5
    temperature: float = 0.05
    tau_r: float = 0.05
    momentum: float = 0.2
    update: str = "sequential"
    test_feature: str = "global"

    def __post_init__(self) -> None:
        if self.blocks < 0 or self.stripes < 1:
            raise ValueError(f"settings: blocks {self.blocks} is at least 0, stripes {self.stripes} at least 1")
        if self.sdcl not in ("sum", "joint"):
            raise ValueError(f"settings.sdcl is sum or joint, not '{self.sdcl}'")
        if self.sdcl == "joint" and not (self.sdcl_identity and self.sdcl_stripe):
            raise ValueError("settings.sdcl joint is one softmax of both views: leave sdcl_identity and sdcl_stripe on")
        if self.test_feature not in ("global", "concat"):
            raise ValueError(f"settings.test_feature is global or concat, not '{self.test_feature}'")
        if self.test_feature == "concat" and not self.uses_parts:
            raise ValueError("settings.test_feature concat tests stripes that no loss trains; switch a view of SDCL on")

    @property
    def uses_aggregate(self) -> bool:
        """Whether SDR reads the part aggregation a."""
        return self.lambda_r > 0 and (self.sdr_feature or self.sdr_cluster)

    @property
    def uses_parts(self) -> bool:
        """Whether SDCL reads the stripes f_s."""
        return self.lambda_c > 0 and (self.sdcl_identity or self.sdcl_stripe)


class SDFT(Method):
    """L = L_g + lambda_r SDR + lambda_c SDCL over a class token g, its stripes f_s and their aggregation a."""

    Settings = Settings

    memory: CentroidMemory  # M_g
    aggregates: CentroidMemory  # M_a
    parts: StripeMemory  # M_p

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        settings: Settings = config.settings
        reads_parts = settings.uses_aggregate or settings.uses_parts
        self.trunk = make_trunk(embedder, settings.blocks, settings.stripes, reads_parts)
        self.aggregate_neck = make_neck(embedder.dim) if settings.uses_aggregate else None
        part_necks = settings.stripes if settings.uses_parts else 0
        self.part_necks = nn.ModuleList(make_neck(embedder.dim) for _ in range(part_necks))

    def weights_loaded(self) -> None:
        """New layers start as copies of the loaded ones: B_p and norm of the last blocks', necks of g's neck."""
        self.trunk.adopt(self.embedder)
        for neck in filter(None, (self.aggregate_neck, *self.part_necks)):
            neck.load_state_dict(self.embedder.bnneck.state_dict())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``feature`` g (b, d); ``aggregate`` a (b, d) and ``parts`` f (b, S, d) where a loss reads them."""
        return self.views(batch.images[0])

    def views(self, images: Tensor) -> dict[str, Tensor]:
        """The unit features of ``forward``."""
        whole, parts = self.trunk(self.embedder, images)
        views = {"feature": self.embedder.neck(whole)}
        if self.aggregate_neck is not None and parts is not None:
            views["aggregate"] = self.aggregate_neck(parts.mean(dim=1))
        if len(self.part_necks) and parts is not None:
            necked = [neck(part) for neck, part in zip(self.part_necks, parts.unbind(dim=1), strict=True)]
            views["parts"] = torch.stack(necked, dim=1)
        return {name: F.normalize(view, dim=-1) for name, view in views.items()}

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """As in training; ``feature`` (b, (S + 1) d) is the concatenation where that is tested."""
        views = self.views(images)
        if self.config.settings.test_feature == "concat":
            views["feature"] = concatenate(views["feature"], views["parts"])
        return views

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """The family's clustering, on g alone whatever is tested; the parts share its labels."""
        return self.cluster(self.global_features(data), data)

    def global_features(self, data: TrainingData) -> Tensor:
        """(N, d) g of the training split: what is tested, or its first d columns."""
        return data.features()[:, : self.embedder.dim].contiguous()

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """M_g, M_a and M_p are the normalised cluster means of g, a and each f_s."""
        settings: Settings = self.config.settings
        self.memory = CentroidMemory.of_clusters(
            self.global_features(data), labels.ids, settings.momentum, settings.update
        )
        if settings.uses_aggregate:
            self.aggregates = CentroidMemory.of_clusters(data.embedded("aggregate"), labels.ids, settings.momentum)
        if settings.uses_parts:
            self.parts = StripeMemory(data.embedded("parts"), labels.ids, settings.momentum)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """L_g, and the terms of SDR and SDCL that are switched on, weighted."""
        settings: Settings = self.config.settings
        terms = {"cluster": cluster_nll(output["feature"], self.memory.rows, batch.targets, settings.temperature)}
        if settings.uses_aggregate:
            terms |= self._sdr(output["feature"], output["aggregate"])
        if settings.uses_parts:
            terms |= self._sdcl(output["parts"], batch.targets)
        return terms

    def _sdr(self, whole: Tensor, aggregate: Tensor) -> dict[str, Tensor]:
        """lambda_r (R_feat + R_clu): a agrees with g as a feature and in its posterior over the clusters."""
        settings: Settings = self.config.settings
        terms = {}
        if settings.sdr_feature:
            terms["sdr_feature"] = settings.lambda_r * feature_consistency(aggregate, whole)
        if settings.sdr_cluster:
            p, q = self.memory.logits(whole, settings.tau_r), self.aggregates.logits(aggregate, settings.tau_r)
            terms["sdr_cluster"] = settings.lambda_r * cluster_consistency(p, q)
        return terms

    def _sdcl(self, parts: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """lambda_c / (B S) sum (l_id + mu_s l_str), or both views in one softmax."""
        settings: Settings = self.config.settings
        arguments = (parts, self.parts.bank, targets, settings.temperature)
        if settings.sdcl == "joint":
            return {"sdcl": settings.lambda_c * joint_view(*arguments)}
        terms = {}
        if settings.sdcl_identity:
            terms["sdcl_identity"] = settings.lambda_c * identity_view(*arguments)
        if settings.sdcl_stripe:
            terms["sdcl_stripe"] = settings.lambda_c * settings.mu_s * stripe_view(*arguments)
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Rows <- unit(m row + (1 - m) x) with x = g, a and f_s."""
        self.memory.update(output["feature"], batch.targets)
        if self.config.settings.uses_aggregate:
            self.aggregates.update(output["aggregate"], batch.targets)
        if self.config.settings.uses_parts:
            self.parts.update(output["parts"], batch.targets)


def concatenate(whole: Tensor, parts: Tensor) -> Tensor:
    """(B, (S + 1) d) [g; f_1 / S; ...; f_S / S] of g (B, d) and f (B, S, d), TransReID's test rule; of one length."""
    return torch.cat([whole, parts.flatten(1) / parts.shape[1]], dim=1)
