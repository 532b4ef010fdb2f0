"""What no run reaches: rankings with ties, junk and unknown cameras, re-ranking, audits, and colour jitter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from core import augment
from core.rng import Streams
from evaluation import protocol
from evaluation.audit import audit
from evaluation.rerank import rerank
from evaluation.score import evaluate_feature_file
from tests.replay.draws import integers, uniform
from tests.replay.record import SINGLE, Record


def ranking(record: Record) -> None:
    """Small whole numbers as features, so that ties are exact, under two protocols; then k-reciprocal re-ranking."""
    ids, cameras = integers("gallery/ids", (60,), -1, 9), integers("gallery/cameras", (60,), -1, 4)
    query_ids, query_cameras = integers("query/ids", (16,), 1, 9), integers("query/cameras", (16,), -1, 4)
    given = {
        "query_features": integers("query/features", (16, 4), 0, 3).astype(np.float64),
        "gallery_features": integers("gallery/features", (60, 4), 0, 3).astype(np.float64),
        **{"query_ids": query_ids, "gallery_ids": ids, "query_cameras": query_cameras, "gallery_cameras": cameras},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npz"
        np.savez(file, **given)
        for name in ("rendered", "cuhk03_classic_detected"):
            summary, queries = evaluate_feature_file(protocol.load(name), file)
            for figure, value in summary.items():
                if figure != "protocol":
                    record.note(f"{name}, {figure}", [-1 if value is None else value])
            for column in queries.select_dtypes("number"):
                record.note(f"{name}, {column} per query", queries[column].to_numpy(), "query")
    query, gallery = (torch.from_numpy(uniform(f"rerank/{side}", (count, 16))) for side, count in (("q", 8), ("g", 40)))
    query, gallery = (torch.nn.functional.normalize(side, dim=1) for side in (query, gallery))
    record.note(f"re-ranked distances {SINGLE}", rerank(query, gallery, 9, 4, 0.3).numpy(), "query")


def auditing(record: Record) -> None:
    """The audit of pseudo-labels with outliers, against the labels of the epoch before."""
    people, cameras = integers("audit/people", (80,), 1, 9), integers("audit/cameras", (80,), 0, 4)
    now = np.where(integers("audit/kept", (80,), 0, 4) > 0, people // 2 - (people > 6), -1)
    before = np.where(integers("audit/before", (80,), 0, 3) > 0, people - 1, -1)
    for figure, value in audit(now, people, cameras, before).items():
        record.note(figure, [value])


def augmentation(record: Record) -> None:
    """All of it at once, colour jitter included, which no method's settings switch on."""
    images = torch.from_numpy(integers("jitter", (12, 3, 48, 24), 0, 256).astype(np.uint8))
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.2, "jitter_probability": 0.8}
    settings = augment.Augment(pad=4, **strengths)
    drawn = augment.draw(settings, 12, 48, 24, Streams(0).torch("augment"))
    for name, values in drawn.items():
        record.note(f"{name} {SINGLE}" if values.is_floating_point() else name, values, "image")
    applied = augment.apply(images, drawn, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    record.note(f"images {SINGLE}", applied, "image")


PARTS: dict[str, Callable[[Record], None]] = {"ranking": ranking, "audit": auditing, "augmentation": augmentation}
