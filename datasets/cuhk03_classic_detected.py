"""CUHK03, the 20 classic splits, detected boxes. Not comparable with the new protocol."""

from __future__ import annotations

from datasets import _cuhk03_classic

DATASET = _cuhk03_classic.describe("cuhk03_classic_detected", "detected")
