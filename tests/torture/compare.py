"""Whether two folders of outputs are the same, bit by bit, but for what tells time, memory and machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

MEASURED = ("cost", "provenance", "evaluated_with")  # keys of records
TIMED = ("seconds_", "peak_")  # columns of curves
TIMED_FILES = ("history.csv", "curves.csv", "metrics.json")  # whose hashes differ with the time that a run took


def differences(first: Path, second: Path) -> list[str]:
    """Names of the files that one folder lacks or that differ; lock files are no outputs."""
    listed = [files_of(folder) for folder in (first, second)]
    lacking = sorted(set(listed[0]) ^ set(listed[1]))
    common = sorted(set(listed[0]) & set(listed[1]))
    return lacking + [name for name in common if content(listed[0][name]) != content(listed[1][name])]


def files_of(place: Path) -> dict[str, Path]:
    """Files below a folder by relative name, or the file itself."""
    if place.is_file():
        return {place.name: place}
    files = (file for file in place.rglob("*") if file.is_file() and not file.name.endswith(".lock"))
    return {file.relative_to(place).as_posix(): file for file in files}


def content(file: Path) -> Any:
    """What must be equal of a file."""
    if file.suffix == ".json":
        return timeless(json.loads(file.read_text()))
    if file.name in TIMED_FILES:
        table = pd.read_csv(file)
        return table[[name for name in table if not name.startswith(TIMED)]].to_csv(index=False)
    return file.read_bytes()


def timeless(record: Any) -> Any:
    """A record without what was measured."""
    if not isinstance(record, dict):
        return record
    return {key: timeless(value) for key, value in record.items() if key not in (*MEASURED, *TIMED_FILES)}
