"""Fixtures shared by all tests: the tiny rendered dataset and its warm start, made once by the real entry points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import prepare, pretrain

THREADS = 2


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


class World:
    """A prepared tiny dataset with its warm start, and the arguments that make entry points use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.initial = folder / "initial"
        self.cache = folder / "cache"

    def train_arguments(self, method: str, out: Path, *more: str) -> list[str]:
        """Command line of ``pipeline.train`` on this world."""
        return [
            *("--method", method, "--dataset", "rendered", "--profile", "tiny"),
            *("--data", str(self.data), "--initial", str(self.initial)),
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
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny rendered dataset, prepared and warm-started once for the whole session."""
    torch.set_num_threads(THREADS)
    made = World(tmp_path_factory.mktemp("world"))
    assert prepare.main(["--dataset", "rendered", "--size", "tiny", "--world", "1", "--out", str(made.data)]) == 0
    arguments = ["--dataset", "rendered", "--profile", "tiny", "--device", "cpu", "--data", str(made.data)]
    assert pretrain.main([*arguments, "--cache", str(made.cache), "--out", str(made.initial)]) == 0
    return made
