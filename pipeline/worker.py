"""One job in a process of its own, which ends with the process that started it.

`python -m pipeline.worker PARENT '[["train", ["--method", ...]], ["evaluate", [...]]]'` runs the steps one after the
other until one fails: a process for each would import torch as often. Nothing heavy is imported before the kernel has
been told whose end is this process's end.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: Sequence[str]) -> int:
    """Exit status of the first step that failed, or 0."""
    parent, steps = int(argv[0]), json.loads(argv[1])
    end_with(parent)
    return run_steps(steps)


def run_steps(steps: Iterable[tuple[str, list[str]]]) -> int:
    """Run verbs of `python -m pipeline` until one fails; exit status of that one, or 0."""
    run_verb = import_module("pipeline.cli").run_verb
    for verb, arguments in steps:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if devices is None else f"CUDA_VISIBLE_DEVICES={devices} "
        print(f"$ {shown}{shlex.join(['python', '-m', 'pipeline', verb, *arguments])}", flush=True)
        try:
            run_verb(verb, arguments)
        except SystemExit as end:
            if end.code:
                return int(end.code)
    return 0


def end_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which must be its starter, ends in whatever way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
