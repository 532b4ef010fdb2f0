"""Replays against their records, and the renewal of records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

import core.clustering
import core.jaccard
import core.neighbors
import methods
from tests.replay.draws import uniform
from tests.replay.parts import PARTS
from tests.replay.record import Compared, FirstDifference, Record, differences, read, write
from tests.replay.runs import Replayed, replay, runs_of

RECORDS = Path(__file__).parent / "records"
PART = "parts"
# Of each feature before the search, and of DBSCAN's radius: several times what float32 differs by between machines.
SHAKE = 1e-5
SHAKES = 6  # disturbed replays: a label that hangs on such digits is the same in all with a chance of 1 in 64
COMMAND = "python -m tests.replay --record"


class Unsteady(RuntimeError):
    """A replay whose labels hang on the last digits of float32 would not be the same on every machine."""


@dataclass
class Outcome:
    """How one run compares with its record."""

    name: str
    differences: list[str] = field(default_factory=list)
    quantities: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.differences:
            return f"{self.name}: equal ({self.quantities} quantities, {self.seconds:.1f} s)"
        more = len(self.differences) - 1
        return f"{self.name}: {self.differences[0]}" + (f" (and {more} more that differ)" if more else "")


def all_groups() -> list[str]:
    """What has a file of records: every method, and the parts that no method reaches."""
    return [PART, *methods.available()]


@cache
def names_of(group: str) -> list[str]:
    """The replays that a group's file must hold."""
    return list(PARTS) if group == PART else [run.name for run in runs_of(group)]


def asked_for(names: Sequence[str]) -> list[tuple[str, str]]:
    """(group, replay) of METHOD, METHOD-VARIANT or METHOD-VARIANT@KIND, each as often as named; all for no name.

    Raises ValueError naming what is known.
    """
    known = [(group, name) for group in all_groups() for name in names_of(group)]
    if not names:
        return known
    found = []
    for wanted in names:
        those = [pair for pair in known if wanted in (*pair, pair[1].partition("@")[0])]
        if not those:
            raise ValueError(f"nothing to replay is called '{wanted}'; known: {', '.join(name for _, name in known)}")
        found += those
    return found


def play(group: str, name: str, record: Record) -> None:
    """Note one replay in ``record``."""
    if group == PART:
        PARTS[name](record)
        return
    method_and_variant, kind = name.rsplit("@", 1)
    replay(Replayed(group, method_and_variant.removeprefix(f"{group}-"), kind), record)


@contextmanager
def shaken(number: int) -> Iterator[None]:
    """Features are off by up to SHAKE of each value in every search and Jaccard distance inside, and DBSCAN's radius.

    The radius, since distances of few neighbours are fractions: one half stays so however features are disturbed.
    """
    exact, pairs_within = core.neighbors.as_float_matrix, core.clustering._pairs_within

    def disturbed(features: Tensor | np.ndarray) -> Tensor:
        matrix = exact(features)
        noise = uniform(f"shake/{number}", tuple(matrix.shape))
        return (matrix.double() * (1 + SHAKE * torch.from_numpy(noise))).float()

    def further(distance: csr_array, eps: float) -> tuple[np.ndarray, np.ndarray]:
        return pairs_within(distance, eps * (1 + SHAKE * (-1) ** number))

    with (
        mock.patch.object(core.clustering, "_pairs_within", further),
        mock.patch.object(core.neighbors, "as_float_matrix", disturbed),
        mock.patch.object(core.jaccard, "as_float_matrix", disturbed),
    ):
        yield


def check(group: str, name: str, threads: int, records: Path = RECORDS, to_the_end: bool = True) -> Outcome:
    """Replay and compare with the record in ``records``; or only until the first difference."""
    torch.set_num_threads(threads)
    theirs = read(records / f"{group}.json").get(name)
    if theirs is None:
        return Outcome(name, [f"no record; `{COMMAND} {group}` makes one"])
    started = time.monotonic()
    ours = Record() if to_the_end else Compared(theirs=theirs)
    try:
        play(group, name, ours)
    except FirstDifference as found:
        return Outcome(name, [str(found)])
    except Exception as error:  # a replay that cannot run is the plainest difference there is
        return Outcome(name, [f"{type(error).__name__}: {error}"])
    return Outcome(name, differences(ours, theirs), len(theirs.quantities), time.monotonic() - started)


def steady_record(group: str, name: str, threads: int) -> Record:
    """A replay that is worth keeping.

    Raises Unsteady when one of SHAKES disturbed ones is not equal to it.
    """
    torch.set_num_threads(threads)
    record = Record()
    play(group, name, record)
    for number in range(1, SHAKES + 1):
        other = Record()
        with shaken(number):
            play(group, name, other)
        if found := differences(other, record):
            raise Unsteady(
                f"{name} hangs on the last digits of float32: {found[0]} when features are disturbed by {SHAKE:g}; "
                f"choose another seed for {group} in tests/replay/settings.yaml"
            )
    return record


def check_all(pairs: Sequence[tuple[str, str]], jobs: int, threads: int) -> Iterator[Outcome]:
    """Outcomes in the order of ``pairs``, computed by ``jobs`` processes."""
    if jobs == 1:
        yield from (check(group, name, threads) for group, name in pairs)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(partial(_unpacked, check, threads), pairs)


def renew(group: str, jobs: int, threads: int) -> list[Outcome]:
    """Write the group's records anew; what changed against the old ones.

    Raises Unsteady before anything is written.
    """
    path = RECORDS / f"{group}.json"
    names = names_of(group)
    pairs = [(group, name) for name in names]
    if jobs == 1:
        fresh = [steady_record(*pair, threads) for pair in pairs]
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            fresh = list(pool.map(partial(_unpacked, steady_record, threads), pairs))
    old = read(path)
    path.parent.mkdir(exist_ok=True)
    write(path, dict(zip(names, fresh, strict=True)))
    outcomes = []
    for name, record in zip(names, fresh, strict=True):
        changed = differences(record, old[name]) if name in old else ["recorded for the first time"]
        outcomes.append(Outcome(name, changed, len(record.quantities)))
    return outcomes + [Outcome(name, ["no such run any more; removed"]) for name in old if name not in names]


def _unpacked(work, threads: int, pair: tuple[str, str]):
    """``work`` on a (group, name) pair, for a pool."""
    return work(*pair, threads)
