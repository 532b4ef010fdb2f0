"""Kill every stage at every file event, run it again, and compare with a run that was never killed.

`make torture` runs everything and writes docs/reliability.md; tests/torture/test_kills.py runs a sample. An image of a
drawn dataset is a file like any other: of their events one in twenty-five is tried.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from tests.torture.events import Event
from tests.torture.kill import Recorded, Trial, attempt, last_line, record, set_up, two_at_once
from tests.torture.stages import STAGES

IMAGES = 25
MODULES = ("prepare", "configure", "pretrain", "train", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every trial ended like a run that was never killed."""
    arguments = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    arguments.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="some stages only")
    arguments.add_argument("--sample", type=int, help="this many kills of each stage, evenly over its events")
    arguments.add_argument("--pairs", type=int, default=10, help="trials of two processes on one run")
    arguments.add_argument("--jobs", type=int, default=1, help="trials at once")
    arguments.add_argument("--out", type=Path, help="report to write, as docs/reliability.md")
    options = arguments.parse_args(argv)
    import_before_forking()
    began = time.process_time() + children_seconds()
    with tempfile.TemporaryDirectory(prefix="torture-") as work:
        folder = Path(work)
        set_up(folder / "made")
        trials, recorded = [], {}
        for number, name in enumerate(options.stages):
            recorded[name] = record(STAGES[name], folder / "made", folder / f"whole{number}")
            events = chosen(recorded[name].events, options.sample)
            trials += run_trials(name, events, recorded[name], folder, options.jobs)
            report_stage(name, trials)
        pairs = run_pairs(recorded, folder, options.pairs)
    seconds = time.process_time() + children_seconds() - began
    text = report(trials, recorded, pairs, seconds)
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(any(trial.fault for trial in trials) or any(pairs))


def import_before_forking() -> None:
    """So that a child starts at once; one thread, for a fork takes no other along."""
    torch.set_num_threads(1)
    for name in (*(f"pipeline.{module}" for module in MODULES), "reports.leaderboard"):
        import_module(name)
    import_module("matplotlib.pyplot")
    import_module("datasets.rendered.dataset")


def chosen(events: Sequence[Event], sample: int | None) -> list[Event]:
    """The events to die at: all but most of the drawn images', or a sample."""
    images = [event for event in events if event.path.endswith(".jpg")]
    kept = sorted(set(events) - set(images)) + sorted(images)[::IMAGES]
    if sample is None or sample >= len(kept):
        return kept
    return [kept[(2 * place + 1) * len(kept) // (2 * sample)] for place in range(sample)]


def run_trials(name: str, events: Sequence[Event], whole: Recorded, work: Path, jobs: int) -> list[Trial]:
    """All trials of a stage, ``jobs`` at once, each worker with a folder of its own."""
    workers = {}
    for worker in range(jobs):
        results = work / f"results{worker}"
        child = os.fork()
        if child == 0:
            mine = events[worker::jobs]
            made = (attempt(name, STAGES[name], work / "made", whole, event, work / f"trial{worker}") for event in mine)
            results.write_text(json.dumps(list(made)))
            os._exit(0)
        workers[child] = results
    trials = []
    for child, results in workers.items():
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"a worker died in {name}")
        trials += [Trial(stage, Event(*event), fault) for stage, event, fault in json.loads(results.read_text())]
    return trials


def run_pairs(recorded: dict[str, Recorded], work: Path, count: int) -> list[str | None]:
    """Faults of the trials of two processes that train one run at the same time."""
    if "train" not in recorded:
        return []
    found = []
    for _ in range(count):
        found.append(two_at_once(STAGES["train"], work / "made", recorded["train"].folder, work / "pair"))
        if found[-1]:
            print(f"two at once: {found[-1]} ({last_line(work / 'pair')})", flush=True)
    return found


def report_stage(name: str, trials: Sequence[Trial]) -> None:
    """What became of a stage, for the person who waits."""
    mine = [trial for trial in trials if trial.stage == name]
    print(f"{name}: {sum(not trial.fault for trial in mine)} of {len(mine)} identical", flush=True)
    for trial in mine:
        if trial.fault:
            print(f"  {trial.event}: {trial.fault}", flush=True)


def report(trials: Sequence[Trial], recorded: dict[str, Recorded], pairs: Sequence[str | None], seconds: float) -> str:
    """docs/reliability.md: what was tried and what came of it."""
    tried = Counter(trial.stage for trial in trials)
    same = Counter(trial.stage for trial in trials if not trial.fault)
    rows = [f"| {name} | {len(recorded[name].events)} | {tried[name]} | {same[name]} |" for name in tried]
    faults = [f"- {trial.stage}, {trial.event}: {trial.fault}" for trial in trials if trial.fault]
    return PAGE.format(
        rows="\n".join(rows),
        tried=len(trials),
        same=sum(same.values()),
        pairs=len(pairs),
        well=sum(fault is None for fault in pairs),
        faults="\n".join(faults) or "None.",
        minutes=seconds / 60,
        images=IMAGES,
    )


def children_seconds() -> float:
    """CPU time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


PAGE = """# Killed anywhere

`make torture` writes this page. It runs each stage on the tiny rendered world in a process that ends itself by SIGKILL
at one file event: before a file is opened for writing, when half of its bytes are written, before an fsync, a rename,
an unlink, an mkdir or rmdir, an allocation or a truncation. (After an event the disk is as before the next one.) Then:

- a reader comes: it must refuse what lies there with a sentence, or find the old or the new output whole;
- the stage runs again, and everything it writes must equal what a run writes that was never killed, bit by bit but for
  timings, memory and provenance, with no partial file left.

"Again" and "over another run" start in a folder that holds the output of other settings. Of the events of drawn images,
which are alike, one in {images} is tried.

| stage | events | kills | identical |
| --- | ---: | ---: | ---: |
{rows}
| all | | {tried} | {same} |

Two processes that start the same training at the same time: in {well} of {pairs} trials one trained, the other said
which process holds the folder, and the output was that of an undisturbed run. {minutes:.0f} minutes of CPU.

## What did not end alike

{faults}

## How it is done

- Every file is written beside its place under a name that holds host, process, start and a random number, put on disk,
  and renamed. Partial files of dead processes are removed by the next writer of the folder, those of other hosts after
  a day (`core/files.py`).
- A stage removes its record first and writes it last, with the sha256 of every file that it speaks of; readers check
  them (`train.json`, `initial.json`, `result.json`, `dataset.json`).
- A checkpoint loses its name before it is removed, and publishing wants the weights of every due epoch.
- One process writes a folder at a time: an `flock` beside it, which Linux carries over NFS (`core/lock.py`). Some FUSE
  file systems only pretend to lock; on those two hosts must not share a folder.

## What is not shown

A power cut (files and folders are synced, but no trial cuts power), disks that lie about a sync, and kills between
instructions that touch no file, which leave the disk as at the file event before.
"""


if __name__ == "__main__":
    sys.exit(main())
