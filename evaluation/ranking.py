"""Ranking metrics under the Market-1501 rules: CMC, mAP (two definitions), mINP, per-query results.

The metric ranks every gallery row it is given; only images of the same person from the same camera
as the query are left out. Distractors (id 0000) are wrong matches like any other. Junk (id -1)
belongs to the protocol, which removes it first with ``drop_junk``; a junk row that is still there
is a wrong match. Exactly equal distances rank in gallery order. A camera of -1 is unknown and is
never "the same camera" as another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.manifest import UNKNOWN
from evaluation import metrics
from evaluation.distances import DistanceBlock, EvaluationError, checked_block, checked_labels, euclidean_blocks

CMC_RANKS = 50
BLOCK_ELEMENTS = 2**25  # distances held at once: 128 MB in float32
TASK = 32  # queries that a thread ranks before it takes the next


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


class Pairs(NamedTuple):
    """Pairs of a query and a gallery image, in ascending order: ``query`` (P,) and ``image`` (P,)."""

    query: np.ndarray
    image: np.ndarray

    def of(self, queries: slice) -> Pairs:
        """Those of some queries, which are numbered from the first of them on."""
        first, end = self.query.searchsorted([queries.start, queries.stop])
        return Pairs(self.query[first:end] - queries.start, self.image[first:end])


def same_person(
    query_ids: np.ndarray, gallery_ids: np.ndarray, query_cameras: np.ndarray, gallery_cameras: np.ndarray
) -> tuple[Pairs, Pairs]:
    """The hits, and the images of the query's person under its own camera, which take no rank.

    Two unknown people are not known to be the same, nor are two unknown cameras.
    """
    by_person = np.argsort(gallery_ids, kind="stable")
    people = gallery_ids[by_person]
    starts, ends = people.searchsorted(query_ids, side="left"), people.searchsorted(query_ids, side="right")
    number = np.where(query_ids == UNKNOWN, 0, ends - starts)
    query = np.repeat(np.arange(len(query_ids)), number)
    image = by_person[np.repeat(starts - number.cumsum() + number, number) + np.arange(number.sum())]
    camera = query_cameras[query]
    excluded = (gallery_cameras[image] == camera) & (camera != UNKNOWN)
    return Pairs(query[~excluded], image[~excluded]), Pairs(query[excluded], image[excluded])


def hit_ranks(distance: np.ndarray, hits: Pairs, excluded: Pairs) -> np.ndarray:
    """Ranks (P,), from 1, of the ``hits`` (P,) by the ``distance`` (q, G) of their queries; ``excluded`` take none.

    What is farther than a query's last hit is not sorted. Sorting values alone is several times faster than an argsort,
    so gallery order is consulted only where a hit shares its distance with another entry.
    """
    ranked = distance.copy()
    ranked[excluded] = np.inf
    wanted = ranked[hits]
    last = np.full(len(ranked), -np.inf, dtype=ranked.dtype)
    np.maximum.at(last, hits.query, wanted)
    near = ranked <= last[:, None]
    values = ranked.ravel().take(np.flatnonzero(near))  # of one query after the other
    ends = np.count_nonzero(near, axis=1).cumsum()
    begins = np.concatenate([[0], ends[:-1]])
    place = np.empty(len(wanted), dtype=np.int64)  # of each hit among them
    bounds = hits.query.searchsorted(np.arange(len(ranked) + 1))
    for first, end, begin, stop in zip(bounds[:-1], bounds[1:], begins, ends, strict=True):
        ordered = values[begin:stop]
        ordered.sort()
        place[first:end] = begin + ordered.searchsorted(wanted[first:end])
    rank = place - begins[hits.query] + 1
    after = np.minimum(place + 1, ends[hits.query] - 1)
    for tied in np.flatnonzero((after > place) & (values[after] == wanted)):
        before = ranked[hits.query[tied], : hits.image[tied]]
        rank[tied] += np.count_nonzero(before == wanted[tied])
    return rank


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
    hits, excluded = same_person(query_ids, gallery_ids, query_cameras, gallery_cameras)
    ranks: list[np.ndarray] = []
    step = chunk or block_rows(len(gallery_ids))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sorting releases the interpreter lock
        for start in range(0, len(query_ids), step):
            queries = range(start, min(start + step, len(query_ids)))
            block = checked_block(distance_block(slice(start, queries.stop)), queries, len(gallery_ids))
            tasks = [queries[first : first + TASK] for first in range(0, len(queries), TASK)]
            asked = [slice(task.start, task.stop) for task in tasks]
            parts = [block[task.start - start : task.stop - start] for task in tasks]
            ranks.extend(pool.map(hit_ranks, parts, map(hits.of, asked), map(excluded.of, asked)))
    return _collect(hits.query, np.concatenate(ranks), query_ids, query_cameras)


def query_figures(query: np.ndarray, ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of ``Scores.per_query`` of every ``query`` that has a hit, from the ``ranks`` (P,) of all hits.

    ap: the mean over hits of the precision there. ap_trapezoid: of the average of the precision there and one rank
    before, the precision before the first rank being 1. inp: hits / rank of the last.
    """
    ranks = ranks[np.lexsort((ranks, query))]
    _, starts, matches = np.unique(query, return_index=True, return_counts=True)
    hits = np.arange(1, len(ranks) + 1) - np.repeat(starts, matches)
    precision = hits / ranks
    before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
    last = ranks[starts + matches - 1]
    return {
        "ap": np.add.reduceat(precision, starts) / matches,
        "ap_trapezoid": np.add.reduceat((before + precision) / 2, starts) / matches,
        "inp": matches / last,
        "first_match_rank": ranks[starts],
        "last_match_rank": last,
        "matches": matches,
    }


def _collect(query: np.ndarray, ranks: np.ndarray, query_ids: np.ndarray, query_cameras: np.ndarray) -> Scores:
    valid = np.unique(query)
    if not len(valid):
        raise EvaluationError(
            f"none of the {len(query_ids)} queries has a correct match in the gallery (same id, another "
            "camera): check query_ids and gallery_ids, query_cameras and gallery_cameras"
        )
    about = {"query": valid, "person_id": query_ids[valid], "camera_id": query_cameras[valid]}
    table = pd.DataFrame(about | query_figures(query, ranks))
    first = np.minimum(table["first_match_rank"].to_numpy(), CMC_RANKS + 1)
    found = np.bincount(first, minlength=CMC_RANKS + 2)[1 : CMC_RANKS + 1]
    return Scores(
        cmc=found.cumsum() / len(table),
        valid_queries=len(table),
        skipped_queries=len(query_ids) - len(table),
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
