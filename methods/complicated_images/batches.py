"""Batches of clustered and un-clustered anchors: docs/methods/complicated_images.md, "Batches"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.backbones.batchnorm import chunk_sizes


def split_batch(size: int, instances: int, share: float) -> tuple[int, int]:
    """How many clusters give ``instances`` images each, and how many un-clustered images fill a batch of ``size``.

    ``share`` of the batch is un-clustered, rounded to whole clusters, but at least one image and at most all but one
    cluster's.
    """
    most = max(1, (size - 1) // instances)
    identities = min(most, max(1, round(size * (1 - share) / instances)))
    return identities, size - identities * instances


def endless(items: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Runs (count,) of items: all of them in random order, then all in another, and so on, laid end to end."""
    left = rng.permutation(items)
    while True:
        while len(left) < count:
            left = np.concatenate([left, rng.permutation(items)])
        yield left[:count]
        left = left[count:]


def interleaved(clustered: np.ndarray, alone: np.ndarray, chunks: int) -> np.ndarray:
    """One batch in which every chunk of batch norm holds the same share of un-clustered images, at its end."""
    bounds = np.cumsum([0, *chunk_sizes(len(clustered) + len(alone), chunks)])
    others = np.round(bounds * len(alone) / bounds[-1]).astype(int)
    pieces = [
        piece
        for start, stop, first, last in zip(bounds, bounds[1:], others, others[1:], strict=False)
        for piece in (clustered[start - first : stop - last], alone[first:last])
    ]
    return np.concatenate(pieces)
