"""The weights that training starts from: what ``pretrain`` writes and ``train`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from core.backbones.weights import IMAGENET_MEAN, IMAGENET_STD, weights_sha256
from core.checkpoint import save_atomically
from core.errors import UserError
from core.files import changed, forget, hashes
from pipeline.records import STARTED, InitialRecord, read_record, write_record

WEIGHTS = "weights.pt"


@dataclass(frozen=True)
class Initial:
    """Weights that training starts from. ``weights`` None means random initialisation."""

    weights: Path | None
    source: str
    sha256: str | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    images_seen: int = 0

    def write(self, folder: Path) -> None:
        """Write ``initial.json`` beside the weights."""
        record = InitialRecord(
            source=self.source,
            sha256=self.sha256,
            mean=tuple(self.mean),
            std=tuple(self.std),
            images_seen=self.images_seen,
            files=hashes(folder, [WEIGHTS]),
        )
        write_record(record, folder / STARTED)


def from_nothing(like: Initial) -> Initial:
    """Random weights, for images that are normalised as before those of ``like``."""
    return Initial(None, "random", None, like.mean, like.std)


def read_initial(folder: Path) -> Initial:
    """Read what ``pipeline.pretrain`` wrote; raises UserError with the remedy when it is missing or not whole."""
    missing = f"{folder} holds no initial weights; run `python -m pipeline.pretrain --out {folder} ...` first"
    record = read_record(InitialRecord, folder / STARTED, missing)
    if fault := changed(folder, record.files):
        raise UserError(
            f"{folder} does not hold the weights that its initial.json describes: {fault}; "
            f"run `python -m pipeline.pretrain --out {folder} ...` again"
        )
    return Initial(folder / WEIGHTS, record.source, record.sha256, record.mean, record.std, record.images_seen)


def save_initial(
    weights: dict[str, torch.Tensor], initial_source: str, out: Path, like: Initial, images_seen: int = 0
) -> Initial:
    """Write embedder weights as the start of other runs, and the record that describes them last."""
    forget(out / "initial.json")
    save_atomically(weights, out / WEIGHTS)
    saved = Initial(out / WEIGHTS, initial_source, weights_sha256(weights), like.mean, like.std, images_seen)
    saved.write(out)
    return saved
