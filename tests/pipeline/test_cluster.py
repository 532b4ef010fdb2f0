"""A sweep on a cluster: the bytes of the local one, whatever ends its tasks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml

from core.errors import UserError
from core.lock import FolderInUse, locked
from pipeline import cli, cluster, group, sweep
from pipeline.cluster import Cluster, Ledger, Outcome, Task, run_tasks
from pipeline.group import End, read_ends, run_group, write_ends
from pipeline.jobs import ROOT
from pipeline.processes import LOGS, Step, reason
from tests.conftest import TinyWorld
from tests.pipeline.test_sweep import PARAMS, wait_for

TRAINED = "hhcl-rendered-resnet18_half-0"
WHOLE = {"datasets": ["rendered"], "runs": {"cnn": ["warm_start", "hhcl"]}, "overrides": {"schedule": {"epochs": 3}}}
PREPARE = Step("prepare", ["--help"])
STEPS = [Step("train", []), Step("evaluate", [])]


def furnish(folder: Path, world: TinyWorld) -> None:
    """Settings, data and warm start of a sweep in the folder."""
    for place, made in (("data/rendered", world.data), ("initial/rendered-resnet18_half-0", world.initial)):
        (folder / place).parent.mkdir()
        (folder / place).symlink_to(made)
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **WHOLE}))


def left_by(folder: Path) -> dict[str, bytes]:
    """What a sweep leaves that depends on no clock."""
    patterns = ("training/*/weights/*.pt", "runs/*/queries.csv")
    files = [file for pattern in patterns for file in (folder / "results").glob(pattern)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def local(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local engine leaves."""
    folder = tmp_path_factory.mktemp("local")
    furnish(folder, world)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        sweep.main(["--device", "cpu"])
    return left_by(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "LEASE_SECONDS", 0.5)
    return tmp_path


@pytest.fixture
def engine(request: pytest.FixtureRequest, here: Path) -> Iterator[list[str]]:
    """Options of an engine that is installed, on this machine."""
    name = request.param
    if name == "ray":
        ray = pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-ray.txt")
        yield ["--engine", "ray"]
        ray.shutdown()
    else:
        (here / "options.yaml").write_text("cluster: local\n")
        yield ["--engine", name, "--options", "options.yaml"]


def kill_and_hold(log: Path) -> None:
    """Kill a task in its training's second epoch, and hold its checkpoint until another was refused for it."""
    states = Path(".cache/checkpoints").glob
    assert wait_for(lambda: list(states("*/state.pt")), 120)
    held = next(states("*/state.pt")).parent
    mine = psutil.Process().children(recursive=True)
    task = next(child for child in mine if "pipeline.group" in child.cmdline() and child.children())
    doomed = [task, *task.children()]
    task.kill()
    psutil.wait_procs(doomed, timeout=10)
    with locked(held):
        wait_for(lambda: "is being written by process" in log.read_text(), 120)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["submitit", "ray"], indirect=True)
