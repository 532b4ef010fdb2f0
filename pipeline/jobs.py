"""The jobs that params.yaml asks for, and where stages read and write; dvc.yaml names the same places."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.params import ROOT as ROOT
from pipeline.params import Params

CACHE = Path(".cache")
TRAINING, RUNS = Path("results/training"), Path("results/runs")


def data_folder(dataset: str) -> Path:
    """What ``prepare`` writes."""
    return Path("data") / dataset


def initial_folder(dataset: str, backbone: str, seed: int, run: str | None = None) -> Path:
    """What ``pretrain`` writes: the weights that training on the dataset with that seed starts from.

    ``run``: the pre-training by a method that made them, None for the warm start.
    """
    return Path("initial") / f"{dataset}-{backbone}-{seed}{f'-{run}' if run else ''}"


class Job(NamedTuple):
    """One run on one dataset with one backbone and seed; dvc.yaml names its folders alike.

    ``dataset`` may be one of several partitions or worlds, as NAME-NUMBER.
    """

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
        return TRAINING / self.name

    @property
    def evaluated(self) -> Path:
        """What ``evaluate`` writes."""
        return RUNS / self.name

    @property
    def nearest(self) -> Path:
        """What ``nearest`` writes."""
        return Path("results/nearest") / f"{self.name}.json"


def external_folder(name: str, dataset: str) -> Path:
    """What ``external`` writes of a system from outside on a dataset."""
    return RUNS / f"external-{name}-{dataset}"


def jobs(params: Params) -> list[Job]:
    """Every job of params.yaml, in its order."""
    return [Job(run, data, name, seed) for data, run, name in runs(params) for seed in params.seeds]


def runs(params: Params) -> list[tuple[str, str, str]]:
    """(dataset, run, backbone) of every row of the table."""
    rows = [(run, params.backbones[kind]) for kind, listed in params.listed.items() for run in listed]
    return [(data, run, backbone) for data in params.datasets for run, backbone in rows if params.has(data, run)]
