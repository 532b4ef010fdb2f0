"""A user's own images as a folder tree.

With any of the folders ``source``, ``train``, ``query``, ``gallery``, ``junk``: each is a split,
and the first folder below it is the person (``train/anna/01.jpg``); images directly in a split have
no known person. Training people and test people are taken to be different, whatever their names.
Without any of them, all images at any depth are training images of unknown people.

The camera is the number after ``_c`` in a file name (``0001_c3_...``), when
every image has one; otherwise it is unknown.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from core.manifest import SPLITS, UNKNOWN
from datasets.base import TRAINING, Dataset, images_below, set_junk_apart, table

CAMERA_PATTERN = re.compile(r"(?:^|_)c(\d+)", re.IGNORECASE)


def index(folder: Path) -> pd.DataFrame:
    """Rows of all images below ``folder``."""
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    rows = []
    for split in splits or [""]:
        for path in images_below(folder / split):
            person = path.parts[0] if splits and len(path.parts) > 1 else None
            camera = CAMERA_PATTERN.search(path.name)
            rows.append(
                {
                    "path": (split / path).as_posix(),
                    "split": split or "train",
                    "person": person,
                    "camera_id": int(camera[1]) if camera else UNKNOWN,
                }
            )
    return _numbered(table(rows))


def _numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers for people, from 1, and no camera at all where some image has none."""
    if rows.empty:
        return rows
    side = rows["split"].isin(TRAINING).map({True: "training", False: "test"})
    known = rows["person"].notna()
    names = (side + "/" + rows["person"].fillna("")).where(known)
    people = {name: number for number, name in enumerate(sorted(names.dropna().unique()), 1)}
    rows = rows.assign(person_id=names.map(people).fillna(UNKNOWN).astype(int))
    if (rows["camera_id"] == UNKNOWN).any():
        rows["camera_id"] = UNKNOWN
    return set_junk_apart(rows.drop(columns="person"))


DATASET = Dataset(
    name="folder",
    folders=(),
    layouts=((),),
    obtain="it is your own: a folder of images, with train/, query/ and gallery/ if you can",
    index=index,
)
