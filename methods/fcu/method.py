"""FCU (ICCEAI 2021): fine features of patches and coarse ones of clusters that merge bottom-up, learned together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config, per_epochs
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.losses import cluster_nll
from core.memory import cluster_centroids, sequential_update, unit
from core.method import Method
from core.sampling import shuffled_batches
from methods.fcu.heads import GlobalHead, PatchHead
from methods.fcu.losses import attracted, image_loss, patch_loss
from methods.fcu.merging import merge
from methods.fcu.second_view import second_view


@dataclass(frozen=True)
class Settings:
    """docs/methods/fcu.md, "Losses" and "Merging". A weight of 0 leaves its loss out.

    repel_weight, repel_scale: of L_rep; attract_weight, attract_rate: of L_att and of its centres. local_weight: of the
    patch branch, patch_weight L_patch + image_weight L_image. patches, patch_dim, patch_scale, patch_neighbours: of
    L_patch; margin, candidates, nearest, no_negative: of L_image; local_momentum: of the memories of both. dropout: of
    the global feature in L_rep. merge_share: of the images, clusters that a merge removes; merges: how many there are;
    size_penalty: per image of both clusters; first_stage, stage: epochs before the first merge and between two. neck:
    whether the global branch starts after the BNNeck. tested: the branches that make the tested feature. rotation,
    kept_area: of the second view. backbone_rate: its share of the rate.
    """

    repel_weight: float = 1.0
    repel_scale: float = 10.0
    attract_weight: float = 0.1
    attract_rate: float = 0.1
    local_weight: float = 1.0
    patch_weight: float = 2.0
    image_weight: float = 1.0
    patches: int = 6
    patch_dim: int = 256
    patch_scale: float = 10.0
    patch_neighbours: int = 10
    margin: float = 2.0
    candidates: int = 15
    nearest: int = 3
    no_negative: Literal["skipped", "released"] = "skipped"
    local_momentum: float = 0.9
    dropout: float = 0.5
    merge_share: float = 0.05
    merges: int = 15
    size_penalty: float = 0.003
    first_stage: float = per_epochs(20)
    stage: float = per_epochs(2)
    neck: bool = False
    tested: Literal["both", "coarse", "patches"] = "both"
    rotation: float = 10.0
    kept_area: tuple[float, float] = (0.7, 0.95)
    backbone_rate: float = 0.1

    def __post_init__(self) -> None:
        if not self.is_global and not self.is_local:
            raise ValueError("settings: all weights are 0; give local_weight, repel_weight or attract_weight one")
        for name in ("dropout", "merge_share", "local_momentum", "attract_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"settings.{name} is a share in [0, 1], not {getattr(self, name)}")
        if self.dropout == 1:
            raise ValueError("settings.dropout 1 leaves nothing of a feature; it must be below 1")
        if (self.tested, self.is_global) == ("coarse", False) or (self.tested, self.is_local) == ("patches", False):
            raise ValueError(f"settings.tested is '{self.tested}', but all weights of that branch are 0")
        low, high = self.kept_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"settings.kept_area is two ordered shares in (0, 1], not {self.kept_area}")
        if not self.first_stage > 0 or not self.stage > 0:
            raise ValueError(f"settings.first_stage {self.first_stage} and stage {self.stage} are epochs, above 0")

    @property
    def is_global(self) -> bool:
        """Whether the global branch is there."""
        return self.repel_weight > 0 or self.attract_weight > 0

    @property
    def is_local(self) -> bool:
        """Whether the patch branch is there."""
        return self.local_weight > 0

    def merged(self, epoch: int) -> int:
        """How many merges precede an epoch, counted from 0; none without the global branch."""
        if not self.is_global or epoch < self.first_stage:
            return 0
        # The quotient of two rounded numbers may fall short of the whole number that it stands for.
        return min(self.merges, 1 + math.floor((epoch - self.first_stage) / self.stage + 1e-9))


@dataclass
class Clusters:
    """The global branch's memories of one stage: V (C, D), zero at first; centres (C, D); sizes (C,)."""

    labels: np.ndarray
    rows: Tensor
    centres: Tensor
    sizes: Tensor


@dataclass
class Patches:
    """The patch branch's memories: W (P, N, d) of patches; agents (N, P d) of images, and which were visited (N,)."""

    memory: Tensor
    agents: Tensor
    seen: Tensor


