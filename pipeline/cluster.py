"""A sweep's jobs as tasks of a cluster: SLURM through submitit, or Ray.

A task is a command, `python -m pipeline.group`, which runs a few jobs and keeps how far each came on the disk that all
machines share. The engines only start commands, ask whether they have ended, and cancel them. What a task that was
killed, timed out or lost its machine left undone is given to another: steps that have ended stay done, and a training
goes on from its checkpoint.
"""

from __future__ import annotations

import math
import secrets
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from core.errors import UserError
from core.files import write_json
from pipeline.cli import IN_USE
from pipeline.group import End, read_ends
from pipeline.processes import LOGS, Step, python_path, reason

TASKS = LOGS / "tasks"
POLL_SECONDS = 0.5  # between two looks at the running tasks
# A file server drops the locks of a machine that is gone after about 90 seconds; until then its jobs are refused.
LEASE_SECONDS = 120
TERMINATED = 128 + signal.SIGTERM  # exit status, as a shell reports a program that SIGTERM ended
PACKAGES = {"submitit": "-r requirements.lock", "ray": "-r requirements-ray.txt"}


@dataclass(frozen=True)
class Cluster:
    """How tasks are started: by which engine, with what resources, and what becomes of lost ones.

    cpus, gpus: of a task. group: most jobs in a task, None to deal all out over the tasks that run at once. retries:
    how often a job is begun again. options: the engine's own parameters, above cpus and gpus.
    """

    engine: str
    cpus: int
    gpus: int
    group: int | None = None
    retries: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A command that was given to a cluster."""

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""

    def ending(self) -> str:
        """How it ended, and where to read more."""

    def cancel(self) -> None:
        """End it, and keep it from being started again."""


Submit = Callable[[list[str]], Task]


class Waiting(NamedTuple):
    """Jobs for one task, which is not started before the time ``after`` (of ``time.monotonic``)."""

    names: list[str]
    after: float = 0.0


class Given(NamedTuple):
    """A task, the file that lists its jobs, and their names."""

    task: Task
    file: Path
    names: list[str]


class Outcome(NamedTuple):
    """What a task that has ended says of its jobs; why, by name, but for those that were never begun.

    failed: with an error of their own. lost: cut off. refused: by the lock of a folder that another process writes.
    steps: how many of its steps each lost or refused job has behind it.
    """

    failed: dict[str, str]
    lost: dict[str, str]
    refused: dict[str, str]
    untouched: list[str]
    steps: dict[str, int]


def run_tasks(work: Mapping[str, Sequence[Step]], parallel: int, cluster: Cluster) -> dict[str, str]:
    """Run each job's steps in a task of the cluster, ``parallel`` tasks at once; return why each failed one failed.

    A job that is lost is begun again, at most ``cluster.retries`` times. Raises UserError where the engine cannot be
    had with its options.
    """
    if not work:
        return {}
    submit = ENGINES[cluster.engine](cluster)
    TASKS.mkdir(parents=True, exist_ok=True)
    for name in work:
        (LOGS / f"{name}.log").write_text("")  # attempts add to it
    left = dict(work)
    waiting = dealt(list(work), cluster.group or math.ceil(len(work) / max(1, parallel)))
    running: list[Given] = []
    ledger = Ledger(cluster.retries)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # by way of what follows ``finally``
    try:
        with tqdm(total=len(work), desc="jobs") as bar:
            while waiting or running:
                for group in startable(waiting, max(1, parallel) - len(running)):
                    waiting.remove(group)
                    running.append(give(submit, {name: left[name] for name in group.names}))
                for given in [given for given in running if given.task.done()]:
                    running.remove(given)
                    outcome = outcome_of(given)
                    left |= {name: left[name][steps:] for name, steps in outcome.steps.items()}
                    again = ledger.settle(outcome, bar)
                    if again:
                        given.task.cancel()  # SLURM may start it again, beside the next that has its jobs
                    waiting += again
                    bar.update(len(given.names) - sum(len(group.names) for group in again))
                time.sleep(POLL_SECONDS)
    finally:  # of tasks that are there when the sweep is interrupted
        for given in running:
            given.task.cancel()
        signal.signal(signal.SIGTERM, before)
    return ledger.failed


def dealt(names: Sequence[str], size: int) -> list[Waiting]:
    """The jobs in groups of ``size``, in their order."""
    return [Waiting(list(names[first : first + size])) for first in range(0, len(names), size)]


def startable(waiting: Sequence[Waiting], most: int) -> list[Waiting]:
    """The first groups whose time has come, at most so many."""
    return [group for group in waiting if group.after <= time.monotonic()][: max(0, most)]


class Ledger:
    """How often each job was begun in vain, and why those failed that are not begun again."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.attempts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}

    def settle(self, outcome: Outcome, bar: tqdm[Any]) -> list[Waiting]:
        """Tell of what went wrong in a task, and return what is left to do of it, in groups.

        What was cut off is begun again apart from what had not begun, so that what ended it takes no other along.
        """
        vain = outcome.lost | outcome.refused
        self.attempts.update(vain.keys())
        spent = [name for name in vain if self.attempts[name] > self.retries]
        failed = outcome.failed | {name: f"{vain[name]} (attempts: {self.attempts[name]})" for name in spent}
        self.failed |= failed
        again = {name: why for name, why in vain.items() if name not in spent}
        for what, jobs in (("failed", failed), ("begun again", again)):
            for name, why in jobs.items():
                bar.write(f"{what}: {LOGS / f'{name}.log'}: {why}", file=sys.stderr)
        groups = [
            Waiting(outcome.untouched),
            Waiting([name for name in outcome.lost if name in again]),
            Waiting([name for name in outcome.refused if name in again], time.monotonic() + LEASE_SECONDS),
        ]
        return [group for group in groups if group.names]


