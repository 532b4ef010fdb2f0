"""One training by two launches of torchrun, which stand for two hosts: each in a folder of its own, joined by gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline import train
from pipeline.jobs import ROOT
from tests.conftest import TinyWorld

SETTINGS = [
    *("--set", "precision=fp64", "--set", "backbone.bn_groups=2", "--set", "schedule.epochs=3"),
    *("--set", "extraction_batch=16", "--threads", "1"),
]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def launched(world: TinyWorld, hosts: list[Path]) -> list[subprocess.Popen[bytes]]:
    """A launch for each host, which writes into the host's folder alone."""
    arguments = [*world.train_arguments("hhcl", Path("out"), *SETTINGS), "--cache", "cache"]
    port = str(free_port())
    started = []
    for rank, host in enumerate(hosts):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)]
        launcher += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
        with (host / "told").open("a") as told:
            command = [*launcher, "-m", "pipeline.train", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            started.append(subprocess.Popen(command, cwd=host, env=environment, stdout=told, stderr=told))
    return started


def end(launches: list[subprocess.Popen[bytes]]) -> None:
    """Kill launches, and the processes that they started, which would outlive them."""
    for launch in launches:
        if launch.poll() is None:
            for process in [*psutil.Process(launch.pid).children(recursive=True), launch]:
                process.kill()
            launch.wait()


@pytest.mark.slow
def test_a_training_over_two_hosts_is_killed_and_resumes_though_only_rank_0_has_its_checkpoint(
    world: TinyWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert train.main(world.train_arguments("hhcl", tmp_path / "alone", *SETTINGS)) == 0
    hosts = [tmp_path / "first", tmp_path / "second"]
    for host in hosts:
        host.mkdir()
        (host / "params.yaml").symlink_to(ROOT / "params.yaml")

    launches = launched(world, hosts)
    request.addfinalizer(lambda: end(launches))
    while not list(hosts[0].glob("cache/checkpoints/*/state.pt")):
        assert all(launch.poll() is None for launch in launches), (hosts[0] / "told").read_text()
        time.sleep(0.01)
    end(launches)
    assert not (hosts[0] / "out/train.json").exists(), "it ended before it could be killed; make it longer"
    (hosts[0] / "told").unlink()

    resumed = launched(world, hosts)
    request.addfinalizer(lambda: end(resumed))
    assert [launch.wait(300) for launch in resumed] == [0, 0], [(host / "told").read_text() for host in hosts]
    told = (hosts[0] / "told").read_text()
    assert "epoch 3/3" in told
    assert "epoch 1/3" not in told, "it began anew"
    assert not (hosts[1] / "out").exists()
    assert not (hosts[1] / "cache/checkpoints").exists()
    labels = [np.load(folder / "labels.npz")["labels"] for folder in (tmp_path / "alone", hosts[0] / "out")]
    np.testing.assert_array_equal(*labels)
    alone, both = (
        torch.load(folder / "weights/epoch_003.pt", weights_only=True)
        for folder in (tmp_path / "alone", hosts[0] / "out")
    )
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
