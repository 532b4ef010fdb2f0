"""CUHK03, new protocol, boxes from a pedestrian detector. Not comparable with labeled."""

from __future__ import annotations

from datasets import _cuhk03np

DATASET = _cuhk03np.describe(
    "cuhk03np_detected",
    "detected",
    expected={
        "train": {"images": 7365, "identities": 767},
        "query": {"images": 1400, "identities": 700},
        "gallery": {"images": 5332, "identities": 700},
    },
)
