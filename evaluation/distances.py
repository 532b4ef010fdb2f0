"""Distances between query and gallery features, in blocks, with ties that survive rounding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.errors import UserError
from core.manifest import UNKNOWN
from core.neighbors import squared_norms
from core.precision import full_precision

# Up to this many multiply-adds (about a second on two cores) distances are computed in float64;
# above it, in the precision of the features. Rounding may swap neighbours in a ranking, so
# exactness is taken where it is cheap.
DOUBLE_LIMIT = 2**35
COMPARED = 8  # columns that tell most rows apart, before whole rows are compared

DistanceBlock = Callable[[slice], "np.ndarray | Tensor"]


class EvaluationError(UserError):
    """What was given cannot be ranked; the message names the array and the reason."""


class EuclideanBlocks:
    """Blocks that rank, squared distances less ``query_norms`` (Q,), and the distances that they stand for.

    A block is overwritten by the next, since memory that is new to the process costs time: copy what is to stay.
    ``gallery`` (U, D) holds each distinct row once, and ``shared`` (G,) which of them every gallery image has.
    """

    def __init__(self, query: Tensor, gallery: Tensor, shared: np.ndarray) -> None:
        self.query, self.gallery, self.shared = query, gallery, shared
        self.query_norms = squared_norms(query).cpu().numpy()
        self.gallery_norms = squared_norms(gallery).cpu()
        self.held = np.empty((0, len(gallery)), dtype=self.query_norms.dtype)

    def __call__(self, rows: slice) -> np.ndarray:
        asked = -2 * self.query[rows]
        if len(asked) > len(self.held):
            self.held = np.empty((len(asked), len(self.gallery)), dtype=self.held.dtype)
        distance = inner_products(asked, self.gallery, self.held[: len(asked)])
        torch.from_numpy(distance).add_(self.gallery_norms)  # on all threads
        return distance[:, self.shared] if len(self.gallery) < len(self.shared) else distance

    def true_distance(self, rows: slice, block: np.ndarray) -> np.ndarray:
        """The Euclidean distances (q, G) of these queries, from their block."""
        return np.sqrt(np.maximum(block + self.query_norms[rows, None], 0))


def true_distance(blocks: DistanceBlock, rows: slice, block: np.ndarray) -> np.ndarray:
    """The distances (q, G) that ``block``, asked of ``blocks`` for these queries or some of them, stands for."""
    return blocks.true_distance(rows, block) if isinstance(blocks, EuclideanBlocks) else block


def euclidean_blocks(
    query: np.ndarray | Tensor, gallery: np.ndarray | Tensor, *, normalise: bool = False
) -> EuclideanBlocks:
    """Blocks of squared Euclidean distance less the query's own squared norm, which ranks the same.

    Leaving that constant out spares the rounding that would merge near distances. Equal gallery
    vectors are computed once and shared: a matrix product may round the same row differently at its
    tiles' edges, and ties would break.
    """
    query, gallery = _features("query", query), _features("gallery", gallery)
    if query.shape[1] != gallery.shape[1]:
        raise EvaluationError(
            f"query_features has {query.shape[1]} columns but gallery_features has {gallery.shape[1]}"
        )
    small = query.shape[0] * gallery.shape[0] * gallery.shape[1] <= DOUBLE_LIMIT
    dtype = torch.float64 if small else torch.promote_types(query.dtype, gallery.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    query, gallery = query.to(dtype), gallery.to(query.device, dtype)
    if normalise:
        query, gallery = _unit_rows(query), _unit_rows(gallery)
    first, shared = distinct_rows(gallery)
    if len(first) < len(gallery):
        gallery = gallery[torch.from_numpy(first).to(gallery.device)]
    return EuclideanBlocks(query, gallery, shared)


def inner_products(left: Tensor, right: Tensor, into: np.ndarray) -> np.ndarray:
    """left (q, D) and right (g, D) -> (q, g) on the host, on the CPU in ``into``, never in TF32 or lower.

    On the CPU numpy is used: its BLAS took half the time of torch's where both were measured (AMD).
    """
    if left.device.type == "cpu":
        return np.matmul(left.numpy(), right.numpy().T, out=into)
    with full_precision(left.device):
        return (left @ right.T).cpu().numpy()


def distinct_rows(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of ``features`` (N, D): first row (U,) of each group of equal rows, and the groups (N,)."""
    matrix = features.cpu().numpy()
    earliest = np.arange(len(matrix))  # the first row that is equal to each
    seen: dict[bytes, int] = {}
    for index in np.flatnonzero(_alike(matrix[:, :: -(-matrix.shape[1] // COMPARED)])).tolist():
        # + 0.0 turns -0.0, which equals 0.0 but differs from it in memory, into 0.0.
        key = hashlib.blake2b((matrix[index] + 0.0).data, digest_size=16).digest()
        earliest[index] = seen.setdefault(key, index)
    first = np.flatnonzero(earliest == np.arange(len(matrix)))
    return first, np.searchsorted(first, earliest)


def _alike(rows: np.ndarray) -> np.ndarray:
    """(N,) whether another row of ``rows`` (N, d) is equal."""
    return pd.DataFrame(rows).duplicated(keep=False).to_numpy()


def checked_labels(name: str, ids: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as int64, or an error that names the array (``name`` is ``query`` or ``gallery``)."""
    ids, cameras = np.asarray(ids), np.asarray(cameras)
    for what, values in ((f"{name}_ids", ids), (f"{name}_cameras", cameras)):
        if values.ndim != 1:
            raise EvaluationError(f"{what} must have one dimension, it has shape {values.shape}")
        if len(values) == 0:
            raise EvaluationError(f"{what} is empty")
        if values.dtype.kind not in "iu":
            raise EvaluationError(f"{what} must hold integers, it holds {values.dtype}")
        bad = values[(values < UNKNOWN) | (values > np.iinfo(np.int64).max)]
        if len(bad):
            raise EvaluationError(f"{what} holds {bad[0]}; numbers go from {UNKNOWN} up to 64 bits with a sign")
    if len(ids) != len(cameras):
        raise EvaluationError(f"{name}_ids has {len(ids)} entries but {name}_cameras has {len(cameras)}")
    return ids.astype(np.int64), cameras.astype(np.int64)


def checked_block(block: np.ndarray | Tensor, queries: range, gallery: int) -> np.ndarray:
    """The block of these queries as float32 or float64 on the host, or an error that says why not."""
    distance = block.detach().cpu().numpy() if isinstance(block, Tensor) else np.asarray(block)
    if distance.shape != (len(queries), gallery):
        raise EvaluationError(
            f"the distances of queries {queries.start}..{queries.stop - 1} have shape "
            f"{distance.shape}, expected {(len(queries), gallery)}"
        )
    if distance.dtype != np.float64:
        distance = distance.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        doubtful = np.flatnonzero(~np.isfinite(distance.sum(axis=1)))
    bad = doubtful[(~np.isfinite(distance[doubtful])).any(axis=1)]
    if len(bad):
        raise EvaluationError(f"the distances of query {queries[bad[0]]} hold NaN or infinite values")
    return distance


def _unit_rows(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)


def _features(name: str, features: np.ndarray | Tensor) -> Tensor:
    tensor = torch.as_tensor(features)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise EvaluationError(f"{name}_features must have shape (images, dimensions), it has {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    # A sum is finite only if all of its terms are; where it is not, they are looked at one by one.
    doubtful = (~torch.isfinite(tensor.sum(dim=1))).nonzero().flatten()
    bad = doubtful[(~torch.isfinite(tensor[doubtful])).any(dim=1)].tolist()
    if bad:
        raise EvaluationError(f"{name}_features holds NaN or infinite values in {len(bad)} rows, first row {bad[0]}")
    return tensor.detach()
