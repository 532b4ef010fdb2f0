"""CMC with a gallery of one image per person, drawn anew many times: CUHK03's original protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.manifest import UNKNOWN
from evaluation import metrics
from evaluation.distances import DistanceBlock, EvaluationError, checked_block, checked_labels
from evaluation.ranking import CMC_RANKS, block_rows


@dataclass(frozen=True)
class SingleShotScores:
    """Fractions, averaged over queries and draws; there is no AP, each query having one match.

    cmc: (50,). per_query: ``query`` (its index), ``person_id``, ``camera_id`` and, for each rank-k of the metrics
    (``rank1``, ...), the share of draws with the match that high.
    """

    cmc: np.ndarray
    valid_queries: int
    skipped_queries: int
    per_query: pd.DataFrame

    def summary(self) -> dict[str, float | int | None]:
        """The figures of a results file; what this protocol does not define is None."""
        figures = {metric.name: float(self.cmc[metric.rank - 1]) if metric.rank else None for metric in metrics.METRICS}
        return {**figures, "valid_queries": self.valid_queries, "skipped_queries": self.skipped_queries}


def evaluate_single_shot(
    distance_block: DistanceBlock,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    chunk: int | None = None,
) -> SingleShotScores:
    """Rank each query against ``draws`` galleries of one random image per person.

    The gallery of a query holds images of other cameras only; queries of one camera share the drawn
    galleries. Exactly equal distances rank in gallery order.
    """
    query_ids, query_cameras = checked_labels("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = checked_labels("gallery", gallery_ids, gallery_cameras)
    galleries = {
        camera: draw_galleries(gallery_ids, _other(gallery_cameras, camera), draws, rng)
        for camera in np.unique(query_cameras).tolist()
    }
    ranks = np.zeros((len(query_ids), draws), dtype=np.int64)  # 0: no match in the gallery
    step = chunk or block_rows(len(gallery_ids))
    for start in range(0, len(query_ids), step):
        queries = np.arange(start, min(start + step, len(query_ids)))
        block = distance_block(slice(start, start + len(queries)))
        distance = checked_block(block, range(start, start + len(queries)), len(gallery_ids))
        for camera, (people, picks) in galleries.items():
            rows = np.flatnonzero((query_cameras[queries] == camera) & np.isin(query_ids[queries], people))
            match = np.searchsorted(people, query_ids[queries[rows]])
            for draw, gallery in enumerate(picks):
                ranks[queries[rows], draw] = match_ranks(distance[rows], gallery, match)
    return _collect(ranks, query_ids, query_cameras)


def draw_galleries(
    ids: np.ndarray, usable: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """People (P,), ascending, among the usable rows of ``ids`` (G,), and a row of each (draws, P)."""
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    people, starts, sizes = np.unique(ids[rows], return_index=True, return_counts=True)
    return people, rows[starts + rng.integers(0, sizes, size=(draws, len(people)))]


def match_ranks(distance: np.ndarray, gallery: np.ndarray, match: np.ndarray) -> np.ndarray:
    """Ranks (q,), from 1, of ``gallery[match]`` by ``distance`` (q, G) among ``gallery`` (P,)."""
    ranked = distance[:, gallery]
    wanted = np.take_along_axis(ranked, match[:, None], axis=1)
    earlier = gallery[None, :] < gallery[match][:, None]
    return 1 + ((ranked < wanted) | ((ranked == wanted) & earlier)).sum(axis=1)


def _other(cameras: np.ndarray, camera: int) -> np.ndarray:
    """Which of ``cameras`` differ from ``camera``; an unknown one differs from all."""
    return (cameras != camera) | (cameras == UNKNOWN)


def _collect(ranks: np.ndarray, query_ids: np.ndarray, query_cameras: np.ndarray) -> SingleShotScores:
    valid = np.flatnonzero(ranks[:, 0] > 0) if ranks.size else np.empty(0, dtype=np.int64)
    if len(valid) == 0:
        raise EvaluationError(
            f"none of the {len(ranks)} queries has a match in another camera of the gallery: check "
            "query_ids and gallery_ids, query_cameras and gallery_cameras"
        )
    found = np.bincount(np.minimum(ranks[valid], CMC_RANKS + 1).ravel(), minlength=CMC_RANKS + 2)
    table = {"query": valid, "person_id": query_ids[valid], "camera_id": query_cameras[valid]}
    shares = {metric.name: (ranks[valid] <= metric.rank).mean(axis=1) for metric in metrics.defined("cmc")}
    return SingleShotScores(
        cmc=found[1 : CMC_RANKS + 1].cumsum() / ranks[valid].size,
        valid_queries=len(valid),
        skipped_queries=len(ranks) - len(valid),
        per_query=pd.DataFrame(table | shares),
    )
