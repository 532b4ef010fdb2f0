"""Verification: how well one distance threshold tells "the same person" from "another person", over all pairs.

A pair is called the same when its distance is at most the threshold. The false-match rate (FPR) is the share of pairs
of different people that are called the same, the true-match rate (TPR) that of pairs of one person.

Every pair is counted in a bin of its float32 distance's leading bits: a grid whose steps are at most 2^-13 of the
distance, kept in 64 MiB however many pairs there are. A threshold is always the upper edge of a bin, so that the rates
at it are exact counts; only which thresholds are looked at is limited by the grid.
"""

from __future__ import annotations

import numpy as np

from core.manifest import UNKNOWN
from core.validation import Record
from evaluation.distances import DistanceBlock, checked_block, checked_labels, true_distance

TARGETS = (1e-2, 1e-3)  # false-match rates at which the true-match rate is told
DROPPED_BITS = 10  # of a float32's 23 bits of fraction
BINS = 2 ** (32 - DROPPED_BITS)
PANEL_BINS, PANEL_END = 100, 2.0  # unit vectors are at most 2 apart
AT_ONCE = 2**21  # pairs counted in one step


class OperatingPoint(Record):
    """The largest threshold whose false-match rate is at most ``fpr``, and the true-match rate there.

    Both are None where there are fewer than 1 / fpr pairs of different people: such a rate is not measurable.
    """

    fpr: float
    tpr: float | None
    threshold: float | None


class Panel(Record):
    """Counts of same-person and other-person distances in bins of one ``width`` from ``start``, for a picture."""

    start: float
    width: float
    same: tuple[int, ...]
    other: tuple[int, ...]


class Verification(Record):
    """Figures over ``same_pairs`` pairs of one person and ``other_pairs`` pairs of different people.

    eer: the equal error rate, where FPR = 1 - TPR on the straight line between neighbouring thresholds;
    eer_threshold: the nearer of the two. at: one point for each of ``TARGETS``.
    """

    same_pairs: int
    other_pairs: int
    eer: float
    eer_threshold: float
    at: tuple[OperatingPoint, ...]
    panel: Panel

    def figures(self) -> dict[str, float | None]:
        """Rates and thresholds by flat names, as files that people read hold them: ``eer``, ``tpr_at_fpr_0.01``."""
        found: dict[str, float | None] = {"eer": self.eer, "eer_threshold": self.eer_threshold}
        for point in self.at:
            found[f"tpr_at_fpr_{point.fpr:g}"] = point.tpr
            found[f"threshold_at_fpr_{point.fpr:g}"] = point.threshold
        return found


