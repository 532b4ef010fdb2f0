"""k-reciprocal Jaccard distance, sparse from the neighbour lists to the result.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, as the
clustering methods read it. Re-ranking (`evaluation.rerank`) is made of the same `reciprocal_encoding` and
`shared_weight`; it differs only in the length of the lists and the scale of the distances.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from core.errors import UserError
from core.neighbors import as_float_matrix, knn, squared_norms
from core.precision import full_precision

CHUNK_TERMS = 1_000_000  # min() terms expanded at once by each thread, about 20 MB
CHUNK_ROWS = 512
BLOCK_ROWS = 16_384  # rows whose sets are joined, whose pairs are measured and whose weights are shared at once
MAX_WORKERS = 8  # bounds the memory of the chunks in flight on large machines
NARROW = np.iinfo(np.int32).max  # the largest place that indices of 32 bits reach
ABSENT = np.iinfo(np.int32).max
SLACK = 1e-4  # a shared weight is rounded by less than this share of itself


def jaccard_distance(
    features: Tensor | np.ndarray,
    k1: int = 30,
    k2: int = 6,
    backend: str = "auto",
    neighbors: np.ndarray | None = None,
    limit: float | None = None,
) -> csr_array:
    """Symmetric (N, N) float32 Jaccard distance of unit ``features`` (N, D).

    Stored are exactly the pairs with a distance below 1, zeros (the diagonal, identical images)
    included; a pair that is not stored is at distance 1. With a ``limit``, the largest ``eps`` that
    is read of the graph, only pairs at a distance of at most ``limit`` are stored, with the same
    bits; without, the graph grows faster than N. ``neighbors`` (N, >= k1) are the indices returned
    by `core.neighbors.knn`, where the caller has them already; ``backend`` goes to it.
    """
    matrix = as_float_matrix(features)
    count = len(matrix)
    if k1 < 1 or k2 < 1:
        raise UserError(f"k1 = {k1} and k2 = {k2} must both be at least 1.")
    if limit is not None and not 0 <= limit < 1:
        raise UserError(f"limit = {limit} is the largest Jaccard distance that is stored, in [0, 1); None stores all.")
    if neighbors is None:
        neighbors = knn(matrix, k1, backend=backend)[1]
    _check_lists(neighbors, count, min(k1, count))
    # The published search returns k1 columns, so lists nominally of k1 + 1 entries hold k1.
    encoding = reciprocal_encoding(matrix, neighbors[:, :k1], k1, half_size(k1), k2)
    return _mutual_distance(encoding, limit)


def half_size(k1: int) -> int:
    """Entries of a half list, the image itself included: k1 / 2 rounded half to even, plus one."""
    return round(k1 / 2) + 1


def reciprocal_encoding(
    features: Tensor,
    ranking: np.ndarray,
    list_size: int,
    half: int,
    k2: int,
    scale: np.ndarray | None = None,
) -> csr_array:
    """V (N, N): row i holds positive weights over the expanded k-reciprocal set of i; its sum is 1.

    ``ranking`` (N, L) lists the neighbours of each image, itself first. Two images are reciprocal
    when each is among the first ``list_size`` of the other, and in each other's half set when among
    the first ``half``. Weights are a softmax, over the set, of the negative squared Euclidean
    distance times ``scale`` (N,), 1 where not given; then each row becomes the mean of the rows of
    its first ``k2`` images (k2 = 1: stays as it is).
    """
    ranking = ranking.astype(index_type(ranking.size))  # scipy keeps the index type: half the memory of int64
    expanded = _expanded_sets(ranking[:, :list_size], half)
    weight = _squared_distances(features, expanded)
    if scale is not None:
        weight *= np.repeat(scale, np.diff(expanded.indptr))
    np.exp(np.negative(weight, out=weight), out=weight)
    weight /= np.repeat(np.add.reduceat(weight, expanded.indptr[:-1]), np.diff(expanded.indptr))
    encoding = csr_array((weight, expanded.indices, expanded.indptr), shape=expanded.shape)
    return _query_expansion(encoding, ranking[:, :k2]) if k2 > 1 else encoding


def shared_weight(
    rows: csr_array, inverted: csc_array, first: np.ndarray | None = None, least: float = 0.0
) -> csr_array:
    """(Q, N) sums over k of min(V_ik, W_jk): V (Q, M) are ``rows``, W (N, M) is ``inverted``.

    For the e-th stored entry (i, k) of V, only those entries of column k of W count whose position
    in ``inverted`` is at least ``first[e]`` (by default all). Sums below ``least`` are not stored.
    The work is cut into chunks, which as many threads share as torch uses; the result does not
    depend on their number.
    """
    if first is None:
        first = inverted.indptr[rows.indices]
    terms = inverted.indptr[1:][rows.indices] - first
    chunks = _chunks(rows.indptr, terms)
    with ThreadPoolExecutor(min(torch.get_num_threads(), MAX_WORKERS)) as pool:
        work = partial(_shared_weight_chunk, rows, inverted, first, terms, least)
        blocks = list(pool.map(work, chunks))
    return vstack(blocks, format="csr")


def jaccard_from_shared(shared: np.ndarray) -> np.ndarray:
    """Distance 1 - s / (2 - s), in place, of the shared weight s of two encodings that sum to 1."""
    np.minimum(shared, 1, out=shared)  # rounding can lift a sum above its bound
    shared /= 2 - shared
    return np.subtract(1, shared, out=shared)


def _mutual_distance(encoding: csr_array, limit: float | None = None) -> csr_array:
    """Jaccard distance among the rows of V: only pairs j >= i are computed, then mirrored."""
    inverted = encoding.tocsc()
    # s of a pair at the limit is 2 (1 - d) / (2 - d); what may lie there by rounding is judged by its distance, below.
    least = 0.0 if limit is None else (1 - SLACK) * 2 * (1 - limit) / (2 - limit)
    reached = inverted.indptr[:-1].copy()  # of each column, the first entry that no earlier block holds
    blocks = []
    for block in _row_blocks(len(reached)):
        rows = encoding[block]
        blocks.append(shared_weight(rows, inverted, reached[rows.indices] + _place_in_column(rows), least))
        reached += np.bincount(rows.indices, minlength=len(reached)).astype(reached.dtype)
    upper = vstack(blocks, format="csr")
    del blocks
    # Each transposition also sorts the columns, which the sum of the two needs to be fast.
    lower = upper.T.tocsr()
    upper = lower.T.tocsr()
    shared = lower + upper  # the diagonal counts twice; its bound of 1 is restored below
    del lower, upper
    # A shared weight is at least exp(-4) / (k2 |set|), so that no stored distance rounds to 1.
    jaccard_from_shared(shared.data)
    return shared if limit is None else _only(shared, shared.data <= float(limit))


def _only(matrix: csr_array, kept: np.ndarray) -> csr_array:
    """The stored entries of ``matrix`` where ``kept`` (nnz,) is true."""
    before = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr].astype(matrix.indptr.dtype)
    return csr_array((matrix.data[kept], matrix.indices[kept], before), shape=matrix.shape)


def index_type(most: int) -> type[np.signedinteger]:
    """The integers that count up to ``most``: of 32 bits, for half the memory, while they reach."""
    return np.int32 if most <= NARROW else np.int64


def _row_blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK_ROWS, count)) for start in range(0, count, BLOCK_ROWS))


def _check_lists(neighbors: np.ndarray, count: int, length: int) -> None:
    if neighbors.shape[0] != count or neighbors.shape[1] < length:
        raise UserError(
            f"neighbors have shape {neighbors.shape}, but {count} images need ({count}, {length}) "
            "or wider; search again with k >= k1."
        )
    if (neighbors[:, 0] != np.arange(count)).any():
        raise ValueError("each image must stand first in its own list of neighbors; search without queries.")


def _expanded_sets(ranking: np.ndarray, half: int) -> csr_array:
    """(N, N) pattern: k-reciprocal sets, joined by the half sets of members that overlap enough."""
    mutual = _mutual_positions(ranking)
    full_set = _reciprocal_sets(ranking, mutual, ranking.shape[1])
    half_set = _reciprocal_sets(ranking, mutual, half)
    holders = half_set.T.tocsr()
    sizes = np.diff(half_set.indptr)
    return vstack(
        [_joined(full_set[rows], half_set, holders, sizes) for rows in _row_blocks(len(ranking))], format="csr"
    )


def _joined(full_set: csr_array, half_set: csr_array, holders: csr_array, sizes: np.ndarray) -> csr_array:
    """Some rows of the full sets, joined by half sets of ``sizes`` (N,), whose transpose is ``holders``."""
    overlap = (full_set @ holders).multiply(full_set).tocsr()
    # Integers stand for "strictly more than 2/3 of the half set lies in the unexpanded set".
    joins = 3 * overlap.data > 2 * sizes[overlap.indices]
    overlap.data = joins.astype(np.float32)
    overlap.eliminate_zeros()
    expanded = (full_set + overlap @ half_set).tocsr()
    expanded.sort_indices()
    return expanded


def _mutual_positions(ranking: np.ndarray) -> np.ndarray:
    """(N, L): the place of i in the list of its a-th neighbour, or ABSENT where i is not in it."""
    count = len(ranking)
    positions = np.empty_like(ranking)
    for start in range(0, count, CHUNK_ROWS):
        own = np.arange(start, min(start + CHUNK_ROWS, count), dtype=ranking.dtype)
        found = ranking[ranking[own]] == own[:, None, None]
        positions[own] = np.where(found.any(axis=2), found.argmax(axis=2), ABSENT)
    return positions


def _reciprocal_sets(ranking: np.ndarray, mutual: np.ndarray, size: int) -> csr_array:
    """(N, N) of ones: j is among the first ``size`` of i, and i among the first ``size`` of j."""
    member = mutual[:, :size] < size
    indptr = np.concatenate([[0], np.cumsum(member.sum(axis=1))]).astype(ranking.dtype)
    columns = ranking[:, :size][member]
    count = len(ranking)
    sets = csr_array((np.ones(len(columns), np.float32), columns, indptr), shape=(count, count))
    sets.sort_indices()
    return sets


def _squared_distances(features: Tensor, pairs: csr_array) -> np.ndarray:
    """Squared Euclidean distances of the stored pairs only, in their order (nnz,) float32."""
    norms = squared_norms(features).cpu().numpy()
    squared = np.empty(pairs.nnz, np.float32)
    with warnings.catch_warnings(), full_precision(features.device):
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor|invariant)")
        for rows in _row_blocks(len(features)):
            bounds = pairs.indptr[rows.start : rows.stop + 1]
            stored = slice(bounds[0], bounds[-1])
            squared[stored] = np.repeat(norms[rows], np.diff(bounds)) + norms[pairs.indices[stored]]
            squared[stored] -= 2 * _products(features, rows, bounds - bounds[0], pairs.indices[stored])
    return np.maximum(squared, 0, out=squared)


def _products(features: Tensor, rows: slice, bounds: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products (nnz,) of ``rows`` with the images that ``bounds`` and ``columns`` list for each of them."""
    pattern = torch.sparse_csr_tensor(
        torch.from_numpy(bounds.astype(np.int64)),
        torch.from_numpy(columns.astype(np.int64)),
        torch.zeros(len(columns)),
        size=(len(bounds) - 1, len(features)),
        check_invariants=False,
    ).to(features.device)
    products = torch.sparse.sampled_addmm(pattern, features[rows], features.T, beta=0.0).values()
    return products.cpu().numpy()


