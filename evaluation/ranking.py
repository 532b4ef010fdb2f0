"""Ranking metrics under the Market-1501 rules: CMC, mAP (two definitions), mINP, per-query results.

The metric ranks every gallery row it is given; only images of the same person from the same camera
as the query are left out. Distractors (id 0000) are wrong matches like any other. Junk (id -1)
belongs to the protocol, which removes it first with ``drop_junk``; a junk row that is still there
is a wrong match. Exactly equal distances rank in gallery order. A camera of -1 is unknown and is
never "the same camera" as another.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.manifest import UNKNOWN
from evaluation import metrics
from evaluation.distances import DistanceBlock, EvaluationError, checked_block, checked_labels, euclidean_blocks

CMC_RANKS = 50
BLOCK_ELEMENTS = 2**25  # distances held at once: 128 MB in float32
TASK = 16  # queries that a thread ranks before it takes the next
NO_RANKS = np.empty(0, dtype=np.int64)
FEW = 0.25  # of the gallery: to take these out of a row and sort them is faster than to sort the row


@dataclass(frozen=True)
class Scores:
    """What a ranking is worth, query by query.

    cmc: (50,), entry k is the share of queries with a match in the first k+1. per_query: one row per valid query with
    ``query`` (its index), ``person_id``, ``camera_id``, ``ap`` (mean of the precision at each hit), ``ap_trapezoid``
    (the AP of the original Market-1501 toolkit), ``inp`` (matches / rank of the last match), ``first_match_rank``,
    ``last_match_rank`` (both from 1) and ``matches``. skipped_queries: those without a correct match in the gallery;
    they enter no mean.
    """

    cmc: np.ndarray
    valid_queries: int
    skipped_queries: int
    per_query: pd.DataFrame

    @property
    def mAP(self) -> float:
        """Mean over the valid queries of their average precision, a fraction."""
        return metrics.BY_NAME["mAP"].of(self.per_query)

    def summary(self) -> dict[str, float | int]:
        """The figures of a results file: every metric of the table, as a fraction."""
        figures = {metric.name: metric.of(self.per_query) for metric in metrics.METRICS}
        return {**figures, "valid_queries": self.valid_queries, "skipped_queries": self.skipped_queries}


def hit_ranks(distance: np.ndarray, hits: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Ranks (P,), from 1 and ascending, of the gallery indices ``hits`` (P,) by ``distance`` (G,).

    ``excluded`` (E,) indices take no rank. Sorting values alone is several times faster than an
    argsort, so gallery order is consulted only where a hit shares its distance with another entry. What is farther than
    the last hit is not sorted, where that leaves out most.
    """
    ranked = distance.copy()
    ranked[excluded] = np.inf
    wanted = ranked[hits]
    near = ranked <= wanted.max()
    ordered = ranked[near] if np.count_nonzero(near) < FEW * len(ranked) else ranked.copy()
    ordered.sort()
    closer = ordered.searchsorted(wanted, side="left")
    tied = ordered.searchsorted(wanted, side="right") - closer > 1
    for k in np.flatnonzero(tied):
        closer[k] += np.count_nonzero(ranked[: hits[k]] == wanted[k])
    return np.sort(closer) + 1


