"""CUHK03, new protocol, boxes drawn by hand. Not comparable with detected."""

from __future__ import annotations

from datasets import _cuhk03np

DATASET = _cuhk03np.describe(
    "cuhk03np_labeled",
    "labeled",
    expected={
        "train": {"images": 7368, "identities": 767},
        "query": {"images": 1400, "identities": 700},
        "gallery": {"images": 5328, "identities": 700},
    },
)
