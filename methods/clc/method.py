"""CLC (Tian et al., IJMLC 2021): a source that imitates the target, and triplets over both and their copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.losses import smoothed_cross_entropy
from core.memory import cluster_means
from core.method import Method
from core.sampling import shuffled_batches
from core.styles import Styles, StyleSettings
from methods.clc.heads import HHLHead, NeckHead
from methods.clc.losses import paired_triplet

SETS = ("source", "imitated", "target")


@dataclass(frozen=True)
class Settings:
    """docs/methods/clc.md, "Losses" and "Batches"; a weight of 0 leaves its losses out.

    imitated_weight, triplet_weight: alpha and beta. smoothing: of the imitated images' labels. commonality: a triplet
    loss in each of ``triplets`` by itself, or one over all of them. arch: the suite's neck, or the layers of HHL;
    frozen: of these, those that HHL's optimiser leaves out stay as they began. scale: of the neck's cosine logits.
    source_images: random source images to classify beside the sampler's, which the triplets then have to themselves; 0
    uses the sampler's for both. target_images: target images of a batch, null for as many as the sampler's.
    target_copies: copies of each in other cameras' styles, null for all cameras. backbone_rate: the backbone's share of
    the learning rate.
    """

    imitated_weight: float = 1.0
    triplet_weight: float = 0.5
    triplets: tuple[str, ...] = SETS
    commonality: Literal["separate", "joint"] = "separate"
    margin: float = 0.3
    smoothing: float = 0.1
    arch: Literal["bnneck", "hhl"] = "bnneck"
    frozen: bool = False
    scale: float = 30.0
    source_images: int = 128
    target_images: int | None = 16
    target_copies: int | None = None
    backbone_rate: float = 0.1
    styles: StyleSettings = field(default_factory=StyleSettings)

    def __post_init__(self) -> None:
        if unknown := set(self.triplets) - set(SETS):
            raise ValueError(f"settings.triplets are among {', '.join(SETS)}, not {sorted(unknown)}")
        if self.styles.backend == "mixstyle":
            raise ValueError(
                "settings.styles.backend 'mixstyle' changes no image, and clc needs images in other styles; choose "
                "another backend"
            )
        counts = {"source_images": (self.source_images, 0), "target_copies": (self.target_copies, 1)}
        for name, (value, least) in {**counts, "target_images": (self.target_images, 1)}.items():
            if value is not None and value < least:
                raise ValueError(f"settings.{name} must be at least {least}, not {value}")

    @property
    def imitates(self) -> bool:
        """Whether source images in the target's styles are read."""
        return self.imitated_weight > 0 or self.compares("imitated")

    def compares(self, name: str) -> bool:
        """Whether a triplet loss reads a set."""
        return self.triplet_weight > 0 and name in self.triplets


