"""A sweep's jobs: each a process of its own, which fails alone, has a device of its own and ends with the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml

from core.errors import UserError
from pipeline import processes, sweep
from pipeline.jobs import ROOT, Job
from pipeline.processes import Step
from reports import leaderboard
from tests.conftest import TinyWorld

PARAMS = {
    "profile": "tiny",
    "datasets": ["market1501", "rendered"],
    "backbones": {"cnn": "resnet18_half"},
    "runs": {"cnn": ["warm_start"]},
    "seeds": [0],
    "threads": 1,
    "rendered": {"size": "tiny"},
    "launch": "python",
    "data_root": "nowhere",
}


def prepare(size: str, out: str) -> Step:
    """Draw the dataset: short for ``tiny``, longer than any test for ``large``."""
    return Step("prepare", ["--dataset", "rendered", "--size", size, "--out", out])


def wait_for(found: Callable[[], object], seconds: float = 60) -> bool:
    """Whether ``found`` came true within so many seconds."""
    end = time.monotonic() + seconds
    while not found() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(found())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_failed_and_a_killed_job_are_named_with_their_reasons_and_the_others_go_on(here: Path) -> None:
    def kill() -> None:
        mine = psutil.Process().children
        wait_for(lambda: any("doomed" in " ".join(child.cmdline()) for child in mine()))
        next(child for child in mine() if "doomed" in " ".join(child.cmdline())).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    work = {
        "killed": [prepare("large", "data/doomed")],
        "refused": [prepare("huge", "data/refused"), prepare("tiny", "data/never")],
        "good": [prepare("tiny", "data/rendered")],
    }
    failed = processes.run_all(work, 2, "cpu")
    killer.join()
    assert set(failed) == {"killed", "refused"}
    assert failed["killed"] == "killed by SIGKILL"
    assert failed["refused"].startswith("error: ")
    assert "huge" in failed["refused"]
    assert (here / "data/rendered/manifest.csv").is_file()
    assert not (here / "data/never").exists(), "a job stops at its first failed step"


@pytest.mark.slow
def test_a_dataset_that_cannot_be_prepared_leaves_the_other_jobs_and_a_row_not_run(
    here: Path, world: TinyWorld
) -> None:
    for folder, made in (("data/rendered", world.data), ("initial/rendered-resnet18_half-0", world.initial)):
        (here / folder).parent.mkdir()
        (here / folder).symlink_to(made)
    (here / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    with pytest.raises(sweep.JobsFailed, match=r"1 more lack.*\n.*prepare-market1501\.log: error: market1501.*nowhere"):
        sweep.main(["--device", "cpu"])
    assert leaderboard.main([]) == 0
    table = pd.read_csv(here / "results/leaderboard.csv").set_index("dataset")
    assert list(table["status"]) == ["not run", "ok"]
    assert pd.isna(table.loc["market1501", "mAP_mean"])
    assert table.loc["rendered", "mAP_mean"] > 0


@pytest.mark.slow
def test_jobs_are_dealt_out_over_the_cuda_devices(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.run_all({name: [Step("prepare", ["--help"])] for name in "abc"}, 3, "auto") == {}
    told = [(here / f"results/logs/{name}.log").read_text().splitlines()[0] for name in "abc"]
    assert told == [f"$ CUDA_VISIBLE_DEVICES={i} python -m pipeline prepare --help" for i in (0, 1, 0)]


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--worlds", "2", "--start-from", "imagenet"], "--worlds, --start-from"), (["--device", "cpu"], "--device")],
)
def test_runs_that_dvc_could_not_have_made_are_not_handed_to_it(
    more: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep, "run_for_dvc", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(UserError, match=f"--dvc runs what params.yaml says.*leave {named} out"):
        sweep.main(["--params", "params.yaml", "--dvc", *more])


def test_what_warm_starts_begin_from_is_told_to_those_that_are_not_there(here: Path) -> None:
    machine = sweep.Machine(1, "cpu", 1, here / "params.yaml", "tiny", start_from="imagenet_copy=FILE")
    made, missing = (Job("warm_start", name, "mobilenet_v2", 0) for name in ("market1501", "cuhk03np_detected"))
    (here / "initial/market1501-mobilenet_v2-0").mkdir(parents=True)
    (here / "initial/market1501-mobilenet_v2-0/initial.json").touch()
    [(name, [step])] = sweep.warm_starts([made, missing], machine).items()
    assert name == "pretrain-cuhk03np_detected-mobilenet_v2-0"
    assert step.arguments[step.arguments.index("--start-from") + 1] == "imagenet_copy=FILE"


def test_devices_keep_the_names_under_which_they_are_visible_and_a_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert processes.visible_devices("auto") == ["4", "7"]
    assert processes.visible_devices("cpu") == []
    assert processes.least_busy([], []) is None


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_job_outlives_its_sweep_and_ctrl_c_is_one_line(
    end: signal.Signals, here: Path, request: pytest.FixtureRequest
) -> None:
    params = {**PARAMS, "datasets": ["rendered"], "rendered": {"size": "large"}}
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "pipeline", "sweep", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (here / "told").open("w") as told:
        process = subprocess.Popen(command, env=environment, stderr=told, start_new_session=True)
    request.addfinalizer(process.kill)  # a failed assertion leaves nothing at work
    log = here / "results/logs/prepare-rendered.log"
    assert wait_for(lambda: log.is_file() and "rendering" in log.read_text()), "the job is at work"
    workers = psutil.Process(process.pid).children()
    assert workers
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # as a terminal does
    else:
        process.send_signal(end)
    assert process.wait(30) == (130 if end == signal.SIGINT else -end)
    assert not psutil.wait_procs(workers, timeout=10)[1]
    lines = [line for line in (here / "told").read_text().splitlines() if line and not line.startswith("jobs:")]
    if end == signal.SIGINT:
        assert len(lines) == 1
        assert lines[0].startswith("interrupted; the same command goes on")
        assert "Traceback" not in log.read_text()
    else:
        assert lines == []


@pytest.mark.slow
def test_ctrl_c_in_training_is_one_line_and_exit_status_130(
    world: TinyWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arguments = world.train_arguments("hhcl", tmp_path / "out", "--set", "schedule.iterations=10000")
    arguments += ["--cache", str(tmp_path / "cache")]
    with (tmp_path / "told").open("w") as told:
        process = subprocess.Popen([sys.executable, "-m", "pipeline", "train", *arguments], cwd=ROOT, stderr=told)
    request.addfinalizer(process.kill)
    assert wait_for(lambda: "train" in (tmp_path / "told").read_text()), "it is in its first epoch"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    told = (tmp_path / "told").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("interrupted; the same command goes on")
