"""k-reciprocal re-ranking of query x gallery distances, on the sparse Jaccard core."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.jaccard import half_size, jaccard_from_shared, reciprocal_encoding, shared_weight
from core.neighbors import as_float_matrix, order_lists, row_blocks
from core.precision import full_precision


class Reranked:
    """Re-ranked distances (Q, G), produced block by block: memory grows with Q + G only.

    Zhong et al., CVPR 2017, as OpenUnReID computes it: O are squared Euclidean distances over
    query + gallery, each row divided by its own maximum; the result is (1 - lambda) Jaccard +
    lambda O. Lists hold k1 + 1 entries, the image itself included; clustering clips them to k1.
    """

    def __init__(self, query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> None:
        if k1 < 1 or k2 < 1:
            raise UserError(f"k1 = {k1} and k2 = {k2} must both be at least 1.")
        self.features = as_float_matrix(torch.cat([query, gallery.to(query.device)]))
        self.queries = len(query)
        self.lambda_value = lambda_value
        ranking, farthest = _nearest_and_farthest(self.features, max(k1 + 1, k2))
        self.scale = 1 / np.maximum(farthest, np.finfo(np.float32).tiny)
        encoding = reciprocal_encoding(self.features, ranking, k1 + 1, half_size(k1), k2, self.scale)
        self.query_rows = encoding[: self.queries]
        self.gallery_columns = encoding[self.queries :].tocsc()

    def block(self, rows: slice) -> Tensor:
        """Distances (q, G) float32 of the queries ``rows``, on the device of the features."""
        shared = shared_weight(self.query_rows[rows], self.gallery_columns).toarray()
        jaccard = torch.from_numpy(jaccard_from_shared(shared)).to(self.features.device)
        query, gallery = self.features[: self.queries][rows], self.features[self.queries :]
        scale = torch.from_numpy(self.scale[: self.queries][rows]).to(query)
        original = squared_distances(query, gallery).mul_(scale[:, None])
        return jaccard.mul_(1 - self.lambda_value).add_(original, alpha=self.lambda_value)


def rerank(query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> Tensor:
    """The whole (Q, G) float32 matrix of `Reranked`, where it fits into memory."""
    reranked = Reranked(query, gallery, k1, k2, lambda_value)
    blocks = [reranked.block(rows) for rows in row_blocks(len(query), len(gallery))]
    return torch.cat(blocks)


def squared_distances(query: Tensor, gallery: Tensor) -> Tensor:
    """Squared Euclidean distances (q, g), never negative."""
    with full_precision(query.device):
        norms = gallery.square().sum(dim=1)
        block = torch.addmm(norms[None], query, gallery.T, alpha=-2)
        return block.add_(query.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def _nearest_and_farthest(features: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists (N, k) of nearest images, each starting with itself, and (N,) largest distances."""
    count = len(features)
    nearest, farthest = [], []
    for rows in row_blocks(count, count):
        block = squared_distances(features[rows], features)
        nearest.append(block.topk(min(k, count), dim=1, largest=False))
        farthest.append(block.amax(dim=1))
    distance = torch.cat([block.values for block in nearest]).cpu().numpy()
    index = torch.cat([block.indices for block in nearest]).cpu().numpy()
    return order_lists(-distance, index, own=True)[1], torch.cat(farthest).cpu().numpy()