def _query_expansion(encoding: csr_array, nearest: np.ndarray) -> csr_array:
    """Each row replaced by the mean of the rows of its nearest images (N, k2), itself included."""
    count, k2 = nearest.shape
    indptr = np.arange(0, count * k2 + 1, k2, dtype=nearest.dtype)
    share = np.full(count * k2, 1 / k2, dtype=np.float32)
    average = csr_array((share, nearest.ravel(), indptr), shape=(count, count))
    return (average @ encoding).tocsr()


def _place_in_column(matrix: csr_array) -> np.ndarray:
    """For each stored entry, in row order, the number of entries of its column in earlier rows."""
    order = np.arange(matrix.nnz, dtype=matrix.indices.dtype)
    by_column = csr_array((order, matrix.indices, matrix.indptr), shape=matrix.shape).tocsc()
    places = np.empty_like(order)
    places[by_column.data] = order - np.repeat(by_column.indptr[:-1], np.diff(by_column.indptr))
    return places


def _chunks(indptr: np.ndarray, terms: np.ndarray) -> Iterator[slice]:
    """Row slices of at most CHUNK_TERMS terms each (a longer single row stands alone)."""
    total = np.concatenate([[0], np.cumsum(terms, dtype=np.int64)])[indptr]
    start, count = 0, len(indptr) - 1
    while start < count:
        stop = int(np.searchsorted(total, total[start] + CHUNK_TERMS, side="right")) - 1
        stop = min(max(stop, start + 1), count)
        yield slice(start, stop)
        start = stop


def _shared_weight_chunk(
    rows: csr_array, inverted: csc_array, first: np.ndarray, terms: np.ndarray, least: float, chunk: slice
) -> csr_array:
    """Sums of minima for some rows: terms laid out entry by entry, added up by a sparse product."""
    bounds = rows.indptr[chunk.start : chunk.stop + 1]
    entries = slice(bounds[0], bounds[-1])
    width = bounds[-1] - bounds[0]
    length = terms[entries]
    offset = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
    offset = offset.astype(index_type(offset[-1]))
    place = np.repeat((first[entries] - offset[:-1]).astype(inverted.indices.dtype), length)
    place += np.arange(len(place), dtype=place.dtype)
    smaller = inverted.data[place]
    np.minimum(smaller, np.repeat(rows.data[entries], length), out=smaller)
    by_entry = csr_array((smaller, inverted.indices[place], offset), shape=(width, inverted.shape[0]))
    which = np.arange(width, dtype=offset.dtype)
    summing = csr_array((np.ones(width, np.float32), which, bounds - bounds[0]), shape=(len(bounds) - 1, width))
    sums = summing @ by_entry
    return _only(sums, sums.data >= least) if least else sums
