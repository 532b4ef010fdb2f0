"""The stages as the kill injection runs them: in a workspace of their own, with small inputs that are made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import yaml

from core.manifest import read_manifest
from pipeline.initial import read_initial
from pipeline.jobs import ROOT, Job
from pipeline.scoring import read_whole
from reports.record import read_result

BACKBONE = "resnet18_half"
RUN = "cluster_contrast"
COMPUTING = ("--device", "cpu", "--threads", "1")
TINY = ("--dataset", "rendered", "--profile", "tiny", "--backbone", BACKBONE, *COMPUTING)
TABLES = ("leaderboard.csv", "leaderboard.md", "worlds.csv", "curves.png")
EVALUATE = ("--method", RUN, "--dataset", "rendered", "--backbone", BACKBONE, "--data", "data", *COMPUTING)
TRAIN = ("--method", RUN, *TINY, "--data", "data", "--initial", "initial", "--cache", "cache")


class Stage(NamedTuple):
    """An entry point and its command line in a workspace; what it writes; what it finds there.

    inputs: workspace name -> name of what was made before, beside params.yaml. over: the same, for what the stage
    writes over.
    reads: a reader of what it writes, which must refuse it or find it whole after every kill.
    """

    verb: str
    arguments: Sequence[str]
    outputs: Sequence[str]
    inputs: dict[str, str]
    over: dict[str, str]
    reads: Callable[[Path], object] | None = None

    def run(self) -> int:
        """In the working directory."""
        module = {"leaderboard": "reports.leaderboard"}.get(self.verb, f"pipeline.{self.verb}")
        return int(import_module(module).main(list(self.arguments)))


STAGES = {
    "prepare": Stage(
        *("prepare", ("--dataset", "rendered", "--size", "tiny", "--world", "1", "--out", "out"), ["out"]),
        *({}, {}, read_manifest),
    ),
    "prepare again": Stage(
        *("prepare", ("--dataset", "rendered", "--size", "tiny", "--world", "1", "--out", "out"), ["out"]),
        *({}, {"out": "other data"}, read_manifest),
    ),
    "pretrain": Stage(
        *("pretrain", (*TINY, "--data", "data", "--out", "out", "--cache", "cache"), ["out"]),
        *({"data": "data"}, {}, read_initial),
    ),
    "train": Stage(
        *("train", (*TRAIN, "--out", "out"), ["out"]),
        *({"data": "data", "initial": "initial"}, {}, read_whole),
    ),
    "train over another run": Stage(
        *("train", (*TRAIN, "--out", "out"), ["out"]),
        *({"data": "data", "initial": "initial", "cache/images": "cache/images"}, {"out": "other run"}, read_whole),
    ),
    "evaluate": Stage(
        *("evaluate", (*EVALUATE, "--trained", "run", "--out", "out", "--cache", "cache"), ["out"]),
        *({"data": "data", "run": "run"}, {}, read_result),
    ),
    "evaluate over another run": Stage(
        *("evaluate", (*EVALUATE, "--trained", "run", "--out", "out", "--cache", "cache"), ["out"]),
        *({"data": "data", "run": "run", "cache/images": "cache/images"}, {"out": "other result"}, read_result),
    ),
    "configure": Stage("configure", ("--out", "out"), ["out"], {}, {}),
    "leaderboard": Stage(
        *("leaderboard", (), [f"results/{name}" for name in TABLES]),
        *({"results/runs": "results/runs"}, {}),
    ),
}


def setting_up(made: Path) -> list[tuple[str, Sequence[str]]]:
    """Verb and arguments of everything that the stages find, in the folder ``made``."""
    other = [*TRAIN, "--seed", "1", "--out", "other run"]
    scored = str(Path("results/runs") / Job(RUN, "rendered", BACKBONE, 0).name)
    evaluated = [*EVALUATE, "--cache", "cache"]
    return [
        ("prepare", ["--dataset", "rendered", "--size", "tiny", "--world", "1", "--out", "data"]),
        ("prepare", ["--dataset", "rendered", "--size", "tiny", "--world", "2", "--out", "other data"]),
        ("pretrain", [*TINY, "--data", "data", "--out", "initial", "--cache", "cache"]),
        ("train", [*TRAIN, "--out", "run"]),
        ("train", other),
        ("evaluate", [*evaluated, "--trained", "run", "--out", scored]),
        ("evaluate", [*evaluated, "--trained", "other run", "--out", "other result"]),
    ]


def write_params(file: Path) -> None:
    """A params.yaml of one run."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    small = {
        "profile": "tiny",
        "backbones": {"cnn": BACKBONE},
        "runs": {"cnn": [RUN]},
        "pretrainings": {},
        "seeds": [0],
    }
    file.write_text(yaml.safe_dump({**params, **small}))


def workspace(stage: Stage, made: Path, folder: Path) -> Path:
    """A fresh folder with the stage's inputs (linked) and what it writes over (copied)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, source in {"params.yaml": "params.yaml", **stage.inputs}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(made / source)
    for name, source in stage.over.items():
        shutil.copytree(made / source, folder / name)
    return folder
