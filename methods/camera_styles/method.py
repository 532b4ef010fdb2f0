"""Multiple camera styles learning (Optik, 2023), our reading: an image as every camera would show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.backbones.net import Embedder
from core.backbones.resnet import with_stages
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.losses import cluster_nll, similarities, smoothed_cross_entropy
from core.memory import CentroidMemory, InstanceMemory, ProxyMemory
from core.method import Method
from core.mixstyle import MixStyle
from core.proxy_losses import inter_camera
from core.styles import Styles, StyleSettings
from methods.camera_styles.aibn import adapt
from methods.camera_styles.exemplars import exemplar_nll

MIXED_STAGES = ("layer1", "layer2")


@dataclass(frozen=True)
class Settings:
    """docs/methods/camera_styles.md, "Losses" and "Settings"; a weight of 0 leaves its loss out.

    style_mean: clusters the mean feature over an image's styles, not the image's own. style_views: of how many styles,
    its own included; None for all cameras. copy_weight, style_weight, camera_weight: eta, lambda_s and lambda_c.
    smoothing: of the copies' labels. exemplar_weight: of ECN's loss on images and copies, with exemplar_neighbours from
    epoch neighbours_from on and a memory whose momentum grows to exemplar_momentum. update_with_copies: copies enter
    the memories too. norm: ``aibn`` puts AIBN in the place of the backbone's batch norms.
    """

    temperature: float = 0.05
    momentum: float = 0.2
    style_mean: bool = True
    style_views: int | None = None
    copy_weight: float = 1.0
    smoothing: float = 0.1
    style_weight: float = 0.5
    camera_weight: float = 0.5
    proxy_temperature: float = 0.07
    negatives: int = 50
    exemplar_weight: float = 0.0
    exemplar_neighbours: int = 6
    neighbours_from: float = per_epochs(5)
    exemplar_momentum: float = 0.6
    update_with_copies: bool = False
    norm: Literal["bn", "aibn"] = "bn"
    styles: StyleSettings = field(default_factory=StyleSettings)

    def __post_init__(self) -> None:
        if self.style_views is not None and self.style_views < 1:
            raise ValueError(f"settings.style_views counts styles, at least 1 or null, not {self.style_views}")
        if self.style_mean and self.styles.backend == "mixstyle":
            raise ValueError(
                "settings.style_mean takes the mean over changed images and settings.styles.backend 'mixstyle' changes "
                "none of them; set style_mean to false or choose another backend"
            )
        for name in ("negatives", "exemplar_neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"settings.{name} must be at least 1, not {getattr(self, name)}")

    @property
    def copies(self) -> bool:
        """Whether a loss reads copies of the images in other styles."""
        return self.copy_weight > 0 or self.style_weight > 0 or self.exemplar_weight > 0


class CameraStyles(Method):
    """L = L_id + eta L_copy + lambda_s L_style + lambda_c L_camera; clusters of means over styles."""

    Settings = Settings

    memory: CentroidMemory
    proxies: ProxyMemory
    exemplars: InstanceMemory | None

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        self._styles: Styles | None = None
        self.exemplars = None
        self._kept: dict[str, Tensor] | None = None
        self.mixstyle = MixStyle()
        settings: Settings = config.settings
        if settings.norm == "aibn" or settings.styles.backend == "mixstyle":
            wanted = "settings.norm=aibn and settings.styles.backend=mixstyle change the maps of a ResNet's stages"
            with_stages(embedder.backbone, wanted, "set others of the two")

    def weights_loaded(self) -> None:
        """AIBN takes the place of the batch norms whose weights were loaded."""
        if self.config.settings.norm == "aibn":
            adapt(self.embedder.backbone)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras: for the sampler, for the styles of images, and for the proxies."""
        settings: Settings = config.settings
        uses = {
            "sampler": config.sampler.uses_camera,
            "style": settings.style_mean or settings.copies,
            "loss": settings.camera_weight > 0,
        }
        return Needs(cameras=frozenset(use for use, wanted in uses.items() if wanted))

    def styles(self, data: TrainingData) -> Styles:
        """The styles of the training split, taken once."""
        if self._styles is None:
            self._styles = Styles.of(self.config.settings.styles, data)
        return self._styles

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """The images, and a copy of each in the style of another camera, augmented by itself."""
        views = [pixels.augmented(0)]
        if not self.config.settings.copies:
            return views
        return views + self.styles(pixels.data).copies(pixels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Features of the copies, then of the images, on which running statistics end."""
        images, *copies = batch.images
        output = {"copy": self._copied(copies[0], batch)["feature"]} if copies else {}
        return output | {"feature": self.embedder(images)["feature"]}

    def _copied(self, images: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.config.settings.styles.backend != "mixstyle":
            return self.embedder(images)
        assert self._styles is not None, "make_views took the styles"
        self.mixstyle.cameras = self._styles.of_image[batch.indices[batch.part].cpu()]
        return self.embedder(images, after=dict.fromkeys(MIXED_STAGES, self.mixstyle))

    def extract(self, data: TrainingData) -> dict[str, Tensor]:
        """``feature`` and, to be clustered, ``style_mean``."""
        if not self.config.settings.style_mean:
            return super().extract(data)
        styles = self.styles(data)
        count = min(self.config.settings.style_views or styles.targets, styles.targets)

        def over_styles(pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
            """unit( mean over ``count`` styles of unit features ), an image's own style first."""
            looks = [pixels] + [styles.shifted(pixels, rows, places) for places in range(1, count)]
            features = [self.embed(data.prepare(look))["feature"] for look in looks]
            mean = features[0] if count == 1 else F.normalize(torch.stack(features).mean(dim=0), dim=1)
            return {"feature": features[0], "style_mean": mean}

        return data.extract(over_styles)

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Clusters of the means over styles."""
        return self.cluster(self._clustered(data), data)

    def _clustered(self, data: TrainingData) -> Tensor:
        return data.embedded("style_mean") if self.config.settings.style_mean else data.features()

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Cluster rows are unit means of what was clustered, proxies those of the images' own features."""
        settings: Settings = self.config.settings
        self.memory = CentroidMemory.of_clusters(self._clustered(data), labels.ids, settings.momentum)
        if settings.camera_weight:
            self.proxies = ProxyMemory(data.features(), labels.ids, data.cameras("loss"), settings.momentum)
        if settings.exemplar_weight and self.exemplars is None:
            self.exemplars = InstanceMemory(data.features(), 0.0)
            if self._kept is not None:
                self.exemplars.load_state_dict(self._kept)

    def memory_state(self) -> dict[str, Any]:
        """The exemplars, which outlive an epoch, where there are any."""
        return {} if self.exemplars is None else self.exemplars.state_dict()

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``; the rows wait for the next epoch's start."""
        self._kept = state or None

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Identity of the images; where there are copies, theirs and what they differ by; camera proxies."""
        settings: Settings = self.config.settings
        feature, copy = output["feature"], output.get("copy")
        terms = {"cluster": cluster_nll(feature, self.memory.rows, batch.targets, settings.temperature)}
        if settings.copy_weight and copy is not None:
            logits = similarities(copy, self.memory.rows) / settings.temperature
            terms["copy"] = settings.copy_weight * smoothed_cross_entropy(logits, batch.targets, settings.smoothing)
        if settings.style_weight and copy is not None:
            terms["style"] = settings.style_weight * (1 - (copy * feature.detach()).sum(dim=1)).mean()
        if settings.camera_weight:
            logits = self.proxies.logits(feature, settings.proxy_temperature)
            inter = inter_camera(logits, self.proxies.same_cluster(batch.targets), settings.negatives)
            terms["camera"] = settings.camera_weight * inter.mean()
        if self.exemplars is not None:
            neighbours = settings.exemplar_neighbours if batch.epoch >= settings.neighbours_from else 0
            given = (self.exemplars.rows, batch.indices, settings.temperature, neighbours)
            seen = [feature] if copy is None else [feature, copy]
            losses = torch.stack([exemplar_nll(features, *given) for features in seen])
            terms["exemplar"] = settings.exemplar_weight * losses.mean()
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """Rows take the images' features, image after image; the copies' only where asked for."""
        settings: Settings = self.config.settings
        entering = ["feature"] + (["copy"] if settings.update_with_copies and "copy" in output else [])
        for name in entering:
            self.memory.update(output[name], batch.targets)
            if settings.camera_weight:
                self.proxies.update(output[name], self.proxies.of_image[batch.indices])
        if self.exemplars is not None:
            share = int(batch.epoch) / self.config.schedule.epochs
            self.exemplars.momentum = settings.exemplar_momentum * share
            for name in ("feature", "copy"):
                if name in output:
                    self.exemplars.update(output[name], batch.indices)
