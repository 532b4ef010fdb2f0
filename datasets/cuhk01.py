"""CUHK01 (Li, Zhao, Wang, ACCV 2012) as people to learn from: every image is a training image, none is tested.

Two layouts are read. ``campus/``, as it is given out: names such as ``0001003.png``, four digits for the person and
three for the image, 1 and 2 by the first camera, 3 and 4 by the second. ``images/``, as copies carry it: names such as
``0001_c2_1.jpg``, person and camera. The first was written from the published description and public readers; no copy
of it was at hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from datasets.base import Dataset, DatasetError, images_in, index_names, listing

AS_GIVEN, AS_COPIED = "campus", "images"
GIVEN_NAME = re.compile(r"(\d{4})00([1-4])\.")
COPIED_NAME = r"(?P<person>\d+)_c(?P<camera>\d)"


def index(folder: Path) -> pd.DataFrame:
    """Rows of the images in ``campus`` or, without it, in ``images``; raises DatasetError for names of neither."""
    if not (folder / AS_GIVEN).is_dir():
        return index_names(folder, COPIED_NAME, {AS_COPIED: "train"})
    names = images_in(folder / AS_GIVEN)
    read = {name: GIVEN_NAME.match(name) for name in names}
    strange = [name for name, match in read.items() if match is None]
    if strange:
        raise DatasetError(
            f"{len(strange)} image name(s) in {folder / AS_GIVEN} are not like 0001003.png, person 1 and image 3 of 4; "
            f"remove or rename them:\n{listing(strange)}"
        )
    rows = [
        {
            "path": f"{AS_GIVEN}/{name}",
            "split": "train",
            "person_id": int(match[1]),
            "camera_id": 1 if int(match[2]) <= 2 else 2,
        }
        for name, match in read.items()
        if match
    ]
    return pd.DataFrame(rows, columns=["path", "split", "person_id", "camera_id"])


DATASET = Dataset(
    name="cuhk01",
    folders=("cuhk01-source", "CUHK01", "cuhk01"),
    layouts=((AS_GIVEN,), (AS_COPIED,)),
    obtain="from its authors (Li, Zhao and Wang, ACCV 2012), of the Multimedia Laboratory of The Chinese University of "
    "Hong Kong, on request and for academic research",
    index=index,
)
