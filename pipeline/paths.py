"""Where stages read and write when nobody says otherwise; dvc.yaml names the same places."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(".cache")


def data(dataset: str) -> Path:
    """What ``prepare`` writes."""
    return Path("data") / dataset


def initial(dataset: str, backbone: str) -> Path:
    """What ``pretrain`` writes: the weights that training on the dataset starts from."""
    return Path("initial") / f"{dataset}-{backbone}"
