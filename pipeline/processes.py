"""Several jobs at once, each in a process and a log of its own, dealt out over the CUDA devices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from pipeline.jobs import ROOT

LOGS = Path("results/logs")
POLL = 0.1  # seconds between two looks at the running jobs


class Step(NamedTuple):
    """A verb of `python -m pipeline`, and its command line."""

    verb: str
    arguments: list[str]


class Running(NamedTuple):
    """A job's process, and the CUDA device that it was given."""

    process: subprocess.Popen[bytes]
    device: str | None


def run_all(work: Mapping[str, Sequence[Step]], parallel: int, device: str) -> dict[str, str]:
    """Run each job's steps in a process of its own, ``parallel`` jobs at once; return why each failed one failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    devices = visible_devices(device)
    waiting, failed = list(work), {}
    running: dict[str, Running] = {}
    try:
        with tqdm(total=len(work), desc="jobs", disable=not work) as bar:
            while waiting or running:
                while waiting and len(running) < max(1, parallel):
                    name = waiting.pop(0)
                    running[name] = start(name, work[name], least_busy(devices, running.values()))
                for name in [name for name, job in running.items() if job.process.poll() is not None]:
                    if code := running.pop(name).process.returncode:
                        failed[name] = reason(name, code)
                        bar.write(f"failed: {LOGS / f'{name}.log'}: {failed[name]}", file=sys.stderr)
                    bar.update()
                time.sleep(POLL if running else 0)
    finally:  # of jobs still running when the sweep is interrupted
        for job in running.values():
            job.process.kill()
            job.process.wait()
    return failed


def start(name: str, steps: Sequence[Step], device: str | None) -> Running:
    """Start a job's process; what it prints goes to its log."""
    environment = os.environ | {"PYTHONPATH": python_path()}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    command = [sys.executable, "-m", "pipeline.worker", str(os.getpid()), json.dumps(steps)]
    with (LOGS / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    return Running(process, device)


def python_path() -> str:
    """PYTHONPATH with the suite on it: a job runs in the folder of its results, which may be another."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def visible_devices(device: str) -> list[str]:
    """CUDA devices to deal jobs out over, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def least_busy(devices: Sequence[str], running: Iterable[Running]) -> str | None:
    """The device with the fewest jobs, the first of equals; None where there are none."""
    taken = [job.device for job in running]
    return min(devices, key=taken.count) if devices else None


def reason(name: str, code: int) -> str:
    """Why a job ended with this return code: the signal that killed it, its error, or else what it said last."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    log = (LOGS / f"{name}.log").read_text(errors="replace")
    said = [line for line in log.rpartition("\n$ ")[2].splitlines() if line.strip()]  # by its last step
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or [f"exit status {code}"])[-1]
