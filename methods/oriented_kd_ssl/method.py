"""Oriented-KD-SSL (The Visual Computer, 2025): self-distillation that restores what bad cameras and occluders take.

It pre-trains: its teacher's encoder is what Cluster Contrast goes on from. docs/methods/oriented_kd_ssl.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.backbones.vit import VisionTransformer
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.engine import along_cosine
from core.errors import UserError
from core.method import Method
from core.precision import at_least_float32
from core.sampling import shuffled_batches
from core.teacher import Teacher
from methods.oriented_kd_ssl import losses
from methods.oriented_kd_ssl.heads import Projector
from methods.oriented_kd_ssl.prior import Prior
from methods.oriented_kd_ssl.views import Views, Wanted, make_views


@dataclass(frozen=True)
class Settings:
    """Parts and constants; all but those of DINO are our reading of an abstract.

    scratch: start from random weights, not from the dataset's warm start. pretrain_data: ``target``, or ``union`` with
        the source split, without ids.
    low_quality, occlusion: which views the student has of the two crops; without the first its own are clean.
    detail_weight, masked_weight: of the two restorations, 0 for none.
    token_loss: what restores hidden tokens, the cosine or iBOT's cross-entropy over prototypes.
    local_share: side of a local crop, of the image's. prototypes, hidden, bottleneck: sizes of the projectors.
    first_teacher_temperature: where the teacher's begins, to reach its value after ``temperature_warmup`` epochs.
    frozen: epochs in which the prototypes stay as they are. momentum: the teacher's at the start; 1 at the end.
    """

    scratch: bool = False
    pretrain_data: Literal["target", "union"] = "target"
    low_quality: bool = True
    occlusion: bool = True
    detail_weight: float = 1.0
    masked_weight: float = 1.0
    token_loss: Literal["cosine", "ce"] = "cosine"
    local_crops: int = 8
    local_share: float = 0.5
    prototypes: int = 8192
    hidden: int = 2048
    bottleneck: int = 256
    temperature: float = 0.1
    teacher_temperature: float = 0.04
    first_teacher_temperature: float = 0.04
    temperature_warmup: float = per_epochs(0)
    frozen: float = per_epochs(1)
    momentum: float = 0.996
    centre_momentum: float = 0.9
    prior: Prior = field(default_factory=Prior)

    def __post_init__(self) -> None:
        if self.detail_weight > 0 and not self.low_quality:
            raise ValueError("settings.detail_weight restores what low quality took: set it to 0 without low_quality")
        if self.masked_weight > 0 and not self.occlusion:
            raise ValueError("settings.masked_weight restores what occlusion took: set it to 0 without occlusion")
        if min(self.prototypes, self.hidden, self.bottleneck) < 1:
            raise ValueError("settings.prototypes, settings.hidden and settings.bottleneck must be at least 1")
        if self.local_crops < 0 or not 0 < self.local_share <= 1:
            raise ValueError("settings.local_crops must be 0 or more and settings.local_share in (0, 1]")
        if not 0 <= self.momentum <= 1 or not 0 <= self.centre_momentum <= 1:
            raise ValueError("settings.momentum and settings.centre_momentum lie in [0, 1]")

    @property
    def wanted(self) -> Wanted:
        """The views of a step."""
        hides = self.masked_weight > 0
        return Wanted(self.low_quality, self.occlusion, hides, self.local_crops, self.local_share)

    def taught_temperature(self, epoch: float) -> float:
        """The teacher's at a place in the run."""
        share = min(1.0, epoch / self.temperature_warmup) if self.temperature_warmup else 1.0
        return self.first_teacher_temperature + share * (self.teacher_temperature - self.first_teacher_temperature)


