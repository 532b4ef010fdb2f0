"""The jobs that params.yaml asks for, and where stages read and write; dvc.yaml names the same places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(".cache")


def data_folder(dataset: str) -> Path:
    """What ``prepare`` writes."""
    return Path("data") / dataset


def initial_folder(dataset: str, backbone: str) -> Path:
    """What ``pretrain`` writes: the weights that training on the dataset starts from."""
    return Path("initial") / f"{dataset}-{backbone}"


class Job(NamedTuple):
    """One run on one dataset with one backbone and seed; dvc.yaml names its folders alike."""

    run: str
    dataset: str
    backbone: str
    seed: int

    @property
    def name(self) -> str:
        """As stages and folders are called."""
        return f"{self.run}-{self.dataset}-{self.backbone}-{self.seed}"

    @property
    def trained(self) -> Path:
        """What ``train`` writes."""
        return Path("results/training") / self.name

    @property
    def evaluated(self) -> Path:
        """What ``evaluate`` writes."""
        return Path("results/runs") / self.name


def jobs(params: Mapping[str, Any]) -> list[Job]:
    """Every job of params.yaml, in its order."""
    return [Job(run, data, name, seed) for data, run, name in runs(params) for seed in params["seeds"]]


def runs(params: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(dataset, run, backbone) of every row of the table.

    Raises ConfigError unless ``runs`` lists runs by backbone kind, each of which ``backbones`` names.
    """
    by_kind, backbones = params["runs"], params["backbones"]
    if not isinstance(by_kind, Mapping) or not set(by_kind) <= set(backbones):
        raise ConfigError(
            f"params.yaml: `runs` must list runs for each kind of `backbones` ({', '.join(backbones)}), "
            f"as in `runs: {{cnn: [hhcl]}}`, not {by_kind!r}"
        )
    rows = [(run, backbones[kind]) for kind, listed in by_kind.items() for run in listed]
    return [(data, run, backbone) for data in params["datasets"] for run, backbone in rows]


def default_backbone(run: str, params: Mapping[str, Any]) -> str:
    """The backbone under whose kind params.yaml lists the run, the first kind's for one that it does not list."""
    kinds = [kind for kind, listed in (params.get("runs") or {}).items() if run in listed]
    return str(params["backbones"][kinds[0] if kinds else next(iter(params["backbones"]))])
