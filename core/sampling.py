"""Which images make up a batch: finite iterators over image indices, one pass over the data each.

The engine starts another pass when it needs more steps. All draws of a pass are made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from core.errors import UserError


class Members(NamedTuple):
    """Images by class: images[starts[c] : starts[c] + counts[c]] are those of class c.

    images, classes (M,), sorted by class; starts, counts (C,).
    """

    images: np.ndarray
    classes: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def pk_batches(
    labels: np.ndarray,
    identities: int,
    instances: int,
    rng: np.random.Generator,
    cameras: np.ndarray | None = None,
    singleton: str = "fill",
) -> Iterator[np.ndarray]:
    """Batches (identities * instances,) of K images for each of P clusters, as the family's released sampler.
    Per cluster, in shuffled order: a seed image, then K-1 images of the cluster's other cameras, or
    of the cluster's other images when it has one camera or ``cameras`` is None; without replacement
    when there are at least K to choose from. The groups are laid end to end and cut into batches;
    an incomplete last batch is dropped.

    labels: (N,), -1 = outlier, never drawn. cameras: (N,); unknown (-1) is a camera like any other.
    singleton: an only image gives one entry and the next clusters "fill" the batch, as released, or
    it is "repeat"-ed K times. When one pass over the clusters is less than a batch, further passes
    follow until there is one.
    """
    if singleton not in ("fill", "repeat"):
        raise UserError(f"singleton must be 'fill' or 'repeat', got '{singleton}'")
    members = _members(labels)

    def draw_pass() -> np.ndarray:
        entries, alone = _draw_identities(members, instances, rng, cameras)
        order = rng.permutation(len(entries))
        keep = np.ones(entries.shape, dtype=bool)
        if singleton == "fill":
            keep[alone, 1:] = False
        return members.images[entries[order][keep[order]]]

    return _cut(draw_pass, identities * instances)


def camera_batches(
    labels: np.ndarray, cameras: np.ndarray, identities: int, instances: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Batches (identities * instances,) of K images for each of P clusters, from as many cameras as it has.

    Per cluster, in shuffled order: one image of every camera, of K cameras where it has more. Where it has fewer, the
    rest comes from its other images: without replacement when there are enough. Where it has no other image, K are
    drawn with replacement. Arguments, outliers and few clusters as in ``pk_batches``.
    """
    members = _members(labels)
    clusters = np.split(members.images, members.starts[1:])

    def draw_pass() -> np.ndarray:
        order = rng.permutation(len(clusters))
        return np.concatenate([_from_most_cameras(clusters[c], cameras, instances, rng) for c in order])

    return _cut(draw_pass, identities * instances)


def _from_most_cameras(images: np.ndarray, cameras: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) of a cluster's images (M,)."""
    shuffled = rng.permutation(images)
    _, first = np.unique(cameras[shuffled], return_index=True)
    chosen, others = shuffled[rng.permutation(first)][:count], np.delete(shuffled, first)
    missing = count - len(chosen)
    if not missing:
        return chosen
    if not len(others):
        return rng.choice(chosen, count)
    return np.concatenate([chosen, rng.choice(others, missing, replace=len(others) < missing)])


def proxy_batches(
    labels: np.ndarray,
    cameras: np.ndarray,
    proxies: int,
    instances: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Batches (proxies * instances,) of K images for each of P (cluster, camera) pairs, as in CAP.

    The proxies of a pass come in shuffled order, each once; an incomplete last batch is dropped.
    Images are drawn without replacement; a proxy with fewer than K lists each K times and draws
    from that. Arguments and few proxies as in ``pk_batches``.
    """
    pair = labels * (cameras.max(initial=0) + 2) + cameras + 1
    members = _members(np.where(labels >= 0, pair, -1))
    pool = _with_copies(members, np.where(members.counts < instances, instances, 1))

    def draw_pass() -> np.ndarray:
        shuffled = np.argsort(pool.classes + rng.random(len(pool.classes)))
        entries = shuffled[pool.starts[:, None] + np.arange(instances)]
        return pool.images[rng.permutation(entries)].ravel()

    return _cut(draw_pass, proxies * instances)


def shuffled_batches(indices: int | np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every index (of an array, or 0..n-1) once, in random order; the last batch may be smaller."""
    order = rng.permutation(indices)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _members(labels: np.ndarray) -> Members:
    """Images with a label >= 0 by label; a ValueError when there are none."""
    images = np.flatnonzero(labels >= 0)
    if len(images) == 0:
        raise ValueError("no cluster to draw batches from: every label is -1")
    _, classes, counts = np.unique(labels[images], return_inverse=True, return_counts=True)
    order = np.argsort(classes, kind="stable")
    return Members(images[order], classes[order], np.cumsum(counts) - counts, counts)


def _with_copies(members: Members, copies: np.ndarray) -> Members:
    """Every image of class c listed copies[c] times; copies (C,)."""
    repeats = copies[members.classes]
    counts = members.counts * copies
    return Members(
        members.images.repeat(repeats),
        members.classes.repeat(repeats),
        np.cumsum(counts) - counts,
        counts,
    )


def _draw_identities(
    members: Members, instances: int, rng: np.random.Generator, cameras: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``members`` (C, K) of a seed and K-1 companions per class; which are alone (C,).

    The companions of an only image are itself.
    """
    positions = np.arange(len(members.images))
    seeds = members.starts + rng.integers(members.counts)
    seed_of = seeds[members.classes]
    candidate = positions != seed_of
    if cameras is not None:
        camera = cameras[members.images]
        elsewhere = camera != camera[seed_of]
        several_cameras = np.logical_or.reduceat(elsewhere, members.starts)
        candidate = np.where(several_cameras[members.classes], elsewhere, candidate)
    choices = np.add.reduceat(candidate, members.starts, dtype=np.int64)
    # One sort shuffles all classes, candidates in front: class, then candidate or not, then chance.
    shuffled = np.argsort(2 * members.classes + ~candidate + rng.random(len(positions)))
    size = (len(members.counts), instances - 1)
    repeated = rng.integers(np.maximum(choices, 1)[:, None], size=size)
    column = np.where(choices[:, None] >= instances, np.arange(instances - 1), repeated)
    companions = shuffled[members.starts[:, None] + column]
    return np.concatenate([seeds[:, None], companions], axis=1), choices == 0


def _cut(draw_pass: Callable[[], np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut one pass, or as many as fill one batch, into batches of ``size``."""
    entries = draw_pass()
    while len(entries) < size:
        entries = np.concatenate([entries, draw_pass()])
    for stop in range(size, len(entries) + 1, size):
        yield entries[stop - size : stop]
