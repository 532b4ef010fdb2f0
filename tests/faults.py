"""Put one-line faults into a copy of the code, one at a time, and see whether the replay notices.

``python -m tests.faults [--out docs/faults.md] [--only TEXT]``. The faults stand in ``fault_table.yaml``. Each one's
text must stand exactly once in its file. The large libraries are imported once; a process is forked for each fault,
which imports the suite from the copy.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUITE = ("core", "evaluation", "methods", "datasets", "protocols", "profiles", "pipeline", "tests", "params.yaml")
LIBRARIES = ("faiss", "pandas", "scipy.sparse.csgraph", "torchvision", "PIL.Image", "tqdm", "psutil")
SHARE = 0.95  # of the faults that must be caught
LIMIT = 600  # seconds for one fault


@dataclass(frozen=True)
class Fault:
    """A line of ``file`` that is wrong: ``old`` became ``new``. missed: why no replay can tell."""

    file: str
    title: str
    old: str
    new: str
    runs: tuple[str, ...]
    missed: str = ""

    def apply(self, folder: Path) -> str:
        """Change the copy in ``folder``; returns the text of before.

        Raises ValueError unless the old text stands there exactly once.
        """
        path = folder / self.file
        before = path.read_text()
        if before.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {before.count(self.old)} times instead of once")
        path.write_text(before.replace(self.old, self.new))
        return before


def read_faults() -> list[Fault]:
    """All faults of the table."""
    table = yaml.safe_load((HERE / "fault_table.yaml").read_text())
    return [
        Fault(file, **{**entry, "runs": tuple(entry["runs"])}) for file, entries in table.items() for entry in entries
    ]


def copy_suite(folder: Path) -> None:
    """The code, its settings and the records, without tests of other kinds and compiled files."""
    ignore = shutil.ignore_patterns("__pycache__", "golden", "test_*.py")
    for name in SUITE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copyfile(source, folder / name)


def replay_copy(folder: Path, runs: Sequence[str], compiled: bool = False) -> str:
    """The first difference that one of the replays shows in a process of its own; empty where all are equal.

    compiled: keep the compiled code. That of a fault is not kept, since its file changes again at once.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_replay_here, args=(folder, runs, compiled, theirs))
    process.start()
    theirs.close()
    try:
        return str(ours.recv())
    except EOFError:
        return f"the process ended with status {process.exitcode}, or after {LIMIT} s"
    finally:
        process.join()


def _replay_here(folder: Path, runs: Sequence[str], compiled: bool, answer: Connection) -> None:
    """In the forked process: the suite is imported anew, from the copy."""
    signal.alarm(LIMIT)
    os.chdir(folder)
    sys.dont_write_bytecode = not compiled
    for name in [name for name in sys.modules if name.partition(".")[0] in SUITE]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        check = importlib.import_module("tests.replay.check")
        assert Path(check.__file__).is_relative_to(folder), f"{check.__file__} is not the copy"
        found = ""
        for pair in check.asked_for(runs):
            outcome = check.check(*pair, 1, to_the_end=False)
            if outcome.differences:
                found = f"{outcome.name}: {outcome.differences[0]}"
                break
    except Exception as error:  # a suite that cannot be imported is noticed too
        found = f"{type(error).__name__}: {error}"
    answer.send(found)


def main(arguments: list[str] | None = None) -> int:
    """0 when unchanged code passes and at least SHARE of the faults are caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--only", default="", help="faults whose file or title holds this text")
    options = parser.parse_args(arguments)
    faults = [fault for fault in read_faults() if options.only in fault.file or options.only in fault.title]
    torch.set_num_threads(1)
    for library in LIBRARIES:
        importlib.import_module(library)
    found: list[tuple[Fault, str]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        copy_suite(folder)
        runs = sorted({run for fault in faults for run in fault.runs})
        if difference := replay_copy(folder, runs, compiled=True):
            print(f"unchanged code does not pass, so that no fault can be told: {difference}", file=sys.stderr)
            return 2
        for fault in faults:
            before = fault.apply(folder)
            found.append((fault, replay_copy(folder, fault.runs)))
            (folder / fault.file).write_text(before)
            print(f"{'caught' if found[-1][1] else 'MISSED'}  {fault.file}: {fault.title}  {found[-1][1]}", flush=True)
    caught = sum(bool(difference) for _, difference in found)
    print(f"{caught} of {len(found)} faults caught ({caught / len(found):.1%})")
    if options.out:
        options.out.write_text(table(found))
    return 0 if caught >= SHARE * len(found) else 1


def table(found: Sequence[tuple[Fault, str]]) -> str:
    """The page that is committed."""
    caught = sum(bool(difference) for _, difference in found)
    lines = [
        "# Faults that the replay finds",
        "",
        "`python -m tests.faults --out docs/faults.md` puts these one-line faults into a copy of the code, one at a",
        "time, and replays the methods concerned. It wrote this page.",
        "",
        f"{caught} of {len(found)} faults were caught ({caught / len(found):.1%}).",
        "",
        "| file | fault | first difference |",
        "|---|---|---|",
    ]
    for fault, difference in found:
        shown = difference.partition(": ")[2] if difference else f"**missed**: {fault.missed or 'not explained yet'}"
        run = difference.partition(":")[0]
        first = f"`{run}`: {_cell(shown)}" if difference else _cell(shown)
        lines.append(f"| `{fault.file}` | {fault.title} | {first} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """One table cell; values are left to the terminal."""
    return text.partition(": ")[0].replace("|", "\\|") if "**missed**" not in text else text


if __name__ == "__main__":
    sys.exit(main())
