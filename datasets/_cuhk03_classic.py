"""CUHK03 in its original protocol: 20 splits of 1,367 people for training and 100 for testing.

Each split is prepared, trained on and tested as a dataset of its own, ``NAME-0`` to ``NAME-19``; the
leaderboard averages them. Every test image is a query and may be drawn into the gallery, so it
stands in the manifest twice. The camera is the view within the pair. As in torchreid and open-reid,
all people of the five pairs who are not tested train (the paper leaves out pairs 4 and 5, and 100
people to validate on).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from datasets import _cuhk03
from datasets.base import Dataset, images_in, table

FOLDS = 20


def describe(name: str, boxes: str) -> Dataset:
    """The dataset of the ``detected`` or the ``labeled`` boxes."""
    return Dataset(
        name=name,
        folders=_cuhk03.FOLDERS,
        layouts=tuple((matrix,) for matrix in _cuhk03.MATRIX),
        obtain=_cuhk03.OBTAIN,
        index=index,
        expected={
            "train": {"identities": 1367, "cameras": 2},
            "query": {"identities": 100, "cameras": 2},
        },
        unpack=partial(unpack, boxes=boxes),
        folds=FOLDS,
        collection=_cuhk03.COLLECTION,
    )


def unpack(folder: Path, target: Path, fold: int, boxes: str) -> Path:
    """Write all images below ``target``, in ``train`` and ``test`` as split ``fold`` says."""
    numbers: dict[tuple[int, int], int] = {}
    with _cuhk03.Matrix(folder, boxes) as matrix:
        test = matrix.test_people(fold)
        files = []
        for key in matrix.cells():
            who = (key.pair, key.person)
            number = numbers.setdefault(who, len(numbers) + 1)
            if matrix.has(key):
                part = "test" if who in test else "train"
                files.append((key, target / part / f"{number:04d}_c{key.view}_{key.name}"))
        _cuhk03.write_images(matrix, files, target)
    return target


def index(folder: Path) -> pd.DataFrame:
    """Rows of the files that ``unpack`` wrote."""
    rows = []
    for part, splits in (("train", ("train",)), ("test", ("query", "gallery"))):
        for name in images_in(folder / part):
            person, camera = name.split("_")[:2]
            labels = {"person_id": int(person), "camera_id": int(camera.removeprefix("c"))}
            rows += [{"path": f"{part}/{name}", "split": split} | labels for split in splits]
    return table(rows)
