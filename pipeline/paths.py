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


def trained(run: str, dataset: str, seed: int) -> Path:
    """What ``train`` writes."""
    return Path("results/training") / f"{run}-{dataset}-{seed}"


def evaluated(run: str, dataset: str, seed: int) -> Path:
    """What ``evaluate`` writes."""
    return Path("results/runs") / f"{run}-{dataset}-{seed}"
