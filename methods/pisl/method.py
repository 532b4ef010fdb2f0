"""PISL (Tao et al., TIP 2024): parts placed by a diffusion over affine parameters, labels refined by how far each
part's neighbourhood agrees with the whole image's. It extends PPLR (Cho et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config, per_epochs
from core.data import Batch, Labels, TrainingData
from core.part_method import SCORE, PartMethod
from core.parts import cut
from methods.pisl.consistency import consistency_scores
from methods.pisl.diffusion import Denoiser, image_keys
from methods.pisl.losses import part_contrast
from methods.pisl.patches import LocalisationNet, start_at, stripe_thetas
from methods.pisl.released import ReleasedDiffusion
from methods.pisl.sdm import SpatialDiffusion, SpatialTransformer, Stripes

CHOICES = {
    "sdm": ("stripes", "stn", "diffusion"),
    "diffusion": ("paper", "released"),
    "train_patches": ("theta0", "x0_hat"),
    "score": ("mmd", "jaccard", "released"),
}


@dataclass(frozen=True)
class Settings:
    """Symbols as in docs/methods/pisl.md; ``sdm`` stripes, ``score`` jaccard and ``scd_weight`` 0 make it PPLR.

    sdm, diffusion, train_patches: where parts are; released is the official code's diffusion. timesteps T and
    sampling_steps: of the schedule and of extraction. localisation_padding: of the localisation net's convolution;
    localisation_lr_scale: the net's learning rate as a share of the optimiser's. shared_neck: the global BNNeck before
    the part's own, in training only, as released. score, neighbours: PSC. own_label_share: W_ref. consistency_from:
    epoch from which the score smooths part labels; before, label smoothing does. scd_weight: W_diff, outside
    theta_weight, cosine_weight (inside it) and contrast_weight. camera_weight: W_cam.
    """

    sdm: str = "diffusion"
    diffusion: str = "paper"
    train_patches: str = "theta0"
    parts: int = 3
    timesteps: int = 1000
    sampling_steps: int = 50
    localisation_padding: int = 0
    localisation_lr_scale: float = 0.1
    shared_neck: bool = False
    score: str = "mmd"
    neighbours: int = 20
    own_label_share: float = 0.5
    consistency_from: float = per_epochs(5)
    label_smoothing: float = 0.1
    scd_weight: float = 0.1
    theta_weight: float = 0.5
    cosine_weight: float = 0.1
    contrast_weight: float = 0.3
    contrast_temperature: float = 0.07
    camera_weight: float = 0.5
    camera_temperature: float = 0.07
    camera_negatives: int = 50

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"settings.{key} is one of {', '.join(allowed)}, not '{getattr(self, key)}'")
        if not 1 <= self.sampling_steps <= self.timesteps:
            raise ValueError(f"settings.sampling_steps must be 1 to timesteps {self.timesteps}: {self.sampling_steps}")
        if self.localisation_lr_scale < 0:
            raise ValueError(
                f"settings.localisation_lr_scale must be a share of optimiser.lr: {self.localisation_lr_scale}"
            )
        if not 0 <= self.own_label_share <= 1:
            raise ValueError(f"settings.own_label_share is a share in [0, 1], not {self.own_label_share}")
        if self.sdm == "diffusion" and self.scd_weight <= 0:
            raise ValueError("settings.sdm 'diffusion' needs scd_weight > 0: nothing else trains the denoiser")
        if self.diffusion == "released" and (self.parts != 3 or self.train_patches != "theta0"):
            raise ValueError("settings.diffusion 'released' has 3 parts and no train_patches of its own")


class PISL(PartMethod):
    """PPLR's L_global + L_parts + L_triplet + W_cam L_cam, and W_diff L_scd; tested is the global feature."""

    Settings = Settings

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.sdm = build_sdm(config.settings, embedder.dim, config.backbone.bn_groups)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` f_g (b, D), ``parts`` (b, P, D), their logits over the epoch's C clusters, and SCD's inputs."""
        feature_map = self.embedder.map(batch.images[0])
        embedding = self.embedder.neck(self.embedder.pool(feature_map))
        drawn = self.sdm.draw(len(batch.indices), self.generator)  # of the full batch, on every rank
        mine = {name: value[batch.part].to(embedding.device) for name, value in drawn.items()}
        located = self.sdm(feature_map, embedding, mine)
        parts = self.part_features(cut(feature_map, located.pop("weights")))
        return {**self.with_logits(embedding, parts), **located}

    def part_features(self, pooled: Tensor) -> Tensor:
        """(b, P, D) after each part's own BNNeck, and as released after the global one before it."""
        if self.training and self.config.settings.shared_neck:
            pooled = torch.stack([self.embedder.neck(part) for part in pooled.unbind(dim=1)], dim=1)
        return super().part_features(pooled)

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """``feature`` (b, D), tested; ``parts`` (b, P, D), unit length, read by pseudo-labelling alone."""
        feature_map = self.embedder.map(images)
        embedding = self.embedder.neck(self.embedder.pool(feature_map))
        weights = self.sdm.locate(feature_map, embedding, image_keys(images))
        return self.extracted(embedding, self.part_features(cut(feature_map, weights)))

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Clusters of the global feature, and ``consistency`` (N, P): PSC's score of every part."""
        settings: Settings = self.config.settings
        labels = super().label(epoch, data)
        with data.timer("consistency"):
            scores = consistency_scores(data.features(), data.embedded("parts"), settings.neighbours, settings.score)
        labels.extra[SCORE] = scores
        return labels

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """As PPLR; the generator draws the epoch's times and noise."""
        self.generator = generator
        super().start_epoch(labels, data, generator)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """PSC's refined global and smoothed part losses, the triplet, and the camera and SCD terms that are on."""
        settings: Settings = self.config.settings
        terms = super().loss(output, batch)
        if settings.scd_weight > 0:
            scd = self._scd_loss(output, batch.targets)
            terms |= {f"scd_{name}": settings.scd_weight * term for name, term in scd.items()}
        return terms

    def param_groups(self) -> list[dict[str, Any]]:
        """The localisation net, where there is one, learns at a rate of its own."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        localisation = [p for name, p in trained if name.startswith("sdm.localisation.")]
        others = [p for name, p in trained if not name.startswith("sdm.localisation.")]
        own = {"params": localisation, "lr_scale": self.config.settings.localisation_lr_scale}
        return [{"params": others}, *([own] if localisation else [])]

    def _scd_loss(self, output: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
        """MSE(eps_hat, eps) + theta_weight [...] where there is a diffusion, + contrast_weight L_con of the parts."""
        settings: Settings = self.config.settings
        terms = self.sdm.theta_loss(output, settings.theta_weight, settings.cosine_weight)
        if settings.contrast_weight > 0:
            frozen = settings.diffusion == "paper"
            contrast = part_contrast(output["parts"], targets, settings.contrast_temperature, frozen)
            terms["contrast"] = settings.contrast_weight * contrast
        return terms


def build_sdm(settings: Settings, dim: int, replicas: int) -> Stripes:
    """What places the parts, by ``settings.sdm``; modules that a setting leaves out are not built."""
    if settings.sdm == "stripes":
        return Stripes(settings.parts)
    steps = (settings.timesteps, settings.sampling_steps)
    if settings.sdm == "diffusion" and settings.diffusion == "released":
        return ReleasedDiffusion(dim, settings.localisation_padding, *steps, replicas)
    windows = stripe_thetas(settings.parts)
    localisation = LocalisationNet(dim, windows, settings.localisation_padding)
    if settings.sdm == "stn":
        return SpatialTransformer(settings.parts, localisation)
    denoiser = Denoiser(windows.numel(), dim)
    start_at(denoiser.last, windows)  # before it has learned anything, a window is a stripe
    return SpatialDiffusion(settings.parts, localisation, denoiser, *steps, settings.train_patches)
