"""A user's own images as a table: ``dataset.csv``, or the only CSV file of the folder.

Columns ``path`` (relative to the folder) and ``split`` (source, train, query, gallery or junk), and
if known ``person`` and ``camera`` (or ``person_id``, ``camera_id``) and ``frame``. People and
cameras may be whole numbers, kept as they are (person 0 = distractor, -1 = junk), or names,
numbered from 1. An empty cell means unknown. A person has one name throughout, in training and in
test.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from core.manifest import SPLITS, UNKNOWN
from datasets.base import Dataset, DatasetError, set_junk_apart

FILE = "dataset.csv"
LABELS = {"person_id": "person", "camera_id": "camera"}


def index(folder: Path) -> pd.DataFrame:
    """Rows of the table in ``folder``."""
    file = find_table(folder)
    # Everything as text: a person may be called "NA", and "007" must not turn into 7 by guessing.
    try:
        given = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' own errors and those of decoding are ValueErrors
        raise DatasetError(f"{file} cannot be read as a table in UTF-8: {error}") from error
    absent = [column for column in ("path", "split") if column not in given.columns]
    if absent:
        raise DatasetError(f"{file} lacks the column(s) {', '.join(absent)}; it has {', '.join(given.columns)}")
    strange = sorted(set(given["split"]) - set(SPLITS))
    if strange:
        raise DatasetError(f"{file} has unknown splits {strange}; known are {', '.join(SPLITS)}")
    rows = given[["path", "split"]].copy()
    rows["path"] = [_relative(path, folder) for path in rows["path"]]
    for column, short in LABELS.items():
        cells = given.get(column, given.get(short))
        rows[column] = UNKNOWN if cells is None else numbers(cells)
    if "frame" in given.columns:
        rows["frame"] = numbers(given["frame"])
    return set_junk_apart(rows)


def find_table(folder: Path) -> Path:
    """``dataset.csv`` or the only CSV file in ``folder``."""
    if (folder / FILE).is_file():
        return folder / FILE
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    if len(files) > 1:  # a manifest that `prepare` wrote into the same folder is no dataset
        files = [path for path in files if path.name != "manifest.csv"]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise DatasetError(f"{folder} needs a {FILE} with the columns path and split; found {found}")
    return files[0]


def numbers(cells: pd.Series) -> pd.Series:
    """Whole numbers as they are, or names numbered from 1 in sorted order; empty = -1."""
    cells = cells.str.strip()
    known = cells != ""
    values = pd.to_numeric(cells[known], errors="coerce")
    if values.isna().any() or (values % 1 != 0).any():
        names = {name: number for number, name in enumerate(sorted(cells[known].unique()), 1)}
        values = cells[known].map(names)
    result = pd.Series(UNKNOWN, index=cells.index, dtype="int64")
    result[known] = values.astype("int64")
    return result


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
