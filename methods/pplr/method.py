"""PPLR (Cho et al., CVPR 2022): three stripes refine the labels of the whole image, and are smoothed by agreement."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.agreement import cross_agreement
from core.config import per_epochs
from core.data import Batch, Labels, TrainingData
from core.part_method import SCORE, PartMethod
from core.parts import cut, stripe_weights

FEW_NEGATIVES = ("excluded", "refilled")


@dataclass(frozen=True)
class Settings:
    """docs/methods/pplr.md, "Settings".

    own_label_share: beta. consistency_from: epoch from which the agreement smooths part labels; before, label smoothing
    does. camera_weight: lambda, 0 for the method without cameras in its loss. few_negatives: where other clusters have
    fewer than ``camera_negatives`` proxies, those of an image's own cluster are ``excluded`` from the negatives, or
    fill their list (``refilled``), as released.
    """

    parts: int = 3
    neighbours: int = 20
    own_label_share: float = 0.5
    consistency_from: float = per_epochs(5)
    label_smoothing: float = 0.1
    camera_weight: float = 0.5
    camera_temperature: float = 0.07
    camera_negatives: int = 50
    few_negatives: str = "refilled"

    def __post_init__(self) -> None:
        if self.few_negatives not in FEW_NEGATIVES:
            raise ValueError(f"settings.few_negatives is one of {', '.join(FEW_NEGATIVES)}, not '{self.few_negatives}'")
        if self.parts < 1 or self.neighbours < 1 or self.camera_negatives < 1:
            raise ValueError("settings.parts, settings.neighbours and settings.camera_negatives must be at least 1")
        if not 0 <= self.own_label_share <= 1:
            raise ValueError(f"settings.own_label_share is a share in [0, 1], not {self.own_label_share}")


class PPLR(PartMethod):
    """L_global + L_parts + L_triplet + camera_weight L_cam over equal stripes; tested is the global feature."""

    Settings = Settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` f_g (b, D), ``parts`` (b, P, D), and their logits over the epoch's C clusters."""
        return self.with_logits(*self._features(batch.images[0]))

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """``feature`` (b, D), tested; ``parts`` (b, P, D), unit length, read by pseudo-labelling alone."""
        return self.extracted(*self._features(images))

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """f_g (b, D) and parts (b, P, D) after their BNNecks, not normalised."""
        feature_map = self.embedder.map(images)
        embedding = self.embedder.neck(self.embedder.pool(feature_map))
        stripes = stripe_weights(self.config.settings.parts, *feature_map.shape[2:]).to(feature_map.device)
        return embedding, self.part_features(cut(feature_map, stripes))

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Clusters of the global feature, and every part's cross agreement (N, P)."""
        labels = super().label(epoch, data)
        with data.timer("consistency"):
            neighbours = self.config.settings.neighbours
            labels.extra[SCORE] = cross_agreement(data.features(), data.embedded("parts"), neighbours)
        return labels

    def refills_negatives(self) -> bool:
        """As ``few_negatives`` says."""
        refilled: bool = self.config.settings.few_negatives == "refilled"
        return refilled
