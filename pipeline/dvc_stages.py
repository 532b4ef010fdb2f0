"""The stages of dvc.yaml that a sweep makes, and their handing over: `dvc repro` then takes them for its own.

Before the runs DVC makes data, settings and warm starts, of which a sweep only sees whether they are there. After them
it is told of the runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence

from core.errors import UserError
from pipeline.jobs import Job
from pipeline.params import Params
from pipeline.settings import finetuning, split_name


def beginnings(jobs: Iterable[Job], params: Params) -> list[str]:
    """Stages that come before the jobs' runs: data, settings, warm starts, and what methods pre-train."""
    stages = []
    for job in jobs:
        kind, start = kind_of(job, params), f"{job.dataset}-{job.seed}"
        stages += [f"prepare@{job.dataset}", "configure", f"pretrain_{kind}@{start}"]
        if finetuning(split_name(job.run)[0]):
            stages.append(f"pretrain_by_{kind}@{job.run}-{start}")
    return list(dict.fromkeys(stages))


def runs(jobs: Iterable[Job], params: Params) -> list[str]:
    """The stages of the jobs' trainings and evaluations."""
    stages = []
    for job in jobs:
        train, evaluate = (
            ("finetune", "evaluate_finetuned") if finetuning(split_name(job.run)[0]) else ("train", "evaluate")
        )
        name = f"{kind_of(job, params)}@{job.run}-{job.dataset}-{job.seed}"
        stages += [f"{train}_{name}", f"{evaluate}_{name}"]
    return stages


def kind_of(job: Job, params: Params) -> str:
    """The kind of backbone under which params.yaml lists the job."""
    return next(
        kind for kind, listed in params.listed.items() if job.run in listed and params.backbones[kind] == job.backbone
    )


def make(stages: Sequence[str]) -> None:
    """Have DVC run those stages that are not current."""
    _dvc("repro", "--single-item", *stages)


def take(stages: Sequence[str]) -> None:
    """Have DVC note that the stages' outputs, which lie there, are what the stages would make now."""
    if stages:
        _dvc("commit", "--force", *stages)


def _dvc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False)
    if done.returncode:
        raise UserError(f"`dvc {arguments[0]}` ended with exit status {done.returncode}; what it said stands above")
