"""The jobs of one task of a cluster, one after the other, each with a log of its own.

`python -m pipeline.group PARENT TASK.json` runs what the file lists. torch is imported once, and every step of a job is
a fork of the process that has it: for a step of seconds the import costs more than the work. How far each job came is
kept beside the list, so that a task that is started again (SLURM requeues one that was preempted) goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.worker import end_with, run_steps

Steps = Sequence[tuple[str, list[str]]]  # verbs with their arguments


class End(NamedTuple):
    """How far a job came: steps that succeeded, and the exit status of its last one, None while it has not ended.

    The status of a step that signal N killed is -N.
    """

    steps: int
    code: int | None


def main(argv: Sequence[str]) -> int:
    """Exit status 0 when every job has ended, in whatever way."""
    end_with(int(argv[0]))
    file = Path(argv[1])
    run_group(file, json.loads(file.read_text()))
    return 0


def run_group(file: Path, jobs: Mapping[str, Steps]) -> None:
    """Run what has not ended yet, and keep after every step how far its job came (``read_ends``)."""
    import_all({verb for steps in jobs.values() for verb, _ in steps})
    ends = read_ends(file)
    for name, steps in jobs.items():
        end = ends.get(name, End(0, None))
        while end.code is None:
            write_ends(file, ends := {**ends, name: end})
            end = after(end, run_step(file.parents[1] / f"{name}.log", steps[end.steps]), len(steps))
        write_ends(file, ends := {**ends, name: end})


def after(end: End, code: int, steps: int) -> End:
    """How far a job of so many steps has come when its next one ended with this exit status."""
    if code:
        return End(end.steps, code)
    return End(end.steps + 1, 0 if end.steps + 1 == steps else None)


def run_step(log: Path, step: tuple[str, list[str]]) -> int:
    """Exit status of a step in a process of its own, -N when signal N killed it."""
    process: Any = multiprocessing.get_context("fork").Process(target=write_to, args=(log, step, os.getpid()))
    process.start()
    process.join()
    return int(process.exitcode)


def write_to(log: Path, step: tuple[str, list[str]], parent: int) -> None:
    """Run the step in this process, which ends with ``parent``; what it prints is added to the log."""
    end_with(parent)
    with log.open("a") as told:
        told.write("\n" if told.tell() else "")  # what was cut off may have ended within a line
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    sys.exit(run_steps([step]))


def import_all(verbs: set[str]) -> None:
    """Import what the verbs need, and what networks are made of, once for all jobs."""
    known = import_module("pipeline.cli").VERBS
    for module in [*sorted(known[verb].module for verb in verbs), "core.backbones.blocks"]:
        import_module(module)


def ends_of(file: Path) -> Path:
    """Where a task keeps how far its jobs came."""
    return file.with_suffix(".ends.json")


def read_ends(file: Path) -> dict[str, End]:
    """How far every job came that has begun."""
    ends = ends_of(file)
    return {name: End(*end) for name, end in json.loads(ends.read_text()).items()} if ends.is_file() else {}


def write_ends(file: Path, ends: Mapping[str, End]) -> None:
    """Keep how far jobs came, on disk before the next step begins."""
    import_module("core.files").write_json(ends_of(file), ends)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
