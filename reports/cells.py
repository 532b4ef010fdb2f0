"""Rows of the leaderboard as samples of replicates, and what one model says of the difference of two.

A replicate of drawn people is a world: mAP is compared within it. A dataset without worlds has warm starts with their
seeds as replicates: all are tested on the same queries, whose AP is compared one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.errors import UserError
from core.rng import Streams
from pipeline.records import ExternalRecord, ResultRecord, RunRecord, adaptive
from reports.record import Result
from reports.statistics import DRAWS, Estimate, identity_weights, over_worlds, two_level
from reports.table import CEILING, FLOOR, KEY, MAIN, place

SETTING = ["dataset", "backbone", "profile"]


class NotComparableError(ValueError):
    """Two runs whose results are not of the same data."""


@dataclass(frozen=True)
class Cell:
    """One row of the leaderboard: its usable results."""

    run: RunRecord
    results: list[Result]

    @property
    def name(self) -> str:
        """As in params.yaml: METHOD or METHOD-VARIANT."""
        return str(self.run.name)

    @property
    def setting(self) -> tuple[str, ...]:
        """What two comparable runs share."""
        return tuple(getattr(self.run, key) for key in SETTING)

    @property
    def adaptive(self) -> bool:
        """Whether it stands among the domain-adaptive rows."""
        return adaptive(self.results[0].record)

    @property
    def bounds(self) -> bool:
        """Whether it is the floor or the ceiling, and no method; training on the source is neither."""
        return self.run.method == FLOOR or (self.run.method == CEILING and not self.adaptive)

    @property
    def in_worlds(self) -> bool:
        """Whether its replicates are worlds of drawn people."""
        return self.results[0].record.world is not None

    @property
    def replicates(self) -> dict[int, list[Result]]:
        """Results by world; of a dataset without worlds by seed, fold by fold."""
        found: dict[int, list[Result]] = {}
        for result in sorted(self.results, key=lambda result: (result.record.seed, result.record.fold or 0)):
            record = result.record
            found.setdefault(record.seed if record.world is None else record.world, []).append(result)
        return found


def cells(results: Sequence[Result]) -> list[Cell]:
    """Usable results by leaderboard row, in its order; a row without any is left out.

    Raises UserError when a row holds a world and seed twice, which would count as evidence twice.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.ok:
            groups.setdefault(tuple(getattr(result.record.run, key) for key in KEY), []).append(result)
    made = [Cell(group[0].record.run, group) for group in groups.values()]
    for cell in made:
        seeds = [(result.record.world, result.record.seed, result.record.fold) for result in cell.results]
        if len(set(seeds)) < len(seeds):
            names = sorted({result.record.run.name for result in cell.results})
            raise UserError(f"the same seed of the same run is listed twice in params.yaml: {names}, seeds {seeds}")
    return sorted(made, key=lambda cell: place(cell.results[0].record))


def by_setting(results: Sequence[Result]) -> list[list[Cell]]:
    """The cells that may be compared, setting by setting."""
    settings: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells(results):
        settings.setdefault(cell.setting, []).append(cell)
    return list(settings.values())


class SharedWeights:
    """Draws of query identities, made once for all pairs on the same people."""

    def __init__(self, dataset: str, draws: int = DRAWS) -> None:
        self.dataset, self.draws = dataset, draws
        self.made: dict[int, np.ndarray] = {}

    def of(self, identities: int) -> np.ndarray:
        """(draws, identities); a function of dataset and count, whichever runs are compared."""
        if identities not in self.made:
            stream = Streams(0).numpy(f"bootstrap identities/{self.dataset}")
            self.made[identities] = identity_weights(identities, stream, self.draws)
        return self.made[identities]


def shared_replicates(a: Cell, b: Cell) -> list[int]:
    """The worlds, or seeds, that both have results of."""
    return sorted(a.replicates.keys() & b.replicates.keys())


