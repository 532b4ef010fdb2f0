"""Selective contrastive learning (Pang et al., TOMM 2022): neighbours in memory banks as positives and negatives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, TrainingData
from core.memory import InstanceMemory
from core.method import Method
from core.sampling import shuffled_batches
from methods.selective_contrastive.contrast import (
    log_probabilities,
    pull_positives,
    released_gradients,
    selective_nll,
    term_weights,
    with_gradient,
)
from methods.selective_contrastive.heads import Heads, standardised
from methods.selective_contrastive.selection import (
    Selection,
    euclidean,
    select,
    select_at_random,
    squared_distance,
)

BRANCHES = ("local", "global")  # in the order in which the released backward visits them


@dataclass(frozen=True)
class Settings:
    """Constants and switches, with the values of the released configuration: docs/methods/selective_contrastive.md.
    stripes: of the local head; 0 leaves it out. lambda_g, lambda_p: share of the global feature in the distances, and
    of the local one in the loss. lambda_t, alpha: weights of the anchor and of its ``positives`` neighbours.
    negatives: the next nearest rows; None = all others. lambda_c, lambda_c_test: same-camera penalty in the selection
    and at test; 0 reads no camera. warmup: epochs with the anchor as only positive and random negatives. momentum: of
    all three banks. mixture: the features that pull the mixture bank. memory_mode: ``frozen``, the gradient of the
    loss; ``released``, the gradient that the official code computes while it changes the bank.
    """

    stripes: int = 8
    lambda_g: float = 0.5
    lambda_p: float = 0.5
    lambda_t: float = 0.5
    alpha: float = 1.75
    positives: int = 7
    negatives: int | None = 500
    lambda_c: float = 0.05
    lambda_c_test: float = 0.0
    warmup: float = per_epochs(3)
    temperature: float = 0.1
    momentum: float = 0.5
    mixture: tuple[str, ...] = BRANCHES
    memory_mode: str = "frozen"

    def __post_init__(self) -> None:
        for name in ("lambda_g", "lambda_p", "lambda_t"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"settings.{name} is a share in [0, 1], not {getattr(self, name)}")
        for name in ("stripes", "positives", "negatives", "alpha", "lambda_c", "lambda_c_test", "warmup"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"settings.{name} must not be negative, but is {getattr(self, name)}")
        if self.stripes == 0 and (self.lambda_g, self.lambda_p) != (1, 0):
            raise ValueError("settings.stripes 0 leaves the global feature alone: set lambda_g to 1 and lambda_p to 0")
        if not self.mixture or not set(self.mixture) <= set(BRANCHES):
            raise ValueError(f"settings.mixture lists one or both of {', '.join(BRANCHES)}, not {self.mixture}")
        if self.memory_mode not in ("frozen", "released"):
            raise ValueError(f"settings.memory_mode is frozen or released, not '{self.memory_mode}'")


class SelectiveContrastive(Method):
    """L = lambda_p L_local + (1 - lambda_p) L_global, both against one mixture bank; nothing is clustered."""

    Settings = Settings

    selection: Selection  # of the batch between loss and after_step: it precedes the update of the banks it reads
    cameras: Tensor | None  # (N,) of the training images, where the penalty uses them
    generator: torch.Generator

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self.heads = Heads(embedder.dim, config.settings.stripes)
        embedder.bnneck.requires_grad_(False)  # the heads stand in its place, and DDP insists on a use of what learns
        self.banks: dict[str, InstanceMemory] = {}

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras in the loss (for the selection) and at test, each where its penalty is on."""
        penalties = {"loss": config.settings.lambda_c, "test": config.settings.lambda_c_test}
        return Needs(cameras=frozenset(use for use, penalty in penalties.items() if penalty > 0))

    @property
    def shares(self) -> dict[str, float]:
        """Weight of each branch in the distances; no local one without stripes."""
        settings: Settings = self.config.settings
        shares = {"global": settings.lambda_g}
        return {**shares, "local": 1 - settings.lambda_g} if settings.stripes else shares

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``global`` (b, 1, D) and ``local`` (b, S, D / S): views of an image, each of length 1."""
        return self._views(batch.images[0])

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """Views as in ``forward``; ``feature`` (b, 2 D) has the squared distances of the selection, cameras aside."""
        views = self._views(images)
        parts = [(share / views[name].shape[1]) ** 0.5 * views[name].flatten(1) for name, share in self.shares.items()]
        return {"feature": torch.cat(parts, dim=1), **views}

    def _views(self, images: Tensor) -> dict[str, Tensor]:
        feature_map = self.embedder.map(images)
        return self.heads(feature_map, self.embedder.pool(feature_map))

    def distance(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor:
        """lambda_g |g_q - g_g| + (1 - lambda_g) mean_s |l_q^s - l_g^s| + lambda_c_test [same camera].

        Not squared, other than in the selection.
        """
        parts = [share * euclidean(query[name], gallery[name]) for name, share in self.shares.items()]
        total = torch.stack(parts).sum(dim=0)
        penalty = self.config.settings.lambda_c_test
        if penalty > 0:
            same = query["camera"][:, None] == gallery["camera"]
            total = total + penalty * same.to(total)
        return total

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every image is a class of its own."""
        return Labels(np.arange(len(data)))

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Before the first epoch fill G and L with the features of all images; the mixture starts at zero."""
        settings: Settings = self.config.settings
        self.generator = generator
        if not self.banks:
            for name in self.shares:
                self.banks[name] = InstanceMemory(standardised(data.embedded(name)).flatten(0, 1), settings.momentum)
            mixture = torch.zeros_like(data.embedded("global").flatten(1))
            self.banks["mixture"] = InstanceMemory(mixture, settings.momentum)
        self.cameras = None
        if settings.lambda_c > 0:
            self.cameras = torch.as_tensor(data.cameras("loss")).to(self.banks["mixture"].rows.device)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Shuffled images, no identities; an incomplete last batch is dropped: batch norm cannot train on one image."""
        size = self.config.sampler.batch
        return (rows for rows in shuffled_batches(len(data), size, rng) if len(rows) == size)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Select P and N for each anchor, then sum_j w_j CE_j of each branch against the mixture bank."""
        settings: Settings = self.config.settings
        self.selection = self._select(output, batch)
        positives = self.selection.positives
        # In the warm-up the anchor is the only positive, at its usual weight.
        weights = term_weights(settings.positives, settings.lambda_t, settings.alpha)[: positives.shape[1]]
        features = {name: output[name].flatten(1) for name in BRANCHES if name in output}
        bank = self.banks["mixture"].rows
        log_p = {name: log_probabilities(z, bank, self.selection, settings.temperature) for name, z in features.items()}
        terms = {name: selective_nll(log_p[name], positives, weights) for name in features}
        if settings.memory_mode == "released":
            gradients = released_gradients(
                features,
                log_p,
                bank,
                self.selection,
                weights,
                settings.temperature,
                settings.momentum,
                settings.mixture,
            )
            terms = {name: with_gradient(terms[name], z, gradients[name]) for name, z in features.items()}
        shares = {"local": settings.lambda_p, "global": 1 - settings.lambda_p}
        return {name: shares[name] * term for name, term in terms.items()}

    def _select(self, output: dict[str, Tensor], batch: Batch) -> Selection:
        """By D(i, j) = lambda_g |g_i - G_j|^2 + (1 - lambda_g) mean_s |l_i^s - L_j^s|^2 + lambda_c [same camera]."""
        settings: Settings = self.config.settings
        if batch.epoch < settings.warmup:
            others = None if settings.negatives is None else settings.positives + settings.negatives
            return select_at_random(batch.indices, len(self.banks["mixture"]), others, self.generator)
        parts = [
            share * squared_distance(output[name], self.banks[name].rows.view(-1, *output[name].shape[1:]))
            for name, share in self.shares.items()
        ]
        distance = torch.stack(parts).sum(dim=0)
        if self.cameras is not None:
            distance = distance + settings.lambda_c * (self.cameras[batch.indices][:, None] == self.cameras)
        return select(distance, batch.indices, settings.positives, settings.negatives)

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """The mixture's rows of all positives follow l, then g; G and L take the anchors' own new features."""
        settings: Settings = self.config.settings
        for name in BRANCHES:
            if name in output and name in settings.mixture:
                bank = self.banks["mixture"].rows
                pull_positives(bank, self.selection.positives, output[name].flatten(1), settings.momentum)
        for name in self.shares:
            views = output[name].shape[1]
            rows = batch.indices[:, None] * views + torch.arange(views, device=batch.indices.device)
            self.banks[name].update(output[name].flatten(0, 1), rows.flatten())

    def param_groups(self) -> list[dict[str, Any]]:
        """One group; SGD has Nesterov momentum, as released, and Adam does not read the key."""
        return [{**group, "nesterov": True} for group in super().param_groups()]

    def memory_state(self) -> dict[str, Any]:
        """All three banks outlive the epoch."""
        return {name: bank.state_dict() for name, bank in self.banks.items()}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """The rows exactly as saved: normalising them again could move their last bits."""
        for name, saved in state.items():
            self.banks[name] = InstanceMemory(saved["rows"], self.config.settings.momentum)
            self.banks[name].load_state_dict(saved)
