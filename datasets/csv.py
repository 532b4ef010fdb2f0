"""A user's own images as a table: ``dataset.csv``, or the only CSV file of the folder.

Columns ``path`` (relative to the folder) and ``split`` (source, train, query, gallery or junk), and
if known ``person`` and ``camera`` (or ``person_id``, ``camera_id``) and ``frame``. People and
cameras may be whole numbers, kept as they are (person 0 = distractor, -1 = junk), or names,
numbered from 1. An empty cell means unknown. A person has one name throughout, in training and in
test.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from core.manifest import SPLITS, UNKNOWN
from datasets.base import Dataset, DatasetError, set_junk_apart

FILE = "dataset.csv"
LABELS = {"person_id": "person", "camera_id": "camera"}
WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")  # a spreadsheet may have written 7 as 7.0


def index(folder: Path) -> pd.DataFrame:
    """Rows of the table in ``folder``."""
    file = find_table(folder)
    given = read_table(file)
    absent = [column for column in ("path", "split") if column not in given.columns]
    if absent:
        raise DatasetError(f"{file} lacks the column(s) {', '.join(absent)}; it has {', '.join(given.columns)}")
    strange = sorted(set(given["split"]) - set(SPLITS))
    if strange:
        raise DatasetError(f"{file} has unknown splits {strange}; known are {', '.join(SPLITS)}")
    rows = given[["path", "split"]].copy()
    if (rows["path"] == "").any():
        raise DatasetError(f"{file} has {(rows['path'] == '').sum()} row(s) without a path")
    rows["path"] = [_relative(path, folder) for path in rows["path"]]
    for column, short in LABELS.items():
        named = [name for name in (column, short) if name in given.columns]
        if len(named) > 1:
            raise DatasetError(f"{file} has the columns {column} and {short}, which mean the same; keep one")
        rows[column] = numbers(given[named[0]]) if named else UNKNOWN
    if "frame" in given.columns:
        rows["frame"] = numbers(given["frame"])
    if ((rows["person_id"] == 0) & (rows["split"] != "gallery")).any():
        raise DatasetError(f"{file} has a person 0 outside the gallery; 0 means a distractor: number people from 1")
    return set_junk_apart(rows)


def read_table(file: Path) -> pd.DataFrame:
    """All cells as text: a person may be called "NA", and "007" must not turn into 7 by guessing."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            lines = []
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise DatasetError(
                        f"{file}, line {reader.line_num}: {len(cells)} cells, but the first line names {len(header)}; "
                        "quote a cell that holds a comma"
                    )
                lines += [cells] if cells else []
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read as a table in UTF-8: {error}") from error
    if not header:
        raise DatasetError(f"{file} is empty; its first line names the columns path, split, person, camera")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DatasetError(f"{file} names the column(s) {', '.join(twice)} twice")
    return pd.DataFrame(lines, columns=header, dtype=str)


def find_table(folder: Path) -> Path:
    """``dataset.csv`` or the only CSV file in ``folder``."""
    if (folder / FILE).is_file():
        return folder / FILE
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file())
    if len(files) > 1:  # a manifest that `prepare` wrote into the same folder is no dataset
        files = [path for path in files if path.name != "manifest.csv"]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise DatasetError(f"{folder} needs a {FILE} with the columns path and split; found {found}")
    return files[0]


def numbers(cells: Sequence[str]) -> list[int]:
    """Whole numbers as they are, or names numbered from 1 in sorted order; empty = -1."""
    texts = [cell.strip() for cell in cells]
    known = {text for text in texts if text}
    if all(WHOLE.fullmatch(text) for text in known):
        values = {text: int(text.partition(".")[0]) for text in known}
    else:
        values = {text: number for number, text in enumerate(sorted(known), 1)}
    return [values.get(text, UNKNOWN) for text in texts]


def _relative(path: str, folder: Path) -> str:
    """An absolute path inside ``folder`` made relative; any other as it is."""
    absolute = Path(path)
    inside = absolute.is_absolute() and absolute.is_relative_to(folder.resolve())
    return absolute.relative_to(folder.resolve()).as_posix() if inside else path


DATASET = Dataset(
    name="csv",
    folders=(),
    layouts=((),),
    obtain=f"it is your own: a folder with {FILE} (columns path, split, person, camera)",
    index=index,
)