class PairCounter:
    """Counts the pairs of a ranking while its blocks pass by.

    Left out are what the ranking leaves out: images of the query's person under its camera, and queries without a
    correct match. ``across_cameras`` leaves out every image under the query's camera, as a protocol does that draws
    its galleries from the other cameras. A camera of -1 is unknown and never "the same".
    """

    def __init__(
        self,
        query_ids: np.ndarray,
        gallery_ids: np.ndarray,
        query_cameras: np.ndarray,
        gallery_cameras: np.ndarray,
        across_cameras: bool = False,
    ) -> None:
        self.query = checked_labels("query", query_ids, query_cameras)
        self.gallery = checked_labels("gallery", gallery_ids, gallery_cameras)
        self.across_cameras = across_cameras
        self.same = np.zeros(BINS, dtype=np.int64)
        self.other = np.zeros(BINS, dtype=np.int64)

    def watch(self, distance_block: DistanceBlock) -> DistanceBlock:
        """The same blocks; the pairs of each are counted when it is asked for."""

        def block(rows: slice) -> np.ndarray:
            distance = checked_block(distance_block(rows), range(rows.start, rows.stop), len(self.gallery[0]))
            step = max(1, AT_ONCE // len(self.gallery[0]))
            for start in range(rows.start, rows.stop, step):
                part = slice(start, min(start + step, rows.stop))
                values = distance[part.start - rows.start : part.stop - rows.start]
                self._count(part, true_distance(distance_block, part, values))
            return distance

        return block

    def _count(self, rows: slice, distance: np.ndarray) -> None:
        (ids, cameras), (people, seen) = (side[rows] for side in self.query), self.gallery
        same = (ids[:, None] == people) & (ids[:, None] != UNKNOWN)
        beside = (cameras[:, None] == seen) & (cameras[:, None] != UNKNOWN)
        valid = (same & ~beside).any(axis=1)[:, None] & ~(beside if self.across_cameras else beside & same)
        np.add.at(self.same, bins(distance[valid & same]), 1)
        np.add.at(self.other, bins(distance[valid & ~same]), 1)

    def result(self) -> Verification | None:
        """The figures, or None where there are no pairs of one of the two sorts."""
        if not self.same.any() or not self.other.any():
            return None
        used = np.flatnonzero(self.same + self.other)
        same, other = self.same[used], self.other[used]
        edges = upper_edges(np.concatenate([used[:1] - 1, used]))  # first a threshold below every distance
        tpr = np.concatenate([[0.0], same.cumsum() / same.sum()])
        fpr = np.concatenate([[0.0], other.cumsum() / other.sum()])
        eer, place = equal_error_rate(tpr, fpr)
        pairs = int(other.sum())
        return Verification(
            same_pairs=int(same.sum()),
            other_pairs=pairs,
            eer=eer,
            eer_threshold=float(edges[place]),
            at=tuple(operating_point(target, tpr, fpr, edges, pairs) for target in TARGETS),
            panel=panel(np.nextafter(edges[:-1], np.float32(np.inf)), same, other),
        )


def bins(distance: np.ndarray) -> np.ndarray:
    """Bin of each distance: the leading bits of its float32, in an order that is that of the numbers."""
    bits = (distance.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(2**31))
    return (ordered >> DROPPED_BITS).astype(np.intp)


def upper_edges(found: np.ndarray) -> np.ndarray:
    """The largest float32 of each bin."""
    ordered = ((found.astype(np.int64) + 1) * 2**DROPPED_BITS - 1).astype(np.uint32)
    bits = np.where(ordered >> 31 == 1, ordered & np.uint32(2**31 - 1), ~ordered)
    return bits.astype(np.uint32).view(np.float32)


def equal_error_rate(tpr: np.ndarray, fpr: np.ndarray) -> tuple[float, int]:
    """Where the line through the points (FPR, 1 - TPR), both by rising threshold, meets FPR = 1 - TPR; nearest point.

    The first point is (0, 1) and the last (1, 0).
    """
    gap = fpr - (1 - tpr)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    eer = fpr[after - 1] + share * (fpr[after] - fpr[after - 1])
    return float(eer), after if share >= 0.5 else after - 1


def operating_point(target: float, tpr: np.ndarray, fpr: np.ndarray, edges: np.ndarray, pairs: int) -> OperatingPoint:
    """The last threshold whose false-match rate is at most ``target``; ``pairs`` of different people were counted."""
    if pairs * target < 1:
        return OperatingPoint(fpr=target, tpr=None, threshold=None)
    place = int(np.searchsorted(fpr, target, side="right")) - 1
    return OperatingPoint(fpr=target, tpr=float(tpr[place]), threshold=float(edges[place]))


def panel(lowest: np.ndarray, same: np.ndarray, other: np.ndarray) -> Panel:
    """Counts in equal bins: of 0 to 2 where every distance lies there, of the whole range otherwise.

    lowest: the least distance of each counted bin, which takes all its pairs along.
    """
    start, end = min(0.0, float(lowest[0])), max(PANEL_END, float(lowest[-1]))
    width = (end - start) / PANEL_BINS
    place = np.clip(((lowest - start) / width).astype(int), 0, PANEL_BINS - 1)
    counts = [np.bincount(place, weights=side, minlength=PANEL_BINS).astype(int) for side in (same, other)]
    return Panel(start=start, width=width, same=tuple(counts[0].tolist()), other=tuple(counts[1].tolist()))
