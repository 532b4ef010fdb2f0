"""Exact nearest neighbours of unit features by inner product: faiss or torch, on CPU or CUDA."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.precision import full_precision

BLOCK_ELEMENTS = 2**24  # similarities held at once (64 MB): memory does not grow with N x N


class NonFiniteFeatures(ValueError):
    """Features hold NaN or infinity: the model that made them has diverged."""


def knn(
    features: Tensor | np.ndarray,
    k: int,
    queries: Tensor | np.ndarray | None = None,
    backend: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` most similar rows of unit ``features`` (N, D) for each query (Q, D), exactly.

    Returns similarity (Q, k) float32 and index (Q, k) int64, most similar first; k is clipped to N.
    Without ``queries`` every row searches among all rows and is its own first entry, even where
    duplicates would crowd it out. Equal similarities are listed by ascending index; which of the
    rows tied at the last place are listed is up to the backend, but the same in every run.

    ``auto`` is torch for CUDA tensors (no copy to the host) and, on the CPU, faiss where installed.
    """
    bank = as_float_matrix(features)
    probe = bank if queries is None else as_float_matrix(queries).to(bank.device)
    if probe.shape[1] != bank.shape[1]:
        raise UserError(
            f"queries have {probe.shape[1]} dimensions, features {bank.shape[1]}; extract both with the same model."
        )
    if k < 1:
        raise ValueError(f"k = {k} neighbours were asked for; at least one is needed.")
    search = _faiss_search if _resolve(backend, bank.device) == "faiss" else _torch_search
    similarity, index = search(probe, bank, min(k, len(bank)))
    return order_lists(similarity, index, own=queries is None)


def as_float_matrix(features: Tensor | np.ndarray) -> Tensor:
    """``features`` as a contiguous, detached float32 (N, D) tensor on the device where they are.

    Those that are so already are not copied: a float32 ``np.memmap`` stays in its file, and is only read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        matrix = torch.as_tensor(features).detach().float().contiguous()
    if matrix.ndim != 2 or len(matrix) == 0:
        raise ValueError(f"features must be a non-empty (N, D) matrix, not {tuple(matrix.shape)}.")
    broken = ~torch.isfinite(matrix.sum(dim=1))
    if broken.any():
        raise NonFiniteFeatures(
            f"{int(broken.sum())} of {len(matrix)} feature rows contain NaN or infinity, so they "
            "have no neighbours; the model has probably diverged."
        )
    return matrix


def squared_norms(features: Tensor) -> Tensor:
    """(N,) sums of squares of the rows of ``features`` (N, D), by blocks: no second copy of them is held."""
    return torch.cat([features[rows].square().sum(dim=1) for rows in row_blocks(len(features), features.shape[1])])


def order_lists(similarity: np.ndarray, index: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lists (Q, k) by descending similarity, then ascending index, in place; if ``own``, row i starts with i.

    An image that exact duplicates pushed out of its own list replaces the last entry there.
    """
    for rows in row_blocks(*index.shape):
        similarity[rows], index[rows] = _ordered(similarity[rows], index[rows], rows.start if own else None)
    return similarity, index


def _ordered(similarity: np.ndarray, index: np.ndarray, first: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Some lists in order; row i starts with ``first`` + i, where that is given."""
    rank = -similarity
    if first is not None:
        itself = np.arange(first, first + len(index))
        present = index == itself[:, None]
        missing = ~present.any(axis=1)
        index[missing, -1] = itself[missing]
        present[missing, -1] = True
        rank[present] = -np.inf
    order = np.lexsort((index, rank), axis=-1)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(index, order, 1)


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` such that each block of rows x ``width`` stays within BLOCK_ELEMENTS."""
    size = max(1, min(1024, BLOCK_ELEMENTS // width))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _resolve(backend: str, device: torch.device) -> str:
    if backend not in ("auto", "faiss", "torch"):
        raise UserError(f"unknown k-NN backend '{backend}'; choose auto, faiss or torch.")
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise UserError("backend 'faiss' needs faiss, which is not installed; choose auto.")
    if backend == "auto":
        return "faiss" if installed and device.type == "cpu" else "torch"
    return backend


def search_devices(bank: Tensor) -> list[torch.device]:
    """Where blocks of queries are searched: the device of the features, and other CUDA devices that can hold them."""
    own = bank.device
    others = range(torch.cuda.device_count()) if own.type == "cuda" else ()
    needed = bank.nbytes + 4 * 4 * BLOCK_ELEMENTS  # a block of similarities, and as much again for its sorting
    named = [torch.device("cuda", index) for index in others if index != (own.index or 0)]
    return [own, *(device for device in named if torch.cuda.mem_get_info(device)[0] > needed)]


def _torch_search(probe: Tensor, bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks are dealt out over the devices, which work at the same time: a block is waited for at the end."""
    banks = [bank.to(device) for device in search_devices(bank)]
    found = []
    with full_precision(bank.device):
        for number, rows in enumerate(row_blocks(len(probe), len(bank))):
            mine = banks[number % len(banks)]
            found.append((probe[rows].to(mine.device) @ mine.T).topk(k, dim=1))
    similarity = torch.cat([block.values.cpu() for block in found])
    index = torch.cat([block.indices.cpu() for block in found])
    return similarity.numpy(), index.numpy()


def _faiss_search(probe: Tensor, bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss  # optional: the suite runs without it

    xq, xb, metric = probe.cpu().numpy(), bank.cpu().numpy(), faiss.METRIC_INNER_PRODUCT
    if bank.device.type == "cuda" and hasattr(faiss, "knn_gpu") and faiss.get_num_gpus() > 0:
        resources = faiss.StandardGpuResources()
        device = bank.device.index or 0
        return faiss.knn_gpu(resources, xq, xb, k, metric=metric, device=device)
    return faiss.knn(xq, xb, k, metric=metric)
