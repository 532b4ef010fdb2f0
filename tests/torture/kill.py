"""Trials: a stage in a forked child that dies at one file event, then the stage again, then the comparison."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from tests.torture.compare import differences
from tests.torture.events import Event, Tracer
from tests.torture.stages import Stage, setting_up, workspace, write_params

REFUSED, FAILED = 2, 70


class Trial(NamedTuple):
    """What came of one kill; ``fault`` is None when the rerun ended like a run that was never killed."""

    stage: str
    event: Event
    fault: str | None


class Recorded(NamedTuple):
    """A run that was not killed: its folder, its events and the sizes of its files."""

    folder: Path
    events: list[Event]
    sizes: dict[str, int]


def forked(folder: Path, work: Callable[[], int]) -> int:
    """Run ``work`` in a child of this process, in ``folder``; its exit status, negative for a signal.

    What it prints and raises goes to ``folder.log``. A child costs no import of torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = FAILED
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        os.chdir(folder)
        status = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def set_up(made: Path) -> None:
    """Make what the stages find."""
    made.mkdir(parents=True, exist_ok=True)
    write_params(made / "params.yaml")
    for verb, arguments in setting_up(made):
        if forked(made, Stage(verb, arguments, [], {}, {}).run):
            raise RuntimeError(made.with_suffix(".log").read_text())


def record(stage: Stage, made: Path, folder: Path) -> Recorded:
    """Run the stage whole, and list the events that it can be killed at."""
    workspace(stage, made, folder)
    listing = folder.with_suffix(".events")

    def work() -> int:
        tracer = Tracer(folder)
        tracer.install()
        status = stage.run()
        events = [*tracer.events, *tracer.halves()]
        listing.write_text(json.dumps({"events": events, "sizes": tracer.written}))
        return status

    if forked(folder, work):
        raise RuntimeError(folder.with_suffix(".log").read_text())
    found = json.loads(listing.read_text())
    return Recorded(folder, [Event(*event) for event in found["events"]], found["sizes"])


def attempt(name: str, stage: Stage, made: Path, whole: Recorded, event: Event, folder: Path) -> Trial:
    """Kill the stage at the event, ask its reader, run it again, and compare."""
    folder.with_suffix(".log").unlink(missing_ok=True)
    workspace(stage, made, folder)

    def killed() -> int:
        Tracer(folder, event, whole.sizes).install()
        return stage.run()

    status = forked(folder, killed)
    if status != -signal.SIGKILL:
        return Trial(name, event, f"was not killed: status {status}")
    fault = misread(stage, made, whole.folder, folder) or rerun(stage, whole.folder, folder)
    return Trial(name, event, fault)


def misread(stage: Stage, made: Path, whole: Path, folder: Path) -> str | None:
    """What a reader that comes after the kill takes for whole although it is neither the old output nor the new."""
    reads = stage.reads
    out = folder / stage.outputs[0]
    if reads is None or not out.is_dir():
        return None
    status = forked(folder, lambda: 0 if getattr(reads(out), "ok", True) else REFUSED)
    if status == REFUSED:
        return None
    if status:
        return f"its reader ended with status {status}"
    earlier = [made / source for source in stage.over.values()]
    # The rest of the folder may be incomplete (a picture, a log): what the record speaks of is not.
    expected = [Path(whole / stage.outputs[0]), *earlier]
    return None if any(same_record(out, other) for other in expected) else "its reader took a mixture for whole"


def same_record(first: Path, second: Path) -> bool:
    """Whether everything that lies in both folders and is recorded is the same."""
    lacking = set(differences(first, second))
    recorded = {"train.json", "initial.json", "result.json", "dataset.json", "manifest.csv", "weights.pt"}
    return not any(name in recorded or name.startswith("weights/") for name in lacking)


def rerun(stage: Stage, whole: Path, folder: Path) -> str | None:
    """Run the stage again; what is wrong then."""
    if status := forked(folder, stage.run):
        return f"the rerun ended with status {status}: {last_line(folder)}"
    for name in stage.outputs:
        if different := differences(whole / name, folder / name):
            return f"differs after the rerun: {', '.join(different)}"
    left = [file.name for file in folder.rglob("*.partial")]
    return f"left behind: {', '.join(left)}" if left else None


def two_at_once(stage: Stage, made: Path, whole: Path, folder: Path) -> str | None:
    """Start the stage twice on one folder; what is wrong, or None when one is refused by name and the other whole."""
    folder.with_suffix(".log").unlink(missing_ok=True)
    workspace(stage, made, folder)
    first = os.fork()
    if first == 0:
        os._exit(forked(folder, stage.run))
    second = forked(folder, stage.run)
    statuses = sorted([second, os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])])
    said = folder.with_suffix(".log").read_text()
    if statuses != [0, REFUSED] or "is being written by process" not in said:
        return f"statuses {statuses}: {last_line(folder)}"
    different = [name for output in stage.outputs for name in differences(whole / output, folder / output)]
    return f"differs: {', '.join(different)}" if different else None


def last_line(folder: Path) -> str:
    """What the child said last."""
    lines = folder.with_suffix(".log").read_text().splitlines()
    return next((line for line in reversed(lines) if line.strip()), "nothing")
