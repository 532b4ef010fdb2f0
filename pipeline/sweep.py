"""Run every job of params.yaml without DVC, several at once: for machines that have no DVC, or room for many jobs.

A job whose result was made by the same settings, code, data and initial weights is left alone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from core.errors import UserError
from core.files import UNKNOWN_FILES, changed
from pipeline import cli
from pipeline.jobs import Job, data_folder, initial_folder, jobs
from pipeline.params import Params, Rendered
from pipeline.settings import code_hash, resolve_run


class JobsFailed(UserError):
    """Some jobs ended with an error; the message names them and their logs."""


class Step(NamedTuple):
    """An entry point, pipeline.MODULE, and its command line."""

    module: str
    arguments: list[str]


@dataclass(frozen=True)
class Machine:
    """How jobs are run: how many at once, on what device, with how many threads each, from which settings file."""

    parallel: int
    device: str
    threads: int
    params: Path
    profile: str


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every job has a result, a recorded failure of training included."""
    arguments = cli.parser("sweep", __doc__ or "")
    add_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    run_missing(jobs(params), params, machine(options, params))
    return 0


def add_arguments(arguments: Any) -> None:
    """What a sweep and an ablation share."""
    arguments.add_argument("--jobs", type=int, default=1, help="jobs at once; each takes --threads CPU threads")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    arguments.add_argument("--profile", help="a file of profiles/; default: params.yaml's")
    cli.add_machine_arguments(arguments)


def machine(options: Any, params: Params) -> Machine:
    """The machine that the options of ``add_arguments`` describe."""
    threads = cli.threads(options, params)
    return Machine(options.jobs, options.device, threads, options.params, params.profile)


def run_missing(wanted: Sequence[Job], params: Params, on: Machine) -> None:
    """Prepare, pre-train, train and evaluate what has no current result yet.

    Raises JobsFailed after all other jobs are done, naming each job that ended with an error and its log.
    """
    prepare_missing(wanted, params, on)
    missing = [job for job in dict.fromkeys(wanted) if not is_current(job, params)]
    run_all({job.name: job_steps(job, on) for job in missing}, on.parallel)


def prepare_missing(wanted: Sequence[Job], params: Params, on: Machine) -> None:
    """Data and warm starts that are not there yet; a warm start is not redone when settings change (DVC does that)."""
    preparing = {}
    for dataset in dict.fromkeys(job.dataset for job in wanted):
        drawn = params.rendered
        if (data_folder(dataset) / "dataset.json").is_file():
            refuse_other_world(dataset, drawn)
        else:
            rendered = ["--size", drawn.size, "--world", str(drawn.world)]
            rendered += ["--device", "cuda" if on.device != "cpu" and torch.cuda.is_available() else "cpu"]
            place = ["--root", params.data_root, "--out", str(data_folder(dataset))]
            preparing[f"prepare-{dataset}"] = [Step("prepare", ["--dataset", dataset, *place, *rendered])]
    run_all(preparing, on.parallel)
    starting = {}
    for dataset, backbone in dict.fromkeys((job.dataset, job.backbone) for job in wanted):
        if not (initial_folder(dataset, backbone) / "initial.json").is_file():
            where = ["--dataset", dataset, "--backbone", backbone, "--params", str(on.params), "--profile", on.profile]
            starting[f"pretrain-{dataset}-{backbone}"] = [Step("pretrain", [*where, *computing(on)])]
    run_all(starting, on.parallel)


def refuse_other_world(dataset: str, drawn: Rendered) -> None:
    """Raise ValueError when the prepared `rendered` is not the one that params.yaml asks for."""
    info = json.loads((data_folder(dataset) / "dataset.json").read_text()).get("info", {})
    there = {key: info.get(key) for key in ("size", "world")}
    if dataset == "rendered" and there != drawn.model_dump():
        folder = data_folder(dataset)
        raise UserError(
            f"{folder} holds {there}, but params.yaml asks for {drawn.model_dump()}; to prepare it again, remove "
            f"{folder} and initial/{dataset}-*, which were made from it"
        )


def job_steps(job: Job, on: Machine) -> list[Step]:
    """Training, then evaluation."""
    where = ["--method", job.run, "--dataset", job.dataset, "--seed", str(job.seed), "--backbone", job.backbone]
    where += ["--params", str(on.params), *computing(on)]
    return [Step("train", [*where, "--profile", on.profile]), Step("evaluate", where)]


def computing(on: Machine) -> list[str]:
    """Device and threads as entry points take them."""
    return ["--device", on.device, "--threads", str(on.threads)]


def is_current(job: Job, params: Params) -> bool:
    """Whether the job's result is whole and was made by the present settings, code, data and initial weights."""
    file = job.evaluated / "result.json"
    if not file.is_file():
        return False
    record = json.loads(file.read_text())
    if changed(job.evaluated, record.get("files", UNKNOWN_FILES)):
        return False
    run = resolve_run(job.run, job.dataset, params.profile, params.overrides, backbone=job.backbone)
    data = json.loads((data_folder(job.dataset) / "dataset.json").read_text())
    initial = json.loads((initial_folder(job.dataset, job.backbone) / "initial.json").read_text())
    made_by = (record["run"]["config_hash"], record["code"], record["data"]["fingerprint"], record["initial"]["sha256"])
    return made_by == (run.config.digest(), code_hash(run.method), data["fingerprint"], initial["sha256"])


def run_all(work: Mapping[str, Sequence[Step]], parallel: int) -> None:
    """Run each entry's steps one after the other, ``parallel`` entries at once, into one log per entry.

    A worker process takes one entry after the other: importing torch and waking a GPU takes longer than a short run.

    Raises JobsFailed naming the entries that ended with an error.
    """
    if not work:
        return
    logs = Path("results/logs")
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(parallel, len(work))), mp_context=spawned) as pool:
        running = {pool.submit(run_logged, steps, logs / f"{name}.log"): name for name, steps in work.items()}
        for done in tqdm(as_completed(running), "jobs", len(running)):
            if done.exception() or not done.result():
                failed.append(running[done])
    if failed:
        told = [f"{logs / f'{name}.log'}: {last_line(logs / f'{name}.log')}" for name in sorted(failed)]
        raise JobsFailed(f"{len(failed)} of {len(work)} jobs ended with an error:\n" + "\n".join(told))


def run_logged(steps: Sequence[Step], log: Path) -> bool:
    """Run the entry points until one fails; what they print goes to ``log``. Returns whether all succeeded."""
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            return all(import_module(f"pipeline.{step.module}").main(step.arguments) == 0 for step in steps)
        except (Exception, SystemExit) as error:  # whatever it is, it must not end the other jobs
            traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return False


def last_line(log: Path) -> str:
    """What a failed job said last."""
    text = log.read_text() if log.is_file() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output: its process died")


if __name__ == "__main__":
    cli.run_main(main)
