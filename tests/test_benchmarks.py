"""The benchmarks of training and of the image store measure what they say, at a size that takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import allocation, images, training
from core.distributed import ProcessGroup
from pipeline.jobs import Job
from tests.conftest import PARAMS, TinyWorld

ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def test_only_images_that_gradients_are_recorded_of_are_counted() -> None:
    network = nn.Linear(2, 2)
    with training.counting(network) as counts:
        network(torch.zeros(3, 2))
        with torch.no_grad():
            network(torch.zeros(5, 2))
    network(torch.zeros(7, 2))
    assert counts == [3]


def test_a_row_compares_a_method_with_the_bare_loop_over_as_many_images(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, made in (("data/rendered-1", world.data), ("initial/rendered-1-resnet18_half-0", world.initial)):
        (tmp_path / folder).parent.mkdir()
        (tmp_path / folder).symlink_to(made)
    monkeypatch.chdir(tmp_path)
    changes = ["schedule.epochs=2", "schedule.iterations=2"]
    row = training.measure(Job("cluster_contrast", "rendered-1", "resnet18_half", 0), PARAMS, changes, ALONE)
    run = training.resolve_run("cluster_contrast", "rendered-1", "tiny", None, "train", changes, "resnet18_half")
    assert row["images_a_step"] == run.config.sampler.identities * run.config.sampler.instances
    assert row["share"] == pytest.approx(row["images_per_second"] / row["bare_images_per_second"])
    told = training.table(pd.DataFrame([{"device": "CPU", "threads": 2} | row]))
    assert "CPU, 2 threads" in told
    assert training.NO_GPU in told
    assert training.NO_GPU not in training.table(pd.DataFrame([{"device": "a card", "threads": 2} | row]))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be told to forget a file")
def test_images_of_the_file_are_taken_with_and_without_reading_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        images.main(["--folder", str(tmp_path), "--images", "12", "--batch", "2", "--steps", "3", "--work", "0"]) == 0
    )
    line = capsys.readouterr().out
    assert line.startswith("0 ms a step, 2 images a batch: in memory")
    assert "; file, read ahead " in line
    assert not list(tmp_path.iterdir())


def test_what_freed_memory_costs_is_measured_of_extraction_and_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "IMAGES", 128)
    for work in allocation.BATCHES:
        rate, peak = allocation.measure("resnet18_half", work, "given back")
        assert rate > 0
        assert peak > 0
