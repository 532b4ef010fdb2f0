"""Replay every method on a fixed tiny input and compare each step with committed records.

Names are METHOD, METHOD-VARIANT, METHOD-VARIANT@KIND, `parts`, or one of the parts; all of them where none is given.
Images and initial weights come from a counter-based generator by exact arithmetic. Training runs in float64. The
random draws of augmentation and samplers come from torch's and numpy's CPU generators, which give the same numbers on
every machine; only neighbour lists and Jaccard distances are float32, and records are refused whose labels hang on
their last digits.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.replay.check import Unsteady, all_groups, asked_for, check_all, renew


def main(arguments: list[str] | None = None) -> int:
    """0 when all are equal to their records, 1 when one differs or has none, 2 for a name that is not known."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to replay; default: everything")
    parser.add_argument("--record", action="store_true", help="renew the records of whole methods; print what changed")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes; default: the cores")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each process; default: 1")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        if options.record:
            return record(options.names or all_groups(), options.jobs, options.threads)
        pairs = asked_for(options.names)
    except (Unsteady, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    wrong = 0
    for outcome in check_all(pairs, options.jobs, options.threads):
        wrong += bool(outcome.differences)
        print(outcome, flush=True)
    print(f"{len(pairs)} replays, {wrong} differ from their record ({time.monotonic() - started:.0f} s)")
    return 1 if wrong else 0


def record(groups: list[str], jobs: int, threads: int) -> int:
    """Renew the records of the groups, in turn."""
    unknown = set(groups) - set(all_groups())
    if unknown:
        raise ValueError(f"records are renewed for whole methods, not for {sorted(unknown)}; known: {all_groups()}")
    for group in groups:
        for outcome in renew(group, jobs, threads):
            print(outcome if outcome.differences else f"{outcome.name}: unchanged", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
