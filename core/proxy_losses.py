"""Camera-aware proxy losses, one value per image: similarities in, (B,) losses out.

Equations: docs/methods/cap.md, "Losses" (L_inter, L_intra), docs/methods/o2cap.md, "Losses" (online term), and
docs/methods/pplr.md, "Losses" (camera contrast).
``logits`` (B, U) are <f_i, V_u> / tau_c over the U proxies; nothing but them carries a gradient.

``refill``: where the others are fewer than the negatives asked for, the masked proxies fill their list, most similar
first, as the codes of CAP and PPLR do by accident. A positive among the negatives counts twice in the softmax.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses import similarities

LOG_2 = math.log(2)


def inter_camera(logits: Tensor, same_cluster: Tensor, negatives: int, refill: bool = False) -> Tensor:
    """L_inter(i) = -1/|P| sum_{u in P} log( exp z_u / sum_{v in P u N} exp z_v ), z the logits of image i.

    P: the proxies of the image's cluster, its own camera's included (CAP; PPLR leaves that one out).
    N: the ``negatives`` most similar of the others, all of them where there are fewer. same_cluster (B, U).
    """
    return uniform_cross_entropy(logits, same_cluster, hardest(logits, same_cluster, negatives, refill))


def intra_camera(logits: Tensor, own_proxy: Tensor, same_camera: Tensor) -> Tensor:
    """L_intra(i): cross-entropy over the proxies of the image's camera alone. own_proxy (B,), same_camera (B, U)."""
    positive = torch.zeros_like(same_camera).scatter_(1, own_proxy[:, None], True)
    return uniform_cross_entropy(logits, positive, same_camera & ~positive)


def camera_contrast(
    features: Tensor,
    same_cluster: Tensor,
    same_camera: Tensor,
    proxies: Tensor,
    temperature: float,
    negatives: int,
    refill: bool = False,
) -> Tensor:
    """Softmax of each image over its cluster's proxies of other cameras and the hardest proxies of other clusters.

    features (B, D), L2-normalised inside; proxies (U, D) unit rows; same_cluster, same_camera (B, U). The mean over
    positives of -log p, 0 for an image without any, summed and divided by B. The proxy of an image's own
    cluster and camera is in neither set, unless ``refill`` takes it.
    """
    logits = similarities(F.normalize(features, dim=1), proxies) / temperature
    positive = same_cluster & ~same_camera
    negative = hardest(logits, same_cluster, negatives, refill)
    has_positive = positive.any(dim=1)
    # An anchor without a positive is left out below; all its logits stay, so that its softmax is defined.
    chosen = positive | negative | ~has_positive[:, None]
    twice = LOG_2 * (positive & negative)
    log_p = F.log_softmax((logits + twice).masked_fill(~chosen, -torch.inf), dim=1) - twice
    per_image = -log_p.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return per_image.masked_fill(~has_positive, 0).sum() / len(features)


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

    positive, others (B, U) boolean; a positive that is among the others too counts twice in the softmax.
    """
    counted = logits + LOG_2 * (positive & others)
    total = counted.masked_fill(~(positive | others), -torch.inf).logsumexp(dim=1)
    return total - (logits * positive).sum(dim=1) / positive.sum(dim=1)


def hardest(logits: Tensor, masked: Tensor, count: int, refill: bool = False) -> Tensor:
    """(B, U) boolean: the ``count`` highest logits outside ``masked`` (B, U); with ``refill`` it goes on inside."""
    scores = logits.detach()
    if not refill:
        return most_similar(scores.masked_fill(masked, -torch.inf), count)
    below = scores.amax() - scores.amin() + 1  # takes the masked ones under all others, in their own order
    return most_similar(scores - below * masked, count)


def most_similar(scores: Tensor, count: int) -> Tensor:
    """(B, U) boolean: the ``count`` highest scores of each row, or all finite ones where there are fewer."""
    values, places = scores.topk(min(count, scores.shape[1]), dim=1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, values > -torch.inf)


def sum_of_camera_means(losses: Tensor, cameras: Tensor) -> Tensor:
    """sum_c mean_{i in c} loss_i over the cameras of the batch, as CAP weighs its images; losses, cameras (B,)."""
    same = cameras[:, None] == cameras[None, :]
    return (losses / same.sum(dim=1)).sum()