def test_a_killed_task_loses_no_job_and_its_training_goes_on_in_one_copy_to_the_same_bytes(
    engine: list[str], here: Path, world: TinyWorld, local: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(here, world)
    log = here / f"results/logs/{TRAINED}.log"
    killer = threading.Thread(target=kill_and_hold, args=[log])
    killer.start()
    assert sweep.main(["--device", "cpu", *engine]) == 0
    killer.join()
    assert left_by(here) == local
    told = re.findall(r"begun again: (\S+): (.*)", capsys.readouterr().err)
    assert [name for name, _ in told] == [f"results/logs/{TRAINED}.log"] * 2
    assert re.match(r"(the )?task .*ended", told[0][1])
    assert "is being written by process" in told[1][1]
    attempts = re.split(r"^\$ .*python -m pipeline ", log.read_text(), flags=re.MULTILINE)[1:]
    assert [attempt.split()[0] for attempt in attempts] == ["train", "train", "train", "evaluate"]
    assert "epoch 1 " in attempts[0]
    assert "epoch 1 " not in attempts[2], "it began anew"
    assert "epoch 3 " in attempts[2]
    other = (here / "results/logs/warm_start-rendered-resnet18_half-0.log").read_text()
    assert other.count("$ ") == 2, "what had ended was run again"
    tasks = [json.loads(file.read_text()) for file in (here / cluster.TASKS).glob("*[0-9a-f].json")]
    assert sorted(len(task) for task in tasks) == [1, 1, 2], "jobs share a task, until one is cut off"


@pytest.mark.slow
def test_a_task_that_slurm_preempts_is_given_anew_and_not_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of SLURM are played: the first task is preempted and never requeued, the second one runs."""
    commands = {
        "sbatch": 'echo "$1" >> asked; n=$(wc -l < asked); echo "Submitted batch job $n"\n'
        '[ "$n" = 1 ] || SLURM_JOB_ID=$n sh "$1" > told 2>&1 &',
        "srun": 'while [ "${1#--}" != "$1" ]; do case "$1" in *=*|--unbuffered) shift;; *) shift 2;; esac; done; "$@"',
        "sacct": "printf 'JobID|State|NodeList\\n1|PREEMPTED|\\n2|RUNNING|\\n'",
        "scancel": 'echo "$1" >> cancelled',
    }
    (here / "bin").mkdir()
    for name, script in commands.items():
        (here / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (here / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(here / "bin"), prepend=os.pathsep)
    options = {"slurm_partition": "scavenge", "timeout_min": 10}
    assert run_tasks({"job": [PREPARE]}, 1, Cluster("submitit", 3, 1, options=options)) == {}
    assert "usage: python -m pipeline prepare" in (here / LOGS / "job.log").read_text()
    assert re.search(r"begun again: \S+job.log: task 1 ended as PREEMPTED", capsys.readouterr().err)
    assert (here / "cancelled").read_text().split() == ["1"], "SLURM might start it again beside the next"
    asked = Path((here / "asked").read_text().splitlines()[0]).read_text()
    for line in ("cpus-per-task=3", "gpus-per-node=1", "partition=scavenge", "time=10", "job-name=sweep"):
        assert f"#SBATCH --{line}\n" in asked


@pytest.mark.slow
def test_a_sweep_that_is_told_to_end_cancels_its_tasks(here: Path, request: pytest.FixtureRequest) -> None:
    params = {**PARAMS, "datasets": ["rendered"], "rendered": {"size": "large"}}
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    (here / "options.yaml").write_text("cluster: local\n")
    command = [sys.executable, "-m", "pipeline", "sweep", "--device", "cpu"]
    command += ["--engine", "submitit", "--options", "options.yaml"]
    sweeping = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    request.addfinalizer(sweeping.kill)
    log = here / "results/logs/prepare-rendered.log"
    assert wait_for(lambda: log.is_file() and "rendering" in log.read_text(), 120), "the job is at work"
    started = psutil.Process(sweeping.pid).children(recursive=True)
    request.addfinalizer(lambda: [process.kill() for process in started if process.is_running()])
    assert any("pipeline.group" in process.cmdline() for process in started)
    sweeping.send_signal(signal.SIGTERM)
    assert sweeping.wait(30) == cluster.TERMINATED
    assert not psutil.wait_procs(started, timeout=20)[1]


UNTOUCHED = """
import torch

def refuse(*_):
    raise RuntimeError("CUDA was touched, which no fork can use afterwards")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = refuse
from pipeline.group import import_all
import_all({"prepare", "pretrain", "train", "evaluate"})
"""


@pytest.mark.slow
def test_the_process_that_jobs_are_forked_from_touches_no_gpu() -> None:
    subprocess.run([sys.executable, "-c", UNTOUCHED], cwd=ROOT, check=True)


class Played(NamedTuple):
    """A task that has ended."""

    how: str
    cancelled: list[str]

    def done(self) -> bool:
        return True

    def ending(self) -> str:
        return self.how

    def cancel(self) -> None:
        self.cancelled.append(self.how)


class Stage:
    """An engine whose tasks end as they are told: each as (how, how far its jobs came)."""

    def __init__(self, *ends: tuple[str, Mapping[str, End]]) -> None:
        self.ends = list(ends)
        self.given: list[dict[str, list[str]]] = []
        self.cancelled: list[str] = []

    def submit(self, command: list[str]) -> Task:
        file = Path(command[-1].split()[-1])
        jobs = json.loads(file.read_text())
        self.given.append({name: [verb for verb, _ in steps] for name, steps in jobs.items()})
        how, ends = self.ends.pop(0)
        write_ends(file, ends)
        return Played(how, self.cancelled)


def play(stage: Stage, monkeypatch: pytest.MonkeyPatch, jobs: str, parallel: int = 1, **how: int) -> dict[str, str]:
    """Run jobs of two steps, named by letters, on a stage."""
    monkeypatch.setitem(cluster.ENGINES, "played", lambda _: stage.submit)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    return run_tasks(dict.fromkeys(jobs, STEPS), parallel, Cluster("played", 1, 0, **how))


BOTH, LAST = ["train", "evaluate"], ["evaluate"]
ENDED, ALL = End(2, 0), {name: End(2, 0) for name in "abc"}


def test_a_timed_out_task_leaves_what_ended_and_gives_the_rest_to_others(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(("timed out", {"a": ENDED, "b": End(1, None)}), ("ended", ALL), ("ended", ALL))
    assert play(stage, monkeypatch, "abc") == {}
    assert stage.given == [{"a": BOTH, "b": BOTH, "c": BOTH}, {"c": BOTH}, {"b": LAST}]
    assert stage.cancelled == ["timed out"]


@pytest.mark.parametrize(
    ("how", "ends"), [("preempted", {}), ("node failed", {"a": End(0, None)}), ("out of memory", {"a": End(0, -9)})]
)
def test_what_was_cut_off_is_begun_again_until_its_retries_are_spent(
    how: str, ends: dict[str, End], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage((how, ends), ("ended", ALL))
    assert play(stage, monkeypatch, "a") == {}
    why = "killed by SIGKILL" if ends == {"a": End(0, -9)} else how
    assert f"begun again: results/logs/a.log: {why}\n" in capsys.readouterr().err
    stage = Stage((how, ends), (how, ends))
    assert play(stage, monkeypatch, "a", retries=1) == {"a": f"{why} (attempts: 2)"}


def test_a_job_that_fails_by_itself_is_reported_and_not_begun_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*_: object) -> dict[str, End]:
        (here / LOGS / "a.log").write_text("$ python -m pipeline train\nerror: no data\n")
        return {"a": End(0, 2), "b": ENDED}

    monkeypatch.setattr(cluster, "read_ends", told)
    stage = Stage(("ended", {}))
    assert play(stage, monkeypatch, "ab") == {"a": "error: no data"}
    assert "failed: results/logs/a.log: error: no data\n" in capsys.readouterr().err
    assert stage.cancelled == []


def test_a_refused_job_waits_until_the_lock_of_a_lost_machine_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    outcome = Outcome({}, {"a": "lost"}, {"b": "in use"}, ["c"], {"a": 0, "b": 0})
    with cluster.tqdm(disable=True) as bar:
        left = Ledger(2).settle(outcome, bar)
    assert [waiting.names for waiting in left] == [["c"], ["a"], ["b"]]
    assert [waiting.after for waiting in left] == [0.0, 0.0, 1000.0 + cluster.LEASE_SECONDS]
    assert [waiting.names for waiting in cluster.startable(left, 3)] == [["c"], ["a"]]
    assert [waiting.names for waiting in cluster.startable(left, 1)] == [["c"]]


@pytest.mark.parametrize(
    ("parallel", "how", "sizes"), [(1, {}, [3]), (2, {}, [2, 1]), (1, {"group": 1}, [1, 1, 1]), (8, {}, [1, 1, 1])]
)
def test_jobs_are_dealt_out_over_the_tasks_that_run_at_once_or_by_size(
    parallel: int, how: dict[str, int], sizes: list[int], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(*[("ended", ALL)] * 3)
    assert play(stage, monkeypatch, "abc", parallel, **how) == {}
    assert [len(task) for task in stage.given] == sizes


def test_a_task_that_is_started_again_goes_on_at_the_step_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str]] = []

    def play_step(log: Path, step: Sequence[str]) -> int:
        ran.append((log.stem, step[0]))
        return 3 if log.stem == "c" else 0

    monkeypatch.setattr(group, "run_step", play_step)
    file = tmp_path / "tasks/0.json"
    write_ends(file, {"a": ENDED, "b": End(1, None)})
    run_group(file, dict.fromkeys("abcd", STEPS))
    assert ran == [("b", "evaluate"), ("c", "train"), ("d", "train"), ("d", "evaluate")]
    assert read_ends(file) == {"a": ENDED, "b": ENDED, "c": End(0, 3), "d": ENDED}


def test_the_reason_of_a_failure_is_its_last_attempt_s(here: Path) -> None:
    (here / LOGS).mkdir(parents=True)
    (here / LOGS / "a.log").write_text("$ python x\nerror: in use\n$ python x\nTraceback\nValueError: broken\n")
    assert reason("a", 1) == "ValueError: broken"


def test_a_folder_in_use_has_an_exit_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> int:
        raise FolderInUse("run is being written")

    with pytest.raises(SystemExit, match=f"^{cli.IN_USE}$"):
        cli.run_main(refuse)
    assert capsys.readouterr().err == "error: run is being written\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "submitit"], "--engine submitit needs --device cuda or --device cpu"),
        (["--device", "cpu", "--retries", "1"], "--retries is of a cluster"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str, here: Path) -> None:
    (here / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    with pytest.raises(UserError, match=message):
        sweep.main(arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "local", "timeout": 3}, "submitit: .*'timeout'"),
        ({}, "submitit: .*srun"),
        ({"cluster": "cloud"}, "submitit: .*cloud"),
    ],
)
def test_options_that_submitit_cannot_use_are_refused(
    options: dict[str, object], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(str(shutil.which("sh"))).parent / "nothing"))  # also where there is a SLURM
    with pytest.raises(UserError, match=message):
        run_tasks({"a": STEPS}, 1, Cluster("submitit", 1, 0, options=options))


def test_an_engine_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"`pip install -r requirements-ray\.txt`"):
        run_tasks({"a": STEPS}, 1, Cluster("ray", 1, 0))
