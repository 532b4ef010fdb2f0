"""Memory banks of unit features: read by the loss, updated explicitly after the optimiser step.

The update functions change a bank in place, read detached features, and never loop over the batch.
They group the batch with a stable sort and write distinct rows only, so they are deterministic on
CPU and CUDA, and processes that see the same batch hold the same bank. Banks are float32, or
float64 when built from float64 features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from core.losses import similarities
from core.precision import at_least_float32


def unit(features: Tensor) -> Tensor:
    """(N, D) rows divided by their Euclidean norm."""
    return F.normalize(features, dim=1)


class Groups(NamedTuple):
    """Positions grouped by key: order[starts[g] : starts[g] + counts[g]] have keys[g].

    keys (G,) ascending; order (B,) keeps the batch order within a group; starts, counts (G,).
    """

    keys: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    def occurrences(self) -> Tensor:
        """(B,) for each entry of ``order``, how many entries of its group come before it."""
        place = torch.arange(len(self.order), device=self.order.device)
        return place - self.starts.repeat_interleave(self.counts)

    def rounds(self) -> Iterator[Tensor]:
        """Positions of the first occurrence of every key, then of the second ones, and so on."""
        occurrence, by_round = torch.sort(self.occurrences(), stable=True)
        _, sizes = torch.unique_consecutive(occurrence, return_counts=True)
        yield from self.order[by_round].split(sizes.tolist())

    def means(self, features: Tensor) -> Tensor:
        """(G, D) mean feature of each group, summed in batch order."""
        # An embedding bag adds up its rows one by one on every device; index_add is atomic on CUDA.
        return F.embedding_bag(self.order, features, self.starts, mode="mean")


def group(keys: Tensor) -> Groups:
    """Group the positions of ``keys`` (B,) by value."""
    ordered, order = torch.sort(keys, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    return Groups(distinct, order, counts.cumsum(0) - counts, counts)


@torch.no_grad()
def sequential_update(bank: Tensor, rows: Tensor, features: Tensor, momentum: float) -> None:
    """bank[r] <- unit(momentum bank[r] + (1 - momentum) f), sample after sample in batch order.

    bank (R, D), rows (B,), features (B, D). Samples of different rows do not affect each other, so
    the k-th occurrences of all rows are applied at once, in as many rounds as the most frequent
    row has samples.
    """
    features = features.to(bank.dtype)
    for positions in _group_rows(rows, len(bank)).rounds():
        _mix(bank, rows[positions], features[positions], momentum)


@torch.no_grad()
def hardest_update(bank: Tensor, rows: Tensor, features: Tensor, momentum: float) -> None:
    """bank[r] <- unit(momentum bank[r] + (1 - momentum) f*), once for each row present.

    f* is the sample of r least similar to the row before this batch, the first of equals.
    bank (R, D), rows (B,), features (B, D).
    """
    features = features.to(bank.dtype)
    groups = _group_rows(rows, len(bank))
    by_similarity = torch.sort((features * bank[rows]).sum(dim=1), stable=True).indices
    hardest_first = by_similarity[torch.sort(rows[by_similarity], stable=True).indices]
    _mix(bank, groups.keys, features[hardest_first[groups.starts]], momentum)


@torch.no_grad()
def mean_update(bank: Tensor, rows: Tensor, features: Tensor, momentum: float, unit_mean: bool = False) -> None:
    """bank[r] <- unit(momentum bank[r] + (1 - momentum) mean of r's samples), once for each row.

    bank (R, D), rows (B,), features (B, D). ``unit_mean`` normalises the mean before it is mixed
    in; HHCL's released code does not.
    """
    groups = _group_rows(rows, len(bank))
    means = groups.means(features.to(bank.dtype))
    _mix(bank, groups.keys, unit(means) if unit_mean else means, momentum)


@torch.no_grad()
def overwrite_slots(slots: Tensor, classes: Tensor, features: Tensor) -> None:
    """The i-th sample of class c in batch order becomes slots[c, i] as it is; other slots stay.

    slots (C, K, D), classes (B,), features (B, D). Samples beyond the K-th are left out: the
    released code has no slot for them (it fails), as its sampler never draws more than K.
    """
    groups = _group_rows(classes, len(slots))
    slot = groups.occurrences()
    fits = slot < slots.shape[1]
    samples = groups.order[fits]
    slots[classes[samples], slot[fits]] = features[samples].to(slots.dtype)


def _mix(bank: Tensor, rows: Tensor, features: Tensor, momentum: float) -> None:
    """One momentum step of distinct rows."""
    bank[rows] = unit(momentum * bank[rows] + (1 - momentum) * features)


def _group_rows(rows: Tensor, size: int) -> Groups:
    """Group row numbers; a ValueError for one that is no row (-1 would silently hit the last)."""
    groups = group(rows)
    if len(rows) and (groups.keys[0] < 0 or groups.keys[-1] >= size):
        raise UserError(
            f"memory update: a bank of {size} rows was given row numbers from "
            f"{int(groups.keys[0])} to {int(groups.keys[-1])}; leave outliers (-1) out of the "
            "batch, and rebuild the memory when the labels change"
        )
    return groups


UPDATES: dict[str, Callable[[Tensor, Tensor, Tensor, float], None]] = {
    "sequential": sequential_update,
    "hardest": hardest_update,
    "mean": mean_update,
}


class Memory:
    """A bank of unit rows (R, D) with a momentum and an update rule (a key of UPDATES)."""

    def __init__(self, rows: Tensor, momentum: float, update: str = "sequential") -> None:
        if update not in UPDATES:
            raise UserError(f"memory update '{update}' is unknown; choose one of {list(UPDATES)}")
        if not 0 <= momentum <= 1:
            raise UserError(f"memory momentum must lie between 0 and 1, got {momentum}")
        self.rows = unit(at_least_float32(rows.detach()))
        self.momentum = momentum
        self._update = UPDATES[update]

    def __len__(self) -> int:
        return len(self.rows)

    def logits(self, features: Tensor, temperature: float) -> Tensor:
        """(B, R) <f, row> / temperature of features (B, D), which alone receive a gradient."""
        return similarities(features, self.rows) / temperature

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Apply the update rule with features (B, D) to the rows (B,) they belong to."""
        self._update(self.rows, rows, features.detach(), self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """The rows, for a memory that outlives an epoch."""
        return {"rows": self.rows.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the rows; a ValueError when they are another memory's."""
        rows = state["rows"]
        if rows.shape != self.rows.shape:
            raise UserError(
                f"memory: the checkpoint holds rows {tuple(rows.shape)}, this run needs "
                f"{tuple(self.rows.shape)}; it belongs to another dataset or backbone"
            )
        self.rows.copy_(rows)


class CentroidMemory(Memory):
    """One row per cluster (C, D), updated by pseudo-label; rebuilt each epoch."""

    @classmethod
    def of_clusters(
        cls,
        features: Tensor,
        labels: np.ndarray | Tensor,
        momentum: float,
        update: str = "sequential",
    ) -> CentroidMemory:
        """Rows are the normalised means of features (N, D) per cluster of labels (N,)."""
        return cls(cluster_centroids(features, labels), momentum, update)


class InstanceMemory(Memory):
    """One row per training image (N, D), updated by image index, in batch order."""

    def __init__(self, features: Tensor, momentum: float) -> None:
        super().__init__(features, momentum, "sequential")


class ProxyMemory(Memory):
    """One row per (cluster, camera) that has images, in that order: the proxies of CAP (arXiv 2012.10674).

    clusters, cameras (U,): those of each proxy; of_image (N,): each image's proxy, -1 for outliers.
    """

    def __init__(
        self,
        features: Tensor,
        labels: np.ndarray | Tensor,
        cameras: np.ndarray | Tensor,
        momentum: float,
        update: str = "sequential",
    ) -> None:
        """Rows are normalised means of features (N, D) with labels (N,) and cameras (N,).

        Images of unknown camera (-1) count as taken by one further camera.
        """
        labels = torch.as_tensor(labels, dtype=torch.int64, device=features.device)
        cameras = torch.as_tensor(cameras, dtype=torch.int64, device=features.device)
        inside = labels >= 0
        pairs = torch.stack([labels[inside], cameras[inside]], dim=1)
        pairs, proxies = torch.unique(pairs, dim=0, return_inverse=True)
        self.clusters, self.cameras = pairs.unbind(dim=1)
        self.of_image = torch.full_like(labels, -1)
        self.of_image[inside] = proxies
        super().__init__(cluster_centroids(features, self.of_image), momentum, update)

    def proxies_of_cluster(self, cluster: int) -> Tensor:
        """Ids of the proxies of one cluster, in the order of their cameras."""
        return torch.nonzero(self.clusters == cluster).flatten()

    def same_cluster(self, labels: Tensor) -> Tensor:
        """(B, U) whether each proxy is of the cluster of each sample with labels (B,)."""
        return labels[:, None] == self.clusters[None, :]

    def same_camera(self, cameras: Tensor) -> Tensor:
        """(B, U) whether each proxy is of the camera of each sample with cameras (B,)."""
        return cameras[:, None] == self.cameras[None, :]


class SlotMemory:
    """K instances per cluster (C, K, D): HHCL's instance bank, ``CMhybrid_v2`` of its released code."""

    def __init__(self, slots: Tensor) -> None:
        self.slots = F.normalize(at_least_float32(slots.detach()), dim=2)

    @classmethod
    def sample(
        cls,
        features: Tensor,
        labels: np.ndarray | Tensor,
        slots: int,
        generator: torch.Generator,
    ) -> SlotMemory:
        """Fill each cluster's slots with features (N, D) of members drawn with replacement.

        labels (N,), outliers left out. ``generator`` is a CPU one, so that devices agree.
        """
        groups = _group_images(features, labels)
        draw = torch.rand(len(groups.keys), slots, generator=generator, dtype=torch.float64)
        place = (draw.to(features.device) * groups.counts[:, None]).long()
        return cls(features[groups.order[groups.starts[:, None] + place]])

    def logits(self, features: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """(B, C) similarity / temperature: own cluster's least similar slot, others' most similar.

        features (B, D) unit, targets (B,); gradient reaches the features only.
        """
        clusters, count, _ = self.slots.shape
        similarity = similarities(features, self.slots.flatten(0, 1)).view(-1, clusters, count)
        own = targets[:, None] == torch.arange(clusters, device=targets.device)
        hardest = torch.where(own, similarity.min(dim=2).values, similarity.max(dim=2).values)
        return hardest / temperature

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Overwrite the first slots of each class present with its samples, in batch order."""
        overwrite_slots(self.slots, targets, features.detach())


@torch.no_grad()
def cluster_means(features: Tensor, labels: np.ndarray | Tensor) -> Tensor:
    """(C, D) means of features (N, D) per label (N,) of 0..C-1; -1 is left out."""
    return _group_images(features, labels).means(at_least_float32(features))


def cluster_centroids(features: Tensor, labels: np.ndarray | Tensor) -> Tensor:
    """(C, D) normalised means of features (N, D) per label (N,) of 0..C-1; -1 is left out."""
    return unit(cluster_means(features, labels))


def _group_images(features: Tensor, labels: np.ndarray | Tensor) -> Groups:
    """Images grouped by cluster, outliers left out; a ValueError unless the clusters are 0..C-1."""
    labels = torch.as_tensor(labels, dtype=torch.int64, device=features.device)
    members = torch.nonzero(labels >= 0).flatten()
    if len(members) == 0:
        raise ValueError("no cluster to build a memory from: every label is -1")
    groups = group(labels[members])
    last = int(groups.keys[-1])
    if last != len(groups.keys) - 1:
        raise UserError(
            f"labels must be 0..C-1 without gaps, but {len(groups.keys)} clusters go up to {last}; "
            "renumber them after removing clusters"
        )
    return groups._replace(order=members[groups.order])