def check_data(a: Cell, b: Cell) -> None:
    """Raises NotComparableError where the two share no replicate, or differ in one by what they started from or saw."""
    shared = shared_replicates(a, b)
    if not shared:
        raise NotComparableError(f"{a.name} and {b.name} share no {'world' if a.in_worlds else 'seed'}")
    tested: dict[tuple[int | None, ...], str] = {}
    started: dict[tuple[int | None, ...], str] = {}
    for result in (result for cell in (b, a) for key in shared for result in cell.replicates[key]):
        record = result.record
        if tested.setdefault((record.world, record.fold), record.tested_on.fingerprint) != record.tested_on.fingerprint:
            raise NotComparableError(f"{title(result)} was tested on other data than {b.name}; evaluate both again")
        start = warm_start_of(record)
        if start and started.setdefault((record.world, record.seed), start) != start:
            raise NotComparableError(f"{title(result)} started from other weights than {b.name}; train both again")


def warm_start_of(record: ResultRecord | ExternalRecord) -> str | None:
    """Hash of the weights that a run shares with those beside it; None after a pre-training of its own, or unknown."""
    if isinstance(record, ExternalRecord) or record.initial.images_seen:
        return None
    return record.initial.sha256


def estimate(a: Cell, b: Cell, weights: SharedWeights) -> Estimate:
    """What the replicates that both have say of mAP(A) - mAP(B), as fractions; raises NotComparableError."""
    check_data(a, b)
    shared = shared_replicates(a, b)
    if a.in_worlds:
        return over_worlds(world_differences(a, b, shared))
    differences, people = paired_ap(a, b, shared)
    return two_level(differences, people, weights.of(len(np.unique(people))))


def world_levels(cell: Cell, worlds: Sequence[int]) -> np.ndarray:
    """mAP of a row in each of ``worlds``, as fractions; raises NotComparableError where the protocol has none."""
    return np.array([mean_map(cell.replicates[key]) for key in worlds])


def world_differences(a: Cell, b: Cell, worlds: Sequence[int]) -> np.ndarray:
    """mAP(A) - mAP(B) in each of ``worlds``, as fractions; raises NotComparableError where the protocol has none."""
    return world_levels(a, worlds) - world_levels(b, worlds)


def mean_map(results: Sequence[Result]) -> float:
    """The mean over seeds of the last epoch's mAP; raises NotComparableError where the protocol has none."""
    values = [result.record.selection.last.figure(MAIN.name) for result in results]
    if None in values:
        raise NotComparableError(f"their protocol has no {MAIN.title}")
    return float(np.mean(values))


def paired_ap(a: Cell, b: Cell, shared: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """AP of A minus AP of B (R, Q), query by query in each replicate, and the queries' person ids (Q,).

    Folds follow each other. Raises NotComparableError unless all share their valid queries.
    """
    expected = queries(b.replicates[shared[0]])
    found = []
    for cell in (a, b):
        tables = [queries(cell.replicates[key]) for key in shared]
        for key, table in zip(shared, tables, strict=True):
            if not all(np.array_equal(table[name], expected[name]) for name in ("query", "person_id")):
                raise NotComparableError(f"{title(cell.replicates[key][0])} has other valid queries than {b.name}")
        found.append(np.stack([table["ap"].to_numpy(float) for table in tables]))
    return found[0] - found[1], expected["person_id"].to_numpy()


def queries(results: Sequence[Result]) -> pd.DataFrame:
    """Per-query results of one replicate, of all its folds."""
    tables = [result.queries for result in results if result.queries is not None]
    assert len(tables) == len(results), "a cell holds usable results only"
    if any("ap" not in table for table in tables):
        raise NotComparableError("their protocol gives a query no AP")
    return pd.concat(tables, ignore_index=True)


def title(result: Result) -> str:
    """``hhcl world 3 seed 0``."""
    record = result.record
    world = "" if record.world is None else f" world {record.world}"
    return f"{record.run.name}{world} seed {record.seed}"