class OrientedKDSSL(Method):
    """A student that sees bad, hidden and partial views is to say what its teacher says of clean ones."""

    Settings = Settings
    exports: ClassVar[str] = "teacher.network."

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        if not isinstance(embedder.backbone, VisionTransformer):
            raise UserError(
                f"oriented_kd_ssl hides and restores tokens, which backbone '{config.backbone.name}' has not; choose a "
                "vision transformer, such as --backbone vit_small"
            )
        settings: Settings = config.settings
        sizes = embedder.dim, settings.hidden, settings.bottleneck
        of_tokens = settings.prototypes if settings.token_loss == "ce" else 0
        heads = {"view": Projector(*sizes, settings.prototypes)}
        heads |= {"detail": Projector(*sizes)} if settings.detail_weight > 0 else {}
        heads |= {"masked": Projector(*sizes, of_tokens)} if settings.masked_weight > 0 else {}
        self.heads = nn.ModuleDict(heads)
        self.mask_token = nn.Parameter(torch.zeros(embedder.dim)) if settings.masked_weight > 0 else None
        embedder.bnneck.requires_grad_(False)  # no loss reads it
        self.teacher = Teacher(embedder, only_evaluates=True)
        self.teacher_heads = Teacher(self.heads, only_evaluates=True)
        self.centre = torch.zeros(settings.prototypes)
        self.token_centre = torch.zeros(of_tokens)

    @property
    def backbone(self) -> VisionTransformer:
        """The student's."""
        backbone = self.embedder.backbone
        assert isinstance(backbone, VisionTransformer), "refused in __init__"
        return backbone

    def weights_loaded(self) -> None:
        """The teacher starts as the student."""
        self.teacher.reset(self.embedder)
        self.teacher_heads.reset(self.heads)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Images alone, of one split or of both."""
        settings: Settings = config.settings
        split = "train+source" if settings.pretrain_data == "union" else "train"
        return Needs(trains_on=split, initial=not settings.scratch)

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """Two clean crops, what the prior makes of them, and local crops."""
        settings: Settings = self.config.settings
        return make_views(pixels, settings.wanted, settings.prior, self.backbone.patch_embed).flat

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every image by itself."""
        return Labels(np.arange(len(data)))

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Shuffled images, in whole batches where there are enough for one."""
        batch = self.config.sampler.batch
        given = list(shuffled_batches(len(data), batch, rng))
        return [rows for rows in given if len(rows) == batch] or given

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Centres lie where the weights lie."""
        like = self.teacher_heads.network["view"].prototypes.weight  # type: ignore[index]
        self.centre, self.token_centre = self.centre.to(like), self.token_centre.to(like)

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """The teacher's feature: what is handed on is what is tested."""
        return {"feature": self.teacher.network(images)["feature"]}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of every view, and per image what each restoration lacks; global views last."""
        settings: Settings = self.config.settings
        views = Views.of(batch.images, settings.wanted)
        frozen = batch.epoch < settings.frozen
        output, tokens = self._taught(views)
        for number, view in enumerate(views.local):
            output[f"local_{number}"] = self.heads["view"](self._encoded(view)[0], frozen)
        for number, view in enumerate(views.occluded):
            hidden = views.hidden[number] > 0 if views.hidden else None
            seen, restored = self._encoded(view, hidden)
            output[f"occluded_{number}"] = self.heads["view"](seen, frozen)
            if hidden is not None:
                output |= self._masked(number, restored, tokens[number], hidden.flatten(1), frozen, batch.epoch)
        for number, view in enumerate(views.student):
            seen, restored = self._encoded(view)
            output[f"student_{number}"] = self.heads["view"](seen, frozen)
            if settings.detail_weight > 0:
                lacking = losses.restoration(self.heads["detail"](restored), self._of_teacher("detail", tokens[number]))
                output[f"detail_{number}"] = lacking.mean(dim=1)
        return output

    @torch.no_grad()
    def _taught(self, views: Views) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The teacher's logits of the clean crops, and its tokens; the neck takes their statistics, to be handed on."""
        output, tokens = {}, []
        for number, view in enumerate(views.clean):
            seen, of_patches = self._encoded(view, network=self.teacher.network)
            output[f"teacher_{number}"] = self._of_teacher("view", seen)
            tokens.append(of_patches)
            self.embedder.neck(seen)
        return output, tokens

    def _encoded(
        self, images: Tensor, hidden: Tensor | None = None, network: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class token (b, d) and tokens (b, T, d) by the student or by ``network``."""
        instead = None if hidden is None or self.mask_token is None else (hidden, self.mask_token)
        backbone = self.backbone if network is None else network.get_submodule("backbone")
        token, feature_map = backbone(images, hidden=instead)
        return at_least_float32(token), at_least_float32(feature_map).flatten(2).mT

    @torch.no_grad()
    def _of_teacher(self, head: str, tokens: Tensor) -> Tensor:
        projected: Tensor = self.teacher_heads.network.get_submodule(head)(tokens)
        return projected

    def _masked(
        self, number: int, restored: Tensor, tokens: Tensor, hidden: Tensor, frozen: bool, epoch: float
    ) -> dict[str, Tensor]:
        """Per image, what hidden tokens lack in sum and their number; with prototypes the teacher's mean logits."""
        settings: Settings = self.config.settings
        student, teacher = self.heads["masked"](restored, frozen), self._of_teacher("masked", tokens)
        if settings.token_loss == "cosine":
            return {f"masked_{number}": losses.of_hidden(losses.restoration(student, teacher), hidden)}
        taught = losses.sharpened(teacher, self.token_centre, settings.taught_temperature(epoch))
        lacking = losses.cross_entropy(taught, student, settings.temperature)
        return {f"masked_{number}": losses.of_hidden(lacking, hidden), f"tokens_{number}": teacher.mean(dim=1)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with the teacher, in its divergence and the constant entropy, and the restorations."""
        settings: Settings = self.config.settings
        temperature = settings.taught_temperature(batch.epoch)
        taught = [losses.sharpened(z, self.centre, temperature) for z in numbered(output, "teacher")]
        views: list[tuple[int | None, Tensor]] = list(enumerate(numbered(output, "student")))
        views += [(None, z) for kind in ("occluded", "local") for z in numbered(output, kind)]
        entropy = losses.entropy(taught)
        terms = {"alignment": losses.alignment(taught, views, settings.temperature) - entropy, "entropy": entropy}
        if settings.detail_weight > 0:
            terms["detail"] = settings.detail_weight * torch.cat(numbered(output, "detail")).mean()
        if settings.masked_weight > 0:
            mean = losses.mean_of_tokens if settings.token_loss == "cosine" else losses.mean_of_images
            terms["masked"] = settings.masked_weight * mean(torch.cat(numbered(output, "masked")))
        return terms

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """The teacher follows, then the centres."""
        settings: Settings = self.config.settings
        momentum = along_cosine(settings.momentum, 1.0, batch.progress)
        self.teacher.follow(self.embedder, momentum)
        self.teacher_heads.follow(self.heads, momentum)
        self.centre = losses.moved(self.centre, numbered(output, "teacher"), settings.centre_momentum)
        if "tokens_0" in output:
            self.token_centre = losses.moved(self.token_centre, numbered(output, "tokens"), settings.centre_momentum)

    def param_groups(self) -> list[dict[str, Any]]:
        """Biases and other vectors are not decayed."""
        learned = [p for p in self.parameters() if p.requires_grad]
        vectors = [p for p in learned if p.ndim == 1]
        return [{"params": [p for p in learned if p.ndim > 1]}, {"params": vectors, "weight_decay": 0.0}]

    def memory_state(self) -> dict[str, Any]:
        """The centres."""
        return {"centre": self.centre, "token_centre": self.token_centre}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``memory_state``."""
        self.centre, self.token_centre = state["centre"], state["token_centre"]


def numbered(output: dict[str, Tensor], kind: str) -> list[Tensor]:
    """The outputs KIND_0, KIND_1 and so on, in order."""
    count = sum(name.startswith(f"{kind}_") for name in output)
    return [output[f"{kind}_{number}"] for number in range(count)]
