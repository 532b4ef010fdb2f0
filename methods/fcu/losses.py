"""FCU's losses: of patches by PAUL's rules, and the attraction to centres. docs/methods/fcu.md, "Losses"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities


def patch_loss(patches: Tensor, memory: Tensor, indices: Tensor, scale: float, neighbours: int) -> Tensor:
    """Mean over images and patches of -log( sum_near exp(-s d_j) / sum_{j != i} exp(-s d_j) ), d squared distances.

    patches (B, P, d); memory (P, N, d), constant, whose rows ``indices`` (B,) are the images' own and left out. Near
    are the ``neighbours`` nearest of the others; the loss is 0 where there are no more others than that.
    """
    own = F.one_hot(indices, memory.shape[1]).bool()
    losses = []
    for rows, bank in zip(patches.unbind(dim=1), memory.detach(), strict=True):
        squared = rows.square().sum(dim=1, keepdim=True) + bank.square().sum(dim=1) - 2 * similarities(rows, bank)
        logits = (-scale * squared).masked_fill(own, -torch.inf)
        near = logits.topk(min(neighbours, memory.shape[1] - 1), dim=1).values
        losses.append(logits.logsumexp(dim=1) - near.logsumexp(dim=1))
    return torch.stack(losses).mean()


def image_loss(
    views: Tensor, agents: Tensor, margin: float, candidates: int, nearest: int, released: bool = False
) -> Tensor:
    """Mean over the 2 B views z of max(0, margin + ||z - u|| - ||z - u_neg||).

    views (B, 2, E); agents (B, E), constant, u the image's own. u_neg: of the ``candidates`` nearest agents of other
    images, the first that does not count u among its ``nearest`` agents, itself included. Without one the view adds
    nothing; in the ``released`` code it adds margin + ||z - u||.
    """
    images = len(agents)
    if images < 2:
        return views.new_zeros(())
    agents = agents.detach()
    owner = torch.arange(images, device=agents.device).repeat_interleave(views.shape[1])
    distance = torch.cdist(views.flatten(0, 1), agents, compute_mode="donot_use_mm_for_euclid_dist")
    own = F.one_hot(owner, images).bool()
    others = distance.detach().masked_fill(own, torch.inf)
    order = others.argsort(dim=1, stable=True)[:, : min(candidates, images - 1)]
    between = torch.cdist(agents, agents, compute_mode="donot_use_mm_for_euclid_dist")
    known = torch.zeros_like(own[:images]).scatter_(1, between.topk(min(nearest, images), largest=False).indices, True)
    stranger = ~known[order, owner[:, None]]
    first = order.gather(1, stranger.int().argmax(dim=1, keepdim=True))
    found = stranger.any(dim=1)
    positive, negative = distance[own], distance.gather(1, first)[:, 0]
    apart = torch.where(found, negative, torch.zeros_like(negative))
    losses = F.relu(margin + positive - apart)
    return (losses if released else losses * found).mean()


def attracted(features: Tensor, centres: Tensor, grouped: Tensor) -> Tensor:
    """Mean of ||f_i - c_i||^2 / 2 over the images that are ``grouped`` (B,); 0 where none is.

    features (B, D); centres (B, D), each image's own, constant.
    """
    squared = (features - centres.detach()).square().sum(dim=1)
    return (squared * grouped).sum() / (2 * max(1, int(grouped.sum())))
