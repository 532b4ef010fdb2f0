"""What the panels draw from: the rows of the leaderboard, each with the runs behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.records import NearestRecord, adaptive, read_nearest
from reports.compare import compare, to_baseline
from reports.record import Result
from reports.table import KEY, leaderboard


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard. number: its place, by which scripts know it; line: its columns; results: its runs."""

    number: int
    line: dict[str, Any]
    results: list[Result]

    @property
    def name(self) -> str:
        """As the table prints it."""
        return f"{self.line['method']}:{self.line['variant']}"

    @property
    def setting(self) -> tuple[str, str, str]:
        """What rows share that may be compared."""
        return self.line["dataset"], self.line["profile"], self.line["backbone"]

    @property
    def adaptive(self) -> bool:
        """Whether it stands among the domain-adaptive rows."""
        return adaptive(self.results[0].record)

    @property
    def usable(self) -> list[Result]:
        """The runs whose numbers may be used."""
        return [result for result in self.results if result.ok]


@dataclass(frozen=True)
class Material:
    """All that the page is made of."""

    table: pd.DataFrame
    rows: list[Row]
    comparison: pd.DataFrame  # every pair, as `compare` has them

    def settings(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows that may be compared, under what they share."""
        for setting in dict.fromkeys(row.setting for row in self.rows):
            yield ", ".join(setting), [row for row in self.rows if row.setting == setting]

    def tasks(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows of one dataset and profile, on whichever backbone."""
        for task in dict.fromkeys(row.setting[:2] for row in self.rows):
            yield ", ".join(task), [row for row in self.rows if row.setting[:2] == task]


def gather(results: Sequence[Result]) -> Material:
    """The leaderboard of these results with the runs behind each row."""
    comparison = compare(results)
    table = to_baseline(leaderboard([result.record for result in results]), comparison)
    behind: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        behind.setdefault(tuple(getattr(result.record.run, key) for key in KEY), []).append(result)
    lines = table.to_dict("records")
    rows = [Row(number, line, behind[tuple(line[key] for key in KEY)]) for number, line in enumerate(lines)]
    return Material(table, rows, comparison)


def run_name(result: Result) -> str:
    """What tells a run from the others of its row: its world or fold, and its seed."""
    record = result.record
    numbers = {"world": record.world, "fold": record.fold, "seed": record.seed}
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number is not None)


def nearest_of(result: Result) -> NearestRecord | None:
    """The ranking that `python -m pipeline nearest` left of this very result, or None."""
    file = result.folder.parent.parent / "nearest" / f"{result.folder.name}.json"
    if not file.is_file():
        return None
    found, record = read_nearest(file), result.record
    return found if (found.key, found.scoring) == (record.key, record.scoring) else None
