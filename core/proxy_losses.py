"""Camera-aware proxy losses, one value per image: similarities in, (B,) losses out.

Equations: docs/methods/vitc_ureid.md, "Losses" (L_inter, L_intra) and "Online term".
``logits`` (B, U) are <f_i, V_u> / tau_c over the U proxies; nothing but them carries a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inter_camera(logits: Tensor, same_cluster: Tensor, negatives: int) -> Tensor:
    """L_inter(i) = -1/|P| sum_{u in P} log( exp z_u / sum_{v in P u N} exp z_v ), z the logits of image i.

    P: the proxies of the image's cluster, its own camera's included (CAP; PPLR leaves that one out).
    N: the ``negatives`` most similar of the others, all of them where there are fewer. same_cluster (B, U).
    """
    hard = most_similar(logits.detach().masked_fill(same_cluster, -torch.inf), negatives)
    return uniform_cross_entropy(logits, same_cluster, hard)


def intra_camera(logits: Tensor, own_proxy: Tensor, same_camera: Tensor) -> Tensor:
    """L_intra(i): cross-entropy over the proxies of the image's camera alone. own_proxy (B,), same_camera (B, U)."""
    positive = torch.zeros_like(same_camera).scatter_(1, own_proxy[:, None], True)
    return uniform_cross_entropy(logits, positive, same_camera)


def online(logits: Tensor, association: Tensor, proxy_cameras: Tensor, positives: int, negatives: int) -> Tensor:
    """O2CAP's online term: positives are found by similarity at this step, whatever their clusters.

    P: of the proxies that are most similar in their camera, the ``positives`` best; N: the ``negatives`` most similar
    of all others. association (B, U): the similarities that both are chosen by; proxy_cameras (U,).
    """
    association = association.detach()
    best = torch.full_like(association, -torch.inf)
    for camera in torch.unique(proxy_cameras).tolist():
        of_camera = torch.nonzero(proxy_cameras == camera).flatten()
        similarity, place = association[:, of_camera].max(dim=1, keepdim=True)
        best.scatter_(1, of_camera[place], similarity)
    positive = most_similar(best, positives)
    hard = most_similar(association.masked_fill(positive, -torch.inf), negatives)
    return uniform_cross_entropy(logits, positive, hard)


def associations(similarity: Tensor, proxies: Tensor, own_proxy: Tensor, weight: float) -> Tensor:
    """(B, U) s_iu = w <f_i, V_u> + (1 - w) <V_ui, V_u>; similarity (B, U), proxies (U, D), own_proxy (B,)."""
    return weight * similarity + (1 - weight) * proxies[own_proxy] @ proxies.T


def uniform_cross_entropy(logits: Tensor, positive: Tensor, others: Tensor) -> Tensor:
    """(B,) cross-entropy of the softmax over ``positive`` and ``others`` against 1/|P| on each positive.

    positive, others (B, U) boolean; a positive may be among the others.
    """
    total = logits.masked_fill(~(positive | others), -torch.inf).logsumexp(dim=1)
    return total - (logits * positive).sum(dim=1) / positive.sum(dim=1)


def most_similar(scores: Tensor, count: int) -> Tensor:
    """(B, U) boolean: the ``count`` highest scores of each row, or all finite ones where there are fewer."""
    values, places = scores.topk(min(count, scores.shape[1]), dim=1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, values > -torch.inf)


def sum_of_camera_means(losses: Tensor, cameras: Tensor) -> Tensor:
    """sum_c mean_{i in c} loss_i over the cameras of the batch, as CAP weighs its images; losses, cameras (B,)."""
    same = cameras[:, None] == cameras[None, :]
    return (losses / same.sum(dim=1)).sum()
