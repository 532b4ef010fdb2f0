"""The weights that training starts from: what ``pretrain`` writes and ``train`` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from core.backbones.weights import IMAGENET_MEAN, IMAGENET_STD, weights_sha256
from core.checkpoint import save_atomically
from core.errors import UserError
from core.files import UNKNOWN_FILES, changed, forget, hashes, write_json

WEIGHTS = "weights.pt"


@dataclass(frozen=True)
class Initial:
    """Weights that training starts from. ``weights`` None means random initialisation."""

    weights: Path | None
    source: str
    sha256: str | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def write(self, folder: Path) -> None:
        """Write ``initial.json`` beside the weights."""
        record = {"source": self.source, "sha256": self.sha256, "mean": self.mean, "std": self.std}
        write_json(folder / "initial.json", {**record, "files": hashes(folder, [WEIGHTS])})


def read_initial(folder: Path) -> Initial:
    """Read what ``pipeline.pretrain`` wrote; raises UserError with the remedy when it is missing or not whole."""
    if not (folder / "initial.json").is_file():
        raise UserError(
            f"{folder} holds no initial weights; run `python -m pipeline.pretrain --out {folder} ...` first"
        )
    record = json.loads((folder / "initial.json").read_text())
    if fault := changed(folder, record.get("files", UNKNOWN_FILES)):
        raise UserError(
            f"{folder} does not hold the weights that its initial.json describes: {fault}; "
            f"run `python -m pipeline.pretrain --out {folder} ...` again"
        )
    mean, std = tuple(record["mean"]), tuple(record["std"])
    return Initial(folder / WEIGHTS, record["source"], record["sha256"], mean, std)


def save_initial(weights: dict[str, torch.Tensor], initial_source: str, out: Path, like: Initial) -> Initial:
    """Write embedder weights as the start of other runs, and the record that describes them last."""
    forget(out / "initial.json")
    save_atomically(weights, out / WEIGHTS)
    saved = Initial(out / WEIGHTS, initial_source, weights_sha256(weights), like.mean, like.std)
    saved.write(out)
    return saved
