"""PPAN (Yang et al., IEEE TMM 2021): whole body and parts adapt branch by branch, leaving outlier people behind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import domain, per_domain
from core.backbones.net import Embedder
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, TrainingData
from core.losses import similarities
from core.memory import cluster_centroids, unit
from core.method import Method
from core.sampling import shuffled_batches
from methods.ppan.alignment import (
    coral,
    gaussian_kernels,
    identity_weights,
    local_mmd,
    unbiased_mmd,
    weighted_mmd,
)
from methods.ppan.branches import Branches


@dataclass(frozen=True)
class Settings:
    """docs/methods/ppan.md, "Settings".

    parts: R, horizontal thirds by default; 0 leaves the whole body alone. part_source: parts are ``image``s of their
        own, or stripes of the whole image's ``feature`` map. branches: with a ``layer4`` of their own, or ``heads``
        alone. embedding: length of a branch's feature; None keeps the network's.
    scale: of the cosines that are the classifiers' logits.
    source_epochs: on the source alone, before adaptation.
    target: False never shows the network a target image. global_weight, local_weight: of the two alignments.
        alignment: the global one's distance, the weighted ``mmd``, or ``dan`` and ``coral``, which know no weights.
        local_mask: whose identities count in the local one.
    progressive: source identities that the target does not resemble lose weight; temperature: of their softmax.
    domain_norm: batch norm apart for source and target.
    backbone_rate: the learning rate of the pretrained layers over that of the new ones.
    test_feature: ``all`` branches, or the ``whole`` body.
    """

    parts: int = 3
    part_source: Literal["image", "feature"] = "image"
    branches: Literal["layer4", "heads"] = "layer4"
    embedding: int | None = 512
    scale: float = 30.0
    source_epochs: float = per_epochs(40)
    target: bool = True
    global_weight: float = 0.5
    local_weight: float = 0.5
    alignment: Literal["mmd", "dan", "coral"] = "mmd"
    local_mask: Literal["source", "dsan"] = "source"
    progressive: bool = True
    temperature: float = 1.0
    domain_norm: bool = False
    backbone_rate: float = 0.1
    test_feature: Literal["all", "whole"] = "all"

    def __post_init__(self) -> None:
        if self.parts < 0 or (self.embedding is not None and self.embedding < 1):
            raise ValueError(
                f"settings.parts ({self.parts}) must not be negative and settings.embedding ({self.embedding}) must be "
                "at least 1 or null"
            )
        if self.global_weight < 0 or self.local_weight < 0:
            raise ValueError("settings.global_weight and settings.local_weight must not be negative")
        if self.domain_norm and not self.target:
            raise ValueError("settings.domain_norm trains the target's batch norm, so settings.target must be true")
        if not self.scale > 0 or not self.backbone_rate > 0:
            raise ValueError("settings.scale and settings.backbone_rate must be above 0")


class PPAN(Method):
    """L = sum over branches of CE_w + rho (global_weight L_G + local_weight L_L), rho rising from 0 to 1."""

    Settings = Settings

    gamma: Tensor  # (1 + R, K) how much each source identity resembles the target, from an epoch's features

    def __init__(self, config: Config, embedder: Embedder, capacity: int, source_identities: int) -> None:
        super().__init__(config, embedder, capacity, source_identities)
        settings: Settings = config.settings
        self.heads = Branches(
            embedder,
            settings.parts,
            settings.branches == "layer4",
            settings.part_source == "image",
            settings.embedding,
        )
        self.classifiers = nn.Parameter(torch.zeros(1 + settings.parts, source_identities, self.heads.dim))
        self.classifiers_set = False

    def weights_loaded(self) -> None:
        """Branches start as copies of the embedder's layers; with ``domain_norm`` both domains' batch norms as one."""
        self.heads.reset(self.embedder)
        if self.config.settings.domain_norm:
            per_domain(self)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """A labelled source beside the target; no cameras."""
        return Needs(source=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Branch features (b, 1 + R, D) and logits (b, 1 + R, K) of the source and, after it, of the target."""
        assert batch.source is not None, "declared in needs"
        with domain(self, "source"):
            source = self.heads(self.embedder, batch.source.images[0])
        output = {"source_branches": source, "source_logits": self._logits(source)}
        if self.config.settings.target:
            target = self.heads(self.embedder, batch.images[0])
            output |= {"branches": target, "logits": self._logits(target.detach())}
        return output

    def _logits(self, features: Tensor) -> Tensor:
        """Cosines with the classifiers' rows times ``scale``, branch by branch."""
        pairs = zip(features.unbind(dim=1), self.classifiers, strict=True)
        cosines = [similarities(branch, unit(rows)) for branch, rows in pairs]
        return self.config.settings.scale * torch.stack(cosines, dim=1)

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """``branches`` (b, 1 + R, D); ``feature``, the branches end to end at unit length, or the whole body's."""
        branches = self.heads(self.embedder, images)
        kept = branches if self.config.settings.test_feature == "all" else branches[:, :1]
        return {"feature": unit(kept.flatten(1)), "branches": branches}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """No pseudo-labels: every image by itself."""
        return Labels(np.arange(len(data)))

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Before the first epoch, classifiers become the people's mean features; each epoch, identities are weighed."""
        settings: Settings = self.config.settings
        if not self.classifiers_set:
            self._set_classifiers(data)
        self.gamma = torch.ones(self.classifiers.shape[:2], device=self.classifiers.device)
        if settings.progressive and settings.target:
            logits = self._logits(data.embedded("branches"))
            self.gamma = torch.stack([identity_weights(z, settings.temperature) for z in logits.unbind(dim=1)])
            labels.notes["effective_identities"] = float(effective(self.gamma).mean())

    def _set_classifiers(self, data: TrainingData) -> None:
        source = data.source
        assert source is not None, "declared in needs"

        def embed(pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
            with domain(self, "source"):
                return {"branches": self.heads(self.embedder, source.prepare(pixels))}

        for rows, features in zip(self.classifiers, source.extract(embed)["branches"].unbind(dim=1), strict=True):
            rows.copy_(cluster_centroids(features, source.identities))
        self.classifiers_set = True

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Target images in random order, as many as the source's in a batch; all of them where there are fewer."""
        size = min(self.config.sampler.batch, len(data))
        return (rows for rows in shuffled_batches(len(data), size, rng) if len(rows) == size)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The sum over branches of the weighted cross-entropy and, once rho is above 0, of the alignments."""
        settings: Settings = self.config.settings
        assert batch.source is not None, "declared in needs"
        rho = self.rho(batch.epoch)
        weights = 1 + rho * (self.gamma - 1)
        align = rho if settings.target else 0.0
        shares = {"identity": 1.0, "global": align * settings.global_weight, "local": align * settings.local_weight}
        branches = [
            self._terms(output, batch.source.targets, branch, of_branch, shares)
            for branch, of_branch in enumerate(weights)
        ]
        total = {name: shares[name] * torch.stack([terms[name] for terms in branches]).sum() for name in branches[0]}
        if settings.domain_norm:  # DDP wants a gradient, if of 0, for the target's own batch norms while rho is 0
            total["identity"] = total["identity"] + 0 * output["branches"].sum()
        return total

    def _terms(
        self, output: dict[str, Tensor], labels: Tensor, branch: int, weights: Tensor, shares: dict[str, float]
    ) -> dict[str, Tensor]:
        """One branch's losses that have a share, unweighted; weights (K,) of the source identities."""
        settings: Settings = self.config.settings
        logits = output["source_logits"][:, branch]
        weights = weights.to(logits.dtype)
        terms = {"identity": F.cross_entropy(logits, labels, weights)}
        if not shares["global"] and not shares["local"]:
            return terms
        source, target = output["source_branches"][:, branch], output["branches"][:, branch]
        kernels = gaussian_kernels(source, target)
        if shares["global"]:
            if settings.alignment == "coral":
                terms["global"] = coral(source, target)
            elif settings.alignment == "dan":
                terms["global"] = unbiased_mmd(gaussian_kernels(source, target, with_diagonal=True))
            else:
                terms["global"] = weighted_mmd(kernels, weights[labels])
        if shares["local"]:
            probabilities = output["logits"][:, branch].detach().softmax(dim=1)
            terms["local"] = local_mmd(kernels, labels, probabilities, weights, settings.local_mask)
        return terms

    def rho(self, epoch: float) -> float:
        """2 / (1 + exp(-10 p)) - 1 at the share p of the adaptation that is done; 0 during the source's epochs."""
        first, last = self.config.settings.source_epochs, self.config.schedule.epochs
        done = max(0.0, epoch - first) / max(1e-9, last - first)
        return 2 / (1 + math.exp(-10 * done)) - 1

    def param_groups(self) -> list[dict[str, Any]]:
        """Pretrained layers, whose rate is ``backbone_rate`` of that of the new ones."""
        pretrained = [*self.embedder.parameters(), *self.heads.stages.parameters()]
        known = {id(parameter) for parameter in pretrained}
        new = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [
            {"params": new},
            {"params": [p for p in pretrained if p.requires_grad], "lr_scale": self.config.settings.backbone_rate},
        ]

    def memory_state(self) -> dict[str, Any]:
        """Whether the classifiers were set from the source: they are once, before the first epoch."""
        return {"classifiers_set": self.classifiers_set}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``."""
        self.classifiers_set = state["classifiers_set"]


def effective(weights: Tensor) -> Tensor:
    """(b,) how many equal weights would spread as the weights (b, K) do: (sum w)^2 / sum w^2."""
    return weights.sum(dim=1).square() / weights.square().sum(dim=1)