class CLC(Method):
    """L = CE(S) + alpha CE(I) + beta ( Tri(S) + Tri(I) + Tri(T u P) ); no clusters, no memory.

    S: the source; I: the source in the target's styles; T: the target; P: the target in styles of its other cameras.
    """

    Settings = Settings

    def __init__(self, config: Config, embedder: Embedder, capacity: int, source_identities: int) -> None:
        super().__init__(config, embedder, capacity, source_identities)
        settings: Settings = config.settings
        if settings.arch == "hhl":
            self.head: NeckHead | HHLHead = HHLHead(embedder.dim, source_identities, settings.frozen)
        else:
            self.head = NeckHead(embedder.dim, source_identities, settings.scale)
        self._started = False
        self._styles: Styles | None = None

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """People of the source; cameras for the styles of both domains."""
        settings: Settings = config.settings
        styled = settings.imitates or settings.compares("target")
        return Needs(cameras=frozenset({"style"}) if styled else frozenset(), source=True)

    def styles(self, data: TrainingData) -> Styles:
        """The styles of both domains, taken once."""
        if self._styles is None:
            self._styles = Styles.of(self.config.settings.styles, data)
        return self._styles

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every target image by itself: its number is what its copies are paired by."""
        return Labels(np.arange(len(data)))

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Before the first step: styles, and a classifier that starts at the people's mean features."""
        if self.needs(self.config).cameras:
            self.styles(data)
        source = data.source
        assert source is not None, "declared in needs"
        if isinstance(self.head, NeckHead) and not self._started:
            features = source.extract(lambda pixels, rows: self.embed(source.prepare(pixels)))["feature"]
            self.head.start(cluster_means(features, source.identities))
        self._started = True

    def memory_state(self) -> dict[str, Any]:
        """Whether the classifier has been started."""
        return {"started": self._started}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``."""
        self._started = state["started"]

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Target images in random order; a rest that does not fill a batch is left out."""
        size = min(self.config.settings.target_images or self.config.sampler.batch, len(data))
        return (rows for rows in shuffled_batches(len(data), size, rng) if len(rows) == size)

    def source_batches(self, source: TrainingData, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Random images to classify, then K images of each of P people; or the latter alone, for both."""
        extra = min(self.config.settings.source_images, len(source))
        people = self._people(source, rng)
        if not extra:
            yield from people
        for rows, chosen in zip(shuffled_batches(len(source), extra, rng), people, strict=False):
            if len(rows) == extra:
                yield np.concatenate([rows, chosen])

    def _people(self, source: TrainingData, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """P x K batches without end."""
        while True:
            yield from super().source_batches(source, rng)

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """The images, and copies: of the source in a random style of the target, of the target in other cameras'."""
        settings: Settings = self.config.settings
        views = [pixels.augmented(0)]
        if pixels.domain == "source":
            return views + self._known_styles().copies(pixels) if settings.imitates else views
        if not settings.compares("target"):
            return views
        styles = self._known_styles()
        return views + styles.copies(pixels, settings.target_copies or styles.targets)

    def _known_styles(self) -> Styles:
        assert self._styles is not None, "start_epoch takes the styles"
        return self._styles

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Source, imitated target, copies of the target, target: one by one, so that statistics end on the target."""
        assert batch.source is not None, "declared in needs"
        output: dict[str, Tensor] = {}
        for name, images in zip(("source", "source_imitated"), batch.source.images, strict=False):
            output[f"{name}_logits"], output[f"{name}_compared"] = self._seen(images)
        if self.config.settings.compares("target"):
            for place in reversed(range(len(batch.images))):
                _, output[f"compared_{place}"] = self._seen(batch.images[place])
        return output

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        _, pooled = self.embedder.map_and_pool(images)
        logits, compared = self.head(pooled, F.normalize(self.embedder.neck(pooled), dim=1))
        return logits, compared

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """The neck's unit feature; with HHL's layers, what was pooled, at unit length."""
        if self.config.settings.arch == "bnneck":
            return super().embed(images, cameras)
        _, pooled = self.embedder.map_and_pool(images)
        return {"feature": F.normalize(pooled, dim=1)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Dual classification, then latent commonality."""
        settings: Settings = self.config.settings
        assert batch.source is not None, "declared in needs"
        people = batch.source.targets
        extra = len(people) - self.config.sampler.batch if settings.source_images else 0
        classified = slice(0, extra or None)
        terms = {"source": F.cross_entropy(output["source_logits"][classified], people[classified])}
        if settings.imitated_weight:
            logits = output["source_imitated_logits"][classified]
            loss = smoothed_cross_entropy(logits, people[classified], settings.smoothing)
            terms["imitated"] = settings.imitated_weight * loss
        sets = self._compared(output, batch.indices, people, slice(extra, None))
        if settings.commonality == "joint" and sets:
            sets = {"joint": tuple(torch.cat(parts) for parts in zip(*sets.values(), strict=True))}
        for name, (features, labels) in sets.items():
            terms[f"triplet_{name}"] = settings.triplet_weight * paired_triplet(features, labels, settings.margin)
        return terms

    def _compared(
        self, output: dict[str, Tensor], rows: Tensor, people: Tensor, drawn: slice
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> features and labels of the sets that a triplet loss reads; people first, then target images."""
        settings: Settings = self.config.settings
        found = {}
        for name, key in (("source", "source_compared"), ("imitated", "source_imitated_compared")):
            if settings.compares(name):
                found[name] = (output[key][drawn], people[drawn])
        if settings.compares("target"):
            views = [value for name, value in output.items() if name.startswith("compared_")]
            found["target"] = (torch.cat(views), (self.source_identities + rows).repeat(len(views)))
        return found

    def param_groups(self) -> list[dict[str, Any]]:
        """The backbone learns at its share of the rate, new layers at the whole."""
        sides = ((self.embedder, self.config.settings.backbone_rate), (self.head, 1.0))
        return [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr_scale": scale}
            for module, scale in sides
        ]
