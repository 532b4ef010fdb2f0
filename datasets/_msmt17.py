"""What MSMT17's two versions share: lists of images with their labels (Wei et al., CVPR 2018)."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from datasets.base import DatasetError, table

LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
# Third field of a name such as 0000_003_12_0303morning_0015_0.jpg.
CAMERA_PATTERN = re.compile(r"[^_/]+_[^_/]+_(\d+)_[^/]*$")
LABEL = re.compile("[0-9]+")


def index(folder: Path, train: str, test: str) -> pd.DataFrame:
    """Rows of the listed images; ``train`` and ``test`` are the folders that the lists refer to.

    Training is list_train plus list_val. Labels start at 0 in both halves: people are numbered from
    1 here, since 0 means a distractor, and test people follow the last training person.
    """
    rows: list[dict[str, object]] = []
    for name in LISTS[:2]:
        rows += _read_list(folder, name, train, "train", first_person=1)
    following = 1 + max((int(str(row["person_id"])) for row in rows), default=0)
    for name, split in zip(LISTS[2:], ("query", "gallery"), strict=True):
        rows += _read_list(folder, name, test, split, first_person=following)
    return table(rows)


def _read_list(folder: Path, name: str, images: str, split: str, first_person: int) -> list[dict[str, object]]:
    """Rows of one list, whose lines are ``PERSON/NAME.jpg LABEL``."""
    rows: list[dict[str, object]] = []
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{folder / name} is no list in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        camera = CAMERA_PATTERN.search(path)
        if camera is None or not LABEL.fullmatch(label):
            raise DatasetError(
                f"{folder / name}, line {number}: expected 'PERSON/PERSON_IMAGE_CAMERA_....jpg "
                f"LABEL', found '{line.strip()}'"
            )
        rows.append(
            {
                "path": f"{images}/{path.strip()}",
                "split": split,
                "person_id": int(label) + first_person,
                "camera_id": int(camera[1]),
            }
        )
    return rows


EXPECTED = {
    "train": {"images": 32621, "identities": 1041, "cameras": 15},
    "query": {"images": 11659, "cameras": 15},
    "gallery": {"images": 82161, "identities": 3060, "cameras": 15},
}
