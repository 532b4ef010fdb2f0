"""SAL's losses on unit features: docs/methods/sal.md. Agents are constants in all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities
from core.memory import unit


def log_multilabels(features: Tensor, agents: Tensor, scale: float) -> Tensor:
    """(b, K) log q = log softmax_k(scale <f, a_k>) of unit features (b, D) and unit agents (K, D)."""
    return F.log_softmax(scale * similarities(features, agents.detach()), dim=1)


def squared_distances(features: Tensor, agents: Tensor) -> Tensor:
    """(b, K) ||f - a_k||^2."""
    agents = agents.detach()
    lengths = features.square().sum(dim=1, keepdim=True) + agents.square().sum(dim=1)
    return lengths - 2 * similarities(features, agents)


def bridges(log_q: Tensor, agents: Tensor) -> Tensor:
    """(b, D) unit vector along sum_k q_k a_k: the image written in the agents of the source."""
    return unit(log_q.exp() @ agents.detach().to(log_q.dtype))


def bridge_contrast(views: tuple[Tensor, Tensor], log_q: tuple[Tensor, Tensor], agents: Tensor, tau: float) -> Tensor:
    """Mean over both directions of -1/B sum_i log softmax_j( <f(v_i), b(v'_j)> / tau )_i.

    views: unit features (B, D) of the two views; log_q: their multilabels (B, K), through which b has a gradient too.
    """
    own = torch.arange(len(views[0]), device=views[0].device)
    there, back = (
        F.cross_entropy(similarities(view, bridges(other, agents)) / tau, own)
        for view, other in zip(views, log_q[::-1], strict=True)
    )
    return (there + back) / 2


def view_consistency(first: Tensor, second: Tensor) -> Tensor:
    """1/2 [KL(q || q') + KL(q' || q)] of log multilabels (B, K), what is on the left a constant; mean over images."""
    there = F.kl_div(second, first.detach(), reduction="batchmean", log_target=True)
    back = F.kl_div(first, second.detach(), reduction="batchmean", log_target=True)
    return (there + back) / 2


def reference_agents(source: Tensor, targets: Tensor, target: Tensor, agents: Tensor, margin: float) -> Tensor:
    """Source features to their own agents, all features away from other agents that are near.

    The mean over a list of terms of weight one: ||f - a_y||^2 of every source feature (B_s, D) with label y (B_s,);
    and of every source and target feature that has near agents, k != y for the source, their mean of
    max(0, margin - ||f - a_k||^2). Near are those of <f, a_k> > 1 - margin / 2.
    """
    to_source = squared_distances(source, agents)
    own = F.one_hot(targets, len(agents)).bool()
    pushed = _pushed(similarities(source, agents.detach()), to_source, margin, own)
    terms = [to_source[own], pushed]
    terms.append(_pushed(similarities(target, agents.detach()), squared_distances(target, agents), margin))
    return torch.cat(terms).mean()


def _pushed(similarity: Tensor, distance: Tensor, margin: float, own: Tensor | None = None) -> Tensor:
    """(m,) of the m rows with an agent that is near: the mean hinge of those."""
    near = similarity > 1 - margin / 2
    if own is not None:
        near = near & ~own
    counts = near.sum(dim=1)
    sums = (F.relu(margin - distance) * near).sum(dim=1)
    return sums[counts > 0] / counts[counts > 0]


def camera_statistics(log_q: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """(V, K) mean and standard deviation (of n - 1) of log q per camera; a camera of one image is left out."""
    seen, counts = torch.unique(cameras, return_counts=True)
    groups = [log_q[cameras == camera] for camera in seen[counts > 1]]
    if not groups:
        return log_q.new_zeros(0, log_q.shape[1]), log_q.new_zeros(0, log_q.shape[1])
    return torch.stack([g.mean(dim=0) for g in groups]), torch.stack([g.std(dim=0) for g in groups])


def camera_consistency(statistics: tuple[Tensor, Tensor], centres: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over cameras and both statistics of the squared distance to its centre (K,); 0 without a camera."""
    distances = [(found - centre).square().sum(dim=1) for found, centre in zip(statistics, centres, strict=True)]
    return torch.cat(distances).sum() / max(1, 2 * len(statistics[0]))