def block_rows(gallery: int) -> int:
    """Queries whose distances to ``gallery`` images are held at once."""
    return max(1, BLOCK_ELEMENTS // gallery)


def evaluate_ranking(
    distance_block: DistanceBlock,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    chunk: int | None = None,
) -> Scores:
    """Score a ranking given in blocks: ``distance_block(rows)`` is the distances (q, G) of queries.

    Distances may be negative (similarities with their sign turned). One block is held at a time, of ``chunk`` queries
    or, by default, of about BLOCK_ELEMENTS distances. Raises EvaluationError for malformed labels or distances, or
    when no query has a match.
    """
    query_ids, query_cameras = checked_labels("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = checked_labels("gallery", gallery_ids, gallery_cameras)
    by_person = np.argsort(gallery_ids, kind="stable")
    people = gallery_ids[by_person]
    starts = np.searchsorted(people, query_ids, side="left")
    ends = np.searchsorted(people, query_ids, side="right")

    def rank(query: int, distance: np.ndarray) -> np.ndarray:
        """Of the query's hits; empty for one that has none."""
        if query_ids[query] == UNKNOWN:  # two unknown people are not known to be the same
            return NO_RANKS
        same = by_person[starts[query] : ends[query]]  # ascending, as the sort was stable
        camera = query_cameras[query]
        same_camera = (gallery_cameras[same] == camera) & (camera != UNKNOWN)
        if same_camera.all():
            return NO_RANKS
        return hit_ranks(distance, same[~same_camera], same[same_camera])

    def rank_some(queries: range, block: np.ndarray) -> list[np.ndarray]:
        return [rank(query, distance) for query, distance in zip(queries, block, strict=True)]

    ranks: list[np.ndarray] = []
    step = chunk or block_rows(len(gallery_ids))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sorting releases the interpreter lock
        for start in range(0, len(query_ids), step):
            queries = range(start, min(start + step, len(query_ids)))
            block = checked_block(distance_block(slice(start, queries.stop)), queries, len(gallery_ids))
            tasks = [slice(first, first + TASK) for first in range(0, len(queries), TASK)]
            for found in pool.map(rank_some, [queries[task] for task in tasks], [block[task] for task in tasks]):
                ranks.extend(found)
    return _collect(ranks, query_ids, query_cameras)


def query_figures(ranks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of ``Scores.per_query`` (Q,) of queries whose hits have these ranks, each (P,) from 1 and ascending.

    ap: the mean over hits of the precision there. ap_trapezoid: of the average of the precision there and one rank
    before, the precision before the first rank being 1. inp: hits / rank of the last.
    """
    matches = np.array([len(hits) for hits in ranks])
    starts = np.cumsum(matches) - matches
    every = np.concatenate(ranks)
    hits = np.arange(1, len(every) + 1) - np.repeat(starts, matches)
    precision = hits / every
    before = np.where(every > 1, (hits - 1) / np.maximum(every - 1, 1), 1.0)
    last = every[starts + matches - 1]
    return {
        "ap": np.add.reduceat(precision, starts) / matches,
        "ap_trapezoid": np.add.reduceat((before + precision) / 2, starts) / matches,
        "inp": matches / last,
        "first_match_rank": every[starts],
        "last_match_rank": last,
        "matches": matches,
    }


def _collect(ranks: Sequence[np.ndarray], query_ids: np.ndarray, query_cameras: np.ndarray) -> Scores:
    valid = np.array([query for query, hits in enumerate(ranks) if len(hits)], dtype=np.int64)
    if not len(valid):
        raise EvaluationError(
            f"none of the {len(ranks)} queries has a correct match in the gallery (same id, another "
            "camera): check query_ids and gallery_ids, query_cameras and gallery_cameras"
        )
    about = {"query": valid, "person_id": query_ids[valid], "camera_id": query_cameras[valid]}
    table = pd.DataFrame(about | query_figures([ranks[query] for query in valid]))
    first = np.minimum(table["first_match_rank"].to_numpy(), CMC_RANKS + 1)
    found = np.bincount(first, minlength=CMC_RANKS + 2)[1 : CMC_RANKS + 1]
    return Scores(
        cmc=found.cumsum() / len(table),
        valid_queries=len(table),
        skipped_queries=len(ranks) - len(table),
        per_query=table,
    )


def evaluate_features(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    *,
    normalise: bool = False,
    chunk: int | None = None,
) -> Scores:
    """Score features (Q, D) and (G, D) by Euclidean distance, after L2 if ``normalise``."""
    for name, features, ids in (("query", query, query_ids), ("gallery", gallery, gallery_ids)):
        if len(features) != len(ids):
            raise EvaluationError(f"{name}_features has {len(features)} rows but {name}_ids has {len(ids)}")
    blocks = euclidean_blocks(query, gallery, normalise=normalise)
    return evaluate_ranking(blocks, query_ids, gallery_ids, query_cameras, gallery_cameras, chunk)


def drop_junk(ids: np.ndarray, *arrays: Any) -> tuple[Any, ...]:
    """``ids`` and arrays along it, without the rows of id -1: the junk rule of a protocol."""
    keep = np.flatnonzero(np.asarray(ids) != UNKNOWN)
    return tuple(array[keep] for array in (np.asarray(ids), *arrays))