class FCU(Method):
    """L = L_rep + attract L_att + local (2 L_patch + L_image)."""

    Settings = Settings

    clusters: Clusters | None = None
    local: Patches | None = None
    kept: Tensor | None = None  # (b, D) of a step: 0 where dropout strikes, else 1 / (1 - dropout)

    def __init__(self, config: Config, embedder: Embedder, capacity: int) -> None:
        super().__init__(config, embedder, capacity)
        settings: Settings = config.settings
        self.whole = GlobalHead(embedder.dim) if settings.is_global else None
        self.parts = PatchHead(embedder.dim, settings.patches, settings.patch_dim) if settings.is_local else None
        self.next_local: tuple[Tensor, Tensor] | None = None  # W and the agents after this batch, read by its losses
        if not (settings.neck and settings.is_global):
            embedder.bnneck.requires_grad_(False)  # DDP insists on a use of what learns

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """No labels; a second view where the patch branch is on."""
        return Needs(views=2 if config.settings.is_local else 1)

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """The plain view, and a changed one; with them the step's dropout, drawn for the batch on all processes."""
        settings: Settings = self.config.settings
        drawn = torch.rand(len(pixels.rows), self.embedder.dim, generator=pixels.stream("dropout"))
        self.kept = (drawn[pixels.part] >= settings.dropout) / (1 - settings.dropout)
        views = [pixels.augmented(0)]
        return [*views, second_view(pixels, settings.rotation, settings.kept_area)] if settings.is_local else views

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``global`` (b, D), unit, and ``dropped`` (b, D); ``patches_0``, ``patches_1`` (b, P, d) of the two views."""
        feature_map, pooled = self.embedder.map_and_pool(batch.images[0])
        output = {}
        if self.whole is not None:
            assert self.kept is not None, "make_views comes first"
            feature = self.whole(self._coarse(pooled))
            output = {"global": feature, "dropped": feature * self.kept.to(feature)}
        if self.parts is not None:
            second = self.embedder.map(batch.images[1])
            output |= {"patches_0": self.parts(feature_map), "patches_1": self.parts(second)}
        return output

    def _coarse(self, pooled: Tensor) -> Tensor:
        return self.embedder.neck(pooled) if self.config.settings.neck else pooled

    def embed(self, images: Tensor, cameras: Tensor | None = None) -> dict[str, Tensor]:
        """``feature``: the pooled map and all patches, each of length 1, side by side, as far as ``tested``."""
        tested, seen = self.config.settings.tested, self.describe(images)
        chosen = [
            unit(seen[name].flatten(1)) for name in ("coarse", "patches") if name in seen and tested in ("both", name)
        ]
        return {"feature": torch.cat(chosen, dim=1)}

    def describe(self, images: Tensor) -> dict[str, Tensor]:
        """``coarse`` (b, D), tested and merged by; ``global`` (b, D), in the space of the centres; ``patches``."""
        feature_map, pooled = self.embedder.map_and_pool(images)
        found = {}
        if self.whole is not None:
            coarse = self._coarse(pooled)
            found = {"coarse": unit(coarse), "global": self.whole(coarse)}
        return found | ({"patches": self.parts(feature_map)} if self.parts is not None else {})

    def extract(self, data: TrainingData) -> dict[str, Tensor]:
        """What ``describe`` gives of every training image; ``feature`` is what clusters merge by, or the patches."""
        found = data.extract(lambda pixels, rows: self.describe(data.prepare(pixels)))
        return {**found, "feature": found["coarse"] if self.whole is not None else found["patches"].flatten(1)}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every image by itself, until merges that are due unite clusters; each opens a stage."""
        settings: Settings = self.config.settings
        due = settings.merged(epoch) - (settings.merged(epoch - 1) if epoch else 0)
        ids = np.arange(len(data)) if self.clusters is None else self.clusters.labels
        if due:
            with data.timer("cluster"):
                gone = int(settings.merge_share * len(data)) * due
                ids = merge(data.embedded("coarse"), ids, gone, settings.size_penalty)
        notes = {"largest_cluster": float(np.bincount(ids).max())} if settings.is_global else {}
        return Labels(ids, notes=notes, new_stage=due > 0)

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """A stage begins with V at zero and centres at its clusters' means; the first epoch also fills W."""
        if self.whole is not None and (self.clusters is None or labels.new_stage):
            centres = cluster_centroids(data.embedded("global"), labels.ids)
            sizes = torch.as_tensor(np.bincount(labels.ids)).to(centres.device)
            self.clusters = Clusters(labels.ids, torch.zeros_like(centres), centres, sizes)
        if self.parts is not None and self.local is None:
            memory = data.embedded("patches").transpose(0, 1).contiguous()
            self.begin(memory)

    def begin(self, memory: Tensor) -> None:
        """Patch memory W (P, N, d), and agents of images of which none was visited."""
        images, width = memory.shape[1], memory.shape[0] * memory.shape[2]
        self.local = Patches(memory, memory.new_zeros(images, width), memory.new_zeros(images, dtype=torch.bool))

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """Shuffled images; an incomplete last batch is dropped."""
        size = self.config.sampler.batch
        return (rows for rows in shuffled_batches(len(data), size, rng) if len(rows) == size)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Both branches' terms; V and centres are read before this batch changes them, W and agents after."""
        terms = self.global_terms(output, batch)
        if self.parts is not None:
            views = torch.stack([output["patches_0"].flatten(1), output["patches_1"].flatten(1)], dim=1)
            terms |= self.local_terms(output["patches_0"], views, batch.indices)
        return terms

    def global_terms(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """L_rep of ``dropped`` and L_att of ``global``."""
        settings: Settings = self.config.settings
        terms = {}
        if settings.repel_weight:
            assert self.clusters is not None, "start_epoch comes first"
            repelled = cluster_nll(output["dropped"], self.clusters.rows, batch.targets, 1 / settings.repel_scale)
            terms["repelled"] = settings.repel_weight * repelled
        if settings.attract_weight:
            assert self.clusters is not None, "start_epoch comes first"
            grouped = self.clusters.sizes[batch.targets] > 1
            near = attracted(output["global"], self.clusters.centres[batch.targets], grouped)
            terms["attracted"] = settings.attract_weight * near
        return terms

    def local_terms(self, patches: Tensor, views: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Of patches (B, P, d) of the plain view and image-level vectors (B, 2, E) of both, of the images ``rows``."""
        settings: Settings = self.config.settings
        memory, agents = self._visited(patches.detach(), views.detach().mean(dim=1), rows)
        self.next_local = memory[:, rows], agents
        patch = patch_loss(patches, memory, rows, settings.patch_scale, settings.patch_neighbours)
        released = settings.no_negative == "released"
        image = image_loss(views, agents, settings.margin, settings.candidates, settings.nearest, released)
        weight = settings.local_weight
        return {"patch": weight * settings.patch_weight * patch, "image": weight * settings.image_weight * image}

    def _visited(self, patches: Tensor, means: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """W (P, N, d) and the batch's agents (B, E) as this visit leaves them, neither made a unit vector."""
        assert self.local is not None, "start_epoch comes first"
        keep = self.config.settings.local_momentum
        memory = self.local.memory.clone()
        memory[:, rows] = keep * memory[:, rows] + (1 - keep) * patches.transpose(0, 1)
        later = keep * self.local.agents[rows] + (1 - keep) * means
        return memory, torch.where(self.local.seen[rows, None], later, means)

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """V_y <- unit((V_y + f) / 2), f after dropout; c_y <- unit(0.9 c_y + 0.1 f), f before; W and agents as read."""
        if self.clusters is not None:
            sequential_update(self.clusters.rows, batch.targets, output["dropped"], 0.5)
            keep = 1 - self.config.settings.attract_rate
            sequential_update(self.clusters.centres, batch.targets, output["global"], keep)
        if self.local is not None and self.next_local is not None:
            self.local.memory[:, batch.indices], self.local.agents[batch.indices] = self.next_local
            self.local.seen[batch.indices] = True
            self.next_local = None

    def param_groups(self) -> list[dict[str, Any]]:
        """Heads, and the backbone at its share of the rate."""
        rate = self.config.settings.backbone_rate
        heads = [head for head in (self.whole, self.parts) if head is not None]
        return [
            {"params": [p for head in heads for p in head.parameters()]},
            {"params": [p for p in self.embedder.parameters() if p.requires_grad], "lr_scale": rate},
        ]

    def memory_state(self) -> dict[str, Any]:
        """Clusters of the stage and the patch branch's memories outlive the epoch."""
        state: dict[str, Any] = {}
        if self.clusters is not None:
            kept = self.clusters
            state["clusters"] = [torch.as_tensor(kept.labels), kept.rows.clone(), kept.centres.clone(), kept.sizes]
        if self.local is not None:
            state["local"] = [self.local.memory.clone(), self.local.agents.clone(), self.local.seen.clone()]
        return state

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """As saved; a run that has not begun has none."""
        if "clusters" in state:
            labels, rows, centres, sizes = state["clusters"]
            self.clusters = Clusters(labels.cpu().numpy(), rows, centres, sizes)
        if "local" in state:
            self.local = Patches(*state["local"])
