"""Neighbour lists by an approximate search, for more images than an exact one can compare; its recall is measured.

faiss searches on the CPU. Features on a CUDA device are searched by cuVS, where it can be imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.neighbors import as_float_matrix, knn, order_lists

SEARCHES = ("exact", "ivf", "hnsw")
SAMPLE = 1000  # images whose exact lists are searched too, to tell the recall
BLOCK = 16_384  # queries searched at once
PROBES = 32  # of the cells of an IVF index
TRAINING = 64  # images a cell that its centres are learnt from
LINKS, BUILD_DEPTH, SEARCH_DEPTH = 32, 80, 128  # of HNSW: links of an image, candidates kept in building and searching
GPU_ALGORITHM = {"ivf": "ivf_pq", "hnsw": "nn_descent"}  # which of cuVS stands for which


def neighbor_lists(
    features: Tensor | np.ndarray, k: int, search: str = "exact", backend: str = "auto"
) -> tuple[np.ndarray, float | None]:
    """Lists (N, k) int64 as `core.neighbors.knn` orders them, and the recall of an approximate ``search``, else None.

    ``exact`` is `knn` with its ``backend``. ``ivf`` looks into the PROBES nearest of about 4 sqrt(N) cells of images.
    ``hnsw`` walks a graph of near images, which one thread builds, since several would build another in every run. Both
    hold a copy of the features. The recall is the share of the exact lists of SAMPLE images that was found.
    """
    if search not in SEARCHES:
        raise UserError(f"unknown search '{search}'; choose {', '.join(SEARCHES)}.")
    bank = as_float_matrix(features)
    k = min(k, len(bank))
    if search == "exact":
        return knn(bank, k, backend=backend)[1], None
    similarity, index = _searcher(search, bank.device)(bank, k)
    # A walk or a few cells may hold less than k images.
    short = np.flatnonzero((index < 0).any(axis=1))
    if len(short):
        similarity[short], index[short] = knn(bank, k, queries=bank[torch.from_numpy(short)], backend=backend)
    index = order_lists(similarity, index, own=True)[1]
    return index, recall(bank, index)


def recall(features: Tensor, index: np.ndarray) -> float:
    """The share of the exact lists of SAMPLE evenly spaced images that is in their lists ``index`` (N, k)."""
    rows = np.unique(np.linspace(0, len(index) - 1, SAMPLE).astype(np.int64))
    exact = knn(features, index.shape[1], queries=features[torch.from_numpy(rows)])[1]
    return float((exact[:, :, None] == index[rows][:, None, :]).any(axis=2).mean())


def cells_of(count: int) -> int:
    """Cells that an IVF index sorts ``count`` images into: about 4 sqrt(N), or fewer with TRAINING images each."""
    return max(1, min(round(4 * count**0.5), count // TRAINING))


def _searcher(search: str, device: torch.device) -> Callable[[Tensor, int], tuple[np.ndarray, np.ndarray]]:
    if device.type == "cuda" and importlib.util.find_spec("cuvs") is not None:
        return lambda bank, k: _cuvs_search(bank, k, GPU_ALGORITHM[search])
    if importlib.util.find_spec("faiss") is None:
        raise UserError(f"clustering.search {search} needs faiss, which is not installed; choose exact.")
    return _ivf_search if search == "ivf" else _hnsw_search


def _ivf_search(bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss  # optional: the suite runs without it

    count, dimensions = bank.shape
    quantizer = faiss.IndexFlatIP(dimensions)
    index = faiss.IndexIVFFlat(quantizer, dimensions, cells_of(count), faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.max_points_per_centroid = TRAINING  # faiss draws them by a fixed seed
    index.nprobe = PROBES
    matrix = bank.cpu().numpy()
    index.train(matrix)
    index.add(matrix)
    return _search_in_blocks(index, matrix, k)


def _hnsw_search(bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss  # optional: the suite runs without it

    index = faiss.IndexHNSWFlat(bank.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_DEPTH, max(SEARCH_DEPTH, 2 * k)
    matrix = bank.cpu().numpy()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(matrix)
    finally:
        faiss.omp_set_num_threads(threads)
    return _search_in_blocks(index, matrix, k)


def _search_in_blocks(index: Any, matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = [index.search(matrix[start : start + BLOCK], k) for start in range(0, len(matrix), BLOCK)]
    similarity, lists = zip(*found, strict=True)
    return np.concatenate(similarity), np.concatenate(lists)


def _cuvs_search(bank: Tensor, k: int, algorithm: str) -> tuple[np.ndarray, np.ndarray]:
    from cuvs.neighbors import all_neighbors  # optional: the suite runs without it

    params = all_neighbors.AllNeighborsParams(algo=algorithm, metric="sqeuclidean")
    index = torch.empty(len(bank), k, dtype=torch.int64, device=bank.device)
    squared = torch.empty(len(bank), k, device=bank.device)
    all_neighbors.build(bank, k, params, indices=index, distances=squared)
    return (1 - squared / 2).cpu().numpy(), index.cpu().numpy()  # of unit features
