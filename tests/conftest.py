"""Fixtures shared by all tests: the tiny rendered dataset and its warm start, made once by the real entry points."""

from __future__ import annotations

import os

# Threads that wait sleep: where other processes want the cores, spinning costs many times the work. Read by OpenMP when
# torch is imported, so it stands above the imports.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import prepare, pretrain
from pipeline.jobs import ROOT
from pipeline.params import read_params
from pipeline.settings import run_backbone

THREADS = 2
MODULES_SHOWN = 25
PARAMS = read_params(ROOT / "params.yaml", {"profile": "tiny"})
torch.set_num_threads(THREADS)  # for the fixtures of modules, which are made before those of tests


@pytest.fixture(autouse=True)
def _fixed_threads() -> Iterator[None]:
    """Numbers are bit-identical only for one thread count, and entry points set it for the whole process."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds of the slowest modules: a module is what xdist gives to a process, and its fixtures belong to no test."""
    seconds: Counter[str] = Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section(f"slowest modules of {seconds.total():.0f} s")
    for module, spent in seconds.most_common(MODULES_SHOWN):
        terminalreporter.write_line(f"{spent:7.1f}s {module}")


class TinyWorld:
    """A prepared tiny dataset with its warm start, and the arguments that make entry points use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.initial = self.initial_of("resnet18_half")
        self.cache = folder / "cache"

    def initial_of(self, backbone: str) -> Path:
        """Where the warm start of a backbone lies; made for those of params.yaml."""
        return self.folder / "initial" / backbone

    def train_arguments(self, method: str, out: Path, *more: str) -> list[str]:
        """Command line of ``pipeline.train`` on this world, with the method's backbone of params.yaml."""
        initial = self.initial_of(run_backbone(method, "rendered", PARAMS))
        return [
            *("--method", method, "--dataset", "rendered", "--profile", "tiny"),
            *("--data", str(self.data), "--initial", str(initial)),
            *("--cache", str(self.cache), "--out", str(out), "--device", "cpu"),
            *more,
        ]

    def evaluate_arguments(self, method: str, trained: Path, out: Path, *more: str) -> list[str]:
        """Command line of ``pipeline.evaluate`` on this world."""
        return [
            *("--method", method, "--dataset", "rendered", "--trained", str(trained)),
            *("--data", str(self.data), "--cache", str(self.cache), "--out", str(out), "--device", "cpu"),
            *more,
        ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """The tiny rendered dataset, prepared and warm-started once for the whole session."""
    torch.set_num_threads(THREADS)
    made = TinyWorld(tmp_path_factory.mktemp("world"))
    assert prepare.main(["--dataset", "rendered", "--size", "tiny", "--world", "1", "--out", str(made.data)]) == 0
    arguments = ["--dataset", "rendered", "--profile", "tiny", "--device", "cpu", "--data", str(made.data)]
    for backbone in PARAMS.backbones.values():
        out = ["--backbone", backbone, "--out", str(made.initial_of(backbone))]
        assert pretrain.main([*arguments, *out, "--cache", str(made.cache)]) == 0
    return made
