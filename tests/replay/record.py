"""What a replay notes, how it is kept, and where two of them part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tests.replay.draws import direction

RTOL = 1e-6
FLOOR = 1e-9  # of a quantity's largest value: what rounding leaves of a gradient that is 0
SINGLE = "(float32)"  # in the name of what the suite itself computes in float32, from neighbour lists on
SINGLE_RTOL = 2e-5


@dataclass
class Record:
    """Quantities in the order in which they arise, by name; one value per row, whole numbers as int.

    units: what a row of a quantity is called. names: of the rows of a unit, where they have any.
    """

    quantities: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str, values: Any, unit: str = "row") -> None:
        """Keep ``values`` (N, ...) as N numbers: rows of floats are projected, rows of integers summed up."""
        assert name not in self.quantities, f"{name} was noted already"
        self.quantities[name] = compact(values)
        if unit != "row":
            self.units[name] = unit

    def note_named(self, name: str, values: Mapping[str, Any], unit: str) -> None:
        """Keep one number for each name, in alphabetical order; the names of a unit are the same every time."""
        kept = self.names.setdefault(unit, sorted(values))
        assert kept == sorted(values), f"{name}: the names of every {unit} have changed"
        self.note(name, [float(values[key]) for key in kept], unit)

    def row(self, name: str, place: int) -> str:
        """How row ``place`` of a quantity is called after its name: row 17, of image 3; nothing for an only row."""
        unit = self.units.get(name, "row")
        if unit in self.names:
            return f" of {unit} {self.names[unit][place]}"
        if len(self.quantities[name]) == 1:
            return ""
        return f" {unit} {place}" if unit == "row" else f" of {unit} {place}"

    def as_json(self) -> dict[str, Any]:
        return {"names": self.names, "units": self.units, "quantities": self.quantities}


class FirstDifference(Exception):
    """What a comparison as it goes ends with."""


@dataclass
class Compared(Record):
    """A record that ends the replay, with FirstDifference, at the first quantity that is not ``theirs``."""

    theirs: Record = field(default_factory=Record)

    def note(self, name: str, values: Any, unit: str = "row") -> None:
        super().note(name, values, unit)
        if name in self.theirs.quantities and (found := difference(self, self.theirs, name)):
            raise FirstDifference(found)


def compact(values: Any) -> list[float]:
    """One number per row of ``values`` (N, ...)."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    array = np.atleast_1d(array)
    if array.dtype.kind in "bui":
        rows = array.astype(np.int64).reshape(len(array), -1)
        kept: list[float] = (rows * (1 + np.arange(rows.shape[1]))).sum(axis=1).tolist()
        return kept
    rows = array.astype(np.float64).reshape(len(array), -1)
    projected = rows @ direction(rows.shape[1]) if rows.shape[1] > 1 else rows[:, 0]
    return [float(f"{value:.8g}") for value in projected]


def differences(ours: Record, theirs: Record) -> list[str]:
    """A sentence for every quantity that differs, the first one first; empty where the two are equal."""
    found = []
    for name in ours.quantities:
        if sentence := difference(ours, theirs, name):
            found.append(sentence)
    found += [f"{name}: only in the record" for name in theirs.quantities if name not in ours.quantities]
    renamed = [unit for unit in ours.names if ours.names[unit] != theirs.names.get(unit)]
    return found + [f"names of every {unit}: others than in the record" for unit in renamed]


def difference(ours: Record, theirs: Record, name: str) -> str:
    """What is different about one quantity; empty where nothing is."""
    if name not in theirs.quantities:
        return f"{name}: not in the record"
    mine, old = ours.quantities[name], theirs.quantities[name]
    place = first_difference(mine, old, name)
    if place is None:
        return ""
    if place < 0:
        return f"{name}: {len(mine)} rows instead of {len(old)}"
    return f"{name}{ours.row(name, place)}: {mine[place]!r} instead of {old[place]!r}"


def first_difference(ours: Sequence[float], theirs: Sequence[float], name: str) -> int | None:
    """The first row that differs, -1 for another number of rows, None where all agree. Integers agree exactly."""
    if len(ours) != len(theirs):
        return -1
    rtol = SINGLE_RTOL if SINGLE in name else RTOL
    floor = FLOOR * max((abs(value) for value in theirs), default=0)
    for place, (mine, old) in enumerate(zip(ours, theirs, strict=True)):
        exact = isinstance(mine, int) and isinstance(old, int)
        # Written so that a NaN on either side differs.
        if not (mine == old if exact else abs(mine - old) <= rtol * abs(old) + floor):
            return place
    return None


def read(path: Path) -> dict[str, Record]:
    """The records of a file by run."""
    if not path.is_file():
        return {}
    return {run: Record(**content) for run, content in json.loads(path.read_text()).items()}


def write(path: Path, records: Mapping[str, Record]) -> None:
    """One quantity per line, so that a change can be read in a diff."""
    runs = []
    for run, record in records.items():
        sections = []
        for section, content in record.as_json().items():
            dense = {key: json.dumps(value, separators=(",", ":")) for key, value in content.items()}
            lines = [f"   {json.dumps(key)}: {value}" for key, value in dense.items()]
            sections.append(f"  {json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n  }")
        runs.append(f" {json.dumps(run)}: {{\n" + ",\n".join(sections) + "\n }")
    path.write_text("{\n" + ",\n".join(runs) + "\n}\n")
