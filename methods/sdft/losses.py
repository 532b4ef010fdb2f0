"""SDR and SDCL as pure functions, and the memory of the stripes: docs/methods/sdft.md, "SDR" and "SDCL"."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.memory import Memory, cluster_centroids


def feature_consistency(aggregate: Tensor, whole: Tensor) -> Tensor:
    """R_feat = mean_i (1 - <a_i, g_i>) of unit a, g (B, d); both sides receive a gradient."""
    return (1 - (aggregate * whole).sum(dim=1)).mean()


def cluster_consistency(whole_logits: Tensor, aggregate_logits: Tensor) -> Tensor:
    """R_clu = mean_i 1/2 [KL(sg(p_i) || q_i) + KL(sg(q_i) || p_i)], p and q the softmax of two logits (B, K)."""
    log_p, log_q = F.log_softmax(whole_logits, dim=1), F.log_softmax(aggregate_logits, dim=1)
    return (_divergence(log_p.detach(), log_q) + _divergence(log_q.detach(), log_p)) / 2


def identity_logits(parts: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """(B, S, K) scores of parts (B, S, d) against the same stripe of all identities, bank (S, K, d)."""
    return torch.bmm(parts.transpose(0, 1), bank.transpose(1, 2)).transpose(0, 1) / temperature


def stripe_logits(parts: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """(B, S, S) scores of parts (B, S, d) against all stripes of the own identity, bank (S, K, d)[:, targets (B,)]."""
    own = bank[:, targets].transpose(0, 1)
    return torch.bmm(parts, own.transpose(1, 2)) / temperature


def identity_view(parts: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """1/(BS) sum l_id: each stripe's cross-entropy over the identities. Shapes as in ``identity_logits``."""
    logits = identity_logits(parts, bank, temperature)
    return F.cross_entropy(logits.flatten(0, 1), targets.repeat_interleave(logits.shape[1]))


def stripe_view(parts: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """1/(BS) sum l_str: each stripe told from the other stripes of its identity. Shapes as in ``stripe_logits``."""
    logits = stripe_logits(parts, bank, targets, temperature)
    stripes = torch.arange(logits.shape[1], device=logits.device)
    return F.cross_entropy(logits.flatten(0, 1), stripes.repeat(len(logits)))


def joint_view(parts: Tensor, bank: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Both views in one softmax: over M_p[s, k] for every k, and M_p[s', y] for every s' other than s."""
    across = stripe_logits(parts, bank, targets, temperature)
    count = across.shape[1]
    itself = torch.eye(count, dtype=torch.bool, device=across.device)  # M_p[s, y] stands among the identities
    logits = torch.cat([identity_logits(parts, bank, temperature), across.masked_fill(itself, -torch.inf)], dim=2)
    return F.cross_entropy(logits.flatten(0, 1), targets.repeat_interleave(count))


class StripeMemory:
    """M_p: one unit row per stripe and cluster, updated sequentially by the stripes of that cluster's images."""

    def __init__(self, parts: Tensor, labels: np.ndarray | Tensor, momentum: float) -> None:
        """Rows are the normalised means of parts (N, S, d) per cluster of labels (N,), outliers left out."""
        centroids = torch.stack([cluster_centroids(part, labels) for part in parts.unbind(dim=1)])
        self.stripes, self.clusters = centroids.shape[:2]
        self._memory = Memory(centroids.flatten(0, 1), momentum, "sequential")

    @property
    def bank(self) -> Tensor:
        """(S, K, d); a view, which later updates change."""
        return self._memory.rows.view(self.stripes, self.clusters, -1)

    def update(self, parts: Tensor, targets: Tensor) -> None:
        """M_p[s, y] <- unit(m M_p[s, y] + (1 - m) f_s) for parts (B, S, d) of targets (B,), in batch order."""
        first = self.clusters * torch.arange(self.stripes, device=targets.device)
        self._memory.update(parts.flatten(0, 1), (targets[:, None] + first).flatten())


def _divergence(log_target: Tensor, log_estimate: Tensor) -> Tensor:
    """Mean over the rows of KL(target || estimate), both given as log-probabilities (B, K)."""
    return F.kl_div(log_estimate, log_target, reduction="batchmean", log_target=True)
