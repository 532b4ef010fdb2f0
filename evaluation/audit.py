"""How good pseudo-labels are, measured against ground truth.

Only reports use it: person ids and everything computed from them stay outside training, and nothing
of an audit is ever fed back into a method, a schedule or the choice of a model.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


def audit(
    labels: np.ndarray,
    person_ids: np.ndarray,
    cameras: np.ndarray | None = None,
    previous: np.ndarray | None = None,
) -> dict[str, float]:
    """Quality of pseudo-labels (N,), -1 for outliers, against ``person_ids`` (N,).

    - ``clusters``; ``outlier_share`` of all images.
    - ``ari``, ``nmi`` (arithmetic mean), ``purity`` (share of the images that belong to the most
      frequent person of their cluster): over the clustered images alone.
    - ``pair_precision``, ``pair_recall``: over the pairs of all images; an outlier is alone.
    - ``cross_camera_link_share``, given ``cameras`` (N,): pairs across cameras among the pairs that
      share a cluster.
    - ``churn``, given the ``previous`` epoch's labels (N,): of the pairs that share a cluster in
      either epoch, the share that does not in both. 0 = the same clusters, 1 = nothing kept.

    A share of nothing (no cluster, no pair) is 0.
    """
    _check_lengths(labels, person_ids=person_ids, cameras=cameras, previous=previous)
    labels, person_ids = np.asarray(labels), np.asarray(person_ids)
    clustered = labels >= 0
    found, truth = labels[clustered], person_ids[clustered]
    linked, correct = _pairs(found), _pairs(found, truth)
    values = {
        "clusters": float(len(np.unique(found))),
        "outlier_share": 1 - _share(len(found), len(labels)),
        "ari": float(adjusted_rand_score(truth, found)) if len(found) else 0.0,
        "nmi": float(normalized_mutual_info_score(truth, found)) if len(found) else 0.0,
        "purity": _purity(found, truth),
        "pair_precision": _share(correct, linked),
        "pair_recall": _share(correct, _pairs(person_ids)),
    }
    if cameras is not None:
        within = _pairs(found, np.asarray(cameras)[clustered])
        values["cross_camera_link_share"] = _share(linked - within, linked)
    if previous is not None:
        values["churn"] = _churn(labels, np.asarray(previous))
    return values


def _check_lengths(labels: np.ndarray, **others: np.ndarray | None) -> None:
    for name, values in others.items():
        if values is not None and len(values) != len(labels):
            raise ValueError(
                f"an audit needs one entry per image, but there are {len(labels)} labels and "
                f"{len(values)} {name}; pass both for the same images in the same order."
            )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _counts(first: np.ndarray, second: np.ndarray) -> csr_array:
    """How often each combination of two labels occurs, as a sparse table."""
    return csr_array(contingency_matrix(first, second, sparse=True))


def _pairs(*labels: np.ndarray) -> int:
    """Number of pairs of images that agree in the label, or in both of two labels."""
    if len(labels[0]) == 0:
        return 0
    counts = _counts(labels[0], labels[-1]).data.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _purity(found: np.ndarray, truth: np.ndarray) -> float:
    if len(found) == 0:
        return 0.0
    return float(_counts(found, truth).max(axis=1).sum() / len(found))


def _churn(labels: np.ndarray, previous: np.ndarray) -> float:
    now, before = labels >= 0, previous >= 0
    both = now & before
    kept = _pairs(labels[both], previous[both])
    either = _pairs(labels[now]) + _pairs(previous[before]) - kept
    return _share(either - kept, either)
