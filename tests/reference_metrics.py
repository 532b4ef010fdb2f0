"""Ranking metrics as literal loops, one gallery entry at a time; slow, and short enough to check against the rules."""

from __future__ import annotations

from typing import Any

import numpy as np


def ranking(distance: np.ndarray) -> list[int]:
    """Gallery indices by distance, equal ones in gallery order."""
    return sorted(range(len(distance)), key=lambda index: (distance[index], index))


def relevance(
    distance: np.ndarray, person: int, camera: int, gallery_ids: np.ndarray, gallery_cameras: np.ndarray
) -> list[bool]:
    """Right or wrong, rank by rank, without images of the same person and the same known camera."""
    flags = []
    for index in ranking(distance):
        same_person = gallery_ids[index] == person and person != -1
        same_camera = gallery_cameras[index] == camera and camera != -1
        if same_person and same_camera:
            continue
        flags.append(bool(same_person))
    return flags


def precision_at_hits(flags: list[bool]) -> float:
    """Average precision as the mean of the precisions at the hits."""
    found, total = 0, 0.0
    for rank, hit in enumerate(flags, 1):
        if hit:
            found += 1
            total += found / rank
    return total / found


def toolkit_precision(flags: list[bool]) -> float:
    """Average precision of the original Market-1501 toolkit: trapezoids between all successive ranks."""
    hits = sum(flags)
    old_recall, old_precision, area, found = 0.0, 1.0, 0.0, 0
    for rank, hit in enumerate(flags, 1):
        found += hit
        recall, precision = found / hits, found / rank
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def scores(
    distance: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> dict[str, Any]:
    """mAP, mAP_trapezoid, mINP, cmc (50,), skipped queries, and per valid query its index and hit ranks."""
    rows: list[dict[str, Any]] = []
    for query, person in enumerate(query_ids):
        flags = relevance(distance[query], person, query_cameras[query], gallery_ids, gallery_cameras)
        if not any(flags):
            continue
        ranks = [rank for rank, hit in enumerate(flags, 1) if hit]
        rows.append(
            {
                "query": query,
                "ap": precision_at_hits(flags),
                "ap_trapezoid": toolkit_precision(flags),
                "inp": len(ranks) / ranks[-1],
                "first_match_rank": ranks[0],
                "last_match_rank": ranks[-1],
                "matches": len(ranks),
            }
        )
    return {
        "mAP": sum(row["ap"] for row in rows) / len(rows),
        "mAP_trapezoid": sum(row["ap_trapezoid"] for row in rows) / len(rows),
        "mINP": sum(row["inp"] for row in rows) / len(rows),
        "cmc": [sum(row["first_match_rank"] <= k for row in rows) / len(rows) for k in range(1, 51)],
        "skipped": len(query_ids) - len(rows),
        "rows": rows,
    }