def give(submit: Submit, jobs: Mapping[str, Sequence[Step]]) -> Given:
    """Write what a task is to do, and start it; it ends with the process of the engine that starts it."""
    file = TASKS / f"{secrets.token_hex(6)}.json"
    write_json(file, jobs)
    program = shlex.join(["env", f"PYTHONPATH={python_path()}", sys.executable, "-m", "pipeline.group"])
    return Given(submit(["sh", "-c", f"exec {program} $PPID {file}"]), file, list(jobs))


def outcome_of(given: Given) -> Outcome:
    """What became of the jobs of a task that has ended; where it began none, all are lost with it."""
    ends = read_ends(given.file)
    outcome = Outcome({}, {}, {}, [], {})
    for name in given.names:
        end = ends.get(name, End(0, None))
        if end.code is None and (name in ends or not ends):
            outcome.lost[name] = given.task.ending()
        elif end.code is None:
            outcome.untouched.append(name)
        elif end.code == IN_USE:
            outcome.refused[name] = reason(name, end.code)
        elif end.code:
            told = outcome.lost if end.code < 0 else outcome.failed
            told[name] = reason(name, end.code)
    steps = {name: ends[name].steps for name in ends if name in outcome.lost or name in outcome.refused}
    return outcome._replace(steps=steps)


class SlurmTask(NamedTuple):
    """A job of submitit.

    One that SLURM has preempted counts as ended: submitit waits for its requeue, and not every cluster requeues.
    """

    job: Any

    def done(self) -> bool:
        return bool(self.job.done()) or self.job.state == "PREEMPTED"

    def ending(self) -> str:
        return f"task {self.job.job_id} ended as {self.job.state}: {self.job.paths.stderr}"

    def cancel(self) -> None:
        self.job.cancel(check=False)


def with_submitit(cluster: Cluster) -> Submit:
    """Start commands by SLURM, or as processes of this machine where ``cluster: local`` asks for that.

    Raises UserError for a missing package, without SLURM, and for options that submitit or SLURM does not take.
    """
    submitit = needed_package("submitit")
    asked = {"name": "sweep", "timeout_min": 240, "cpus_per_task": cluster.cpus, "gpus_per_node": cluster.gpus or None}
    options = {**asked, **cluster.options}
    try:
        executor = submitit.AutoExecutor(TASKS, cluster=options.pop("cluster", "slurm"))
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        raise UserError(f"submitit: {error}") from error

    def submit(command: list[str]) -> Task:
        try:
            with submitit.helpers.clean_env():  # of a SLURM job that the sweep may be itself
                return SlurmTask(executor.submit(run, command, cwd=Path.cwd(), stdin=DEVNULL))
        except RuntimeError as error:  # of submitit, which gives what sbatch said
            raise UserError(f"sbatch did not take a task: {error}; the same command goes on") from error

    return submit


class RayTask(NamedTuple):
    """A task of Ray."""

    ray: Any
    result: Any

    def done(self) -> bool:
        return bool(self.ray.wait([self.result], timeout=0)[0])

    def ending(self) -> str:
        try:
            return f"the task ended with exit status {self.ray.get(self.result).returncode}"
        except self.ray.exceptions.RayError as error:
            return f"the task ended as {type(error).__name__}"

    def cancel(self) -> None:
        self.ray.cancel(self.result, force=True)


def with_ray(cluster: Cluster) -> Submit:
    """Start commands by the Ray cluster that RAY_ADDRESS names, or else by one that is made on this machine.

    Raises UserError for a missing package, and for options that Ray does not know.
    """
    ray = needed_package("ray")
    options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "max_retries": 0, **cluster.options}
    try:
        remote = ray.remote(**options)(run)
        ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    except (ValueError, TypeError, ConnectionError) as error:
        raise UserError(f"ray: {error}") from error

    def submit(command: list[str]) -> Task:
        return RayTask(ray, remote.remote(command, cwd=Path.cwd(), stdin=DEVNULL))

    return submit


def needed_package(name: str) -> Any:
    """The engine's package; raises UserError with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"--engine {name} needs a package that is not installed: `pip install {PACKAGES[name]}`"
        ) from error


ENGINES: dict[str, Callable[[Cluster], Submit]] = {"submitit": with_submitit, "ray": with_ray}
