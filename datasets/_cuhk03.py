"""CUHK03 (Li et al., CVPR 2014): reading ``cuhk-03.mat`` and writing its images as files.

The file is HDF5, so MATLAB arrays appear transposed. ``detected`` and ``labeled`` are cells of five
camera pairs; a pair is a cell of people x 10 images (843, 440, 77, 58 and 49 people), 1-5 from its
first view and 6-10 from its second; missing images are empty. ``testsets`` is a cell of 20 arrays
(100, 2) of pair and person, from 1.

Checked against public readers (torchreid: torchreid/data/datasets/image/cuhk03.py; open-reid's
CUHK03 preprocessor; zhunzhong07/person-re-ranking: evaluation/data/CUHK03/save_img.m) and public
descriptions of the file; the file itself, handed out on request, was not at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.base import DatasetError, empty_own_folder

OBTAIN = "cuhk03_release.zip, from its authors (Li et al., CVPR 2014) on request"
FOLDERS = ("cuhk03-np", "CUHK03-NP", "cuhk03np", "CUHK03", "cuhk03", "cuhk03_release")
MATRIX = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")
COLLECTION = "CUHK03"
IMAGES_PER_VIEW = 5
NAME_PATTERN = re.compile(r"(\d+)_(\d+)_(\d+)_(\d+)\.png")


class Key(NamedTuple):
    """Where an image lies in the file, all numbers from 1."""

    pair: int
    person: int
    view: int
    image: int

    @property
    def name(self) -> str:
        """The name that the new protocol's lists give this image."""
        return f"{self.pair}_{self.person:03d}_{self.view}_{self.image:02d}.png"


def read_key(name: str) -> Key:
    """Inverse of ``Key.name``."""
    match = NAME_PATTERN.fullmatch(name)
    if match is None:
        raise DatasetError(f"'{name}' is no CUHK03 image name such as 1_001_1_01.png")
    return Key(*(int(number) for number in match.groups()))


class Matrix:
    """``cuhk-03.mat``, opened for reading; use as a context manager."""

    def __init__(self, folder: Path, boxes: str) -> None:
        import h5py  # only this dataset needs it

        self.path = next(folder / name for name in MATRIX if (folder / name).is_file())
        try:
            self.file = h5py.File(self.path, "r")
            self.pairs = [self.file[reference] for reference in self.file[boxes][:].ravel()]
        except (OSError, KeyError) as error:
            raise DatasetError(f"{self.path} is not the HDF5 file of CUHK03: {error}") from error

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def pixels(self, key: Key) -> np.ndarray | None:
        """(height, width, 3) uint8, or None where the cell is empty or does not exist."""
        if not 1 <= key.pair <= len(self.pairs):
            return None
        images, people = self.pairs[key.pair - 1].shape
        if not (1 <= key.person <= people and 1 <= key.image <= images):
            return None
        stored = self.file[self.pairs[key.pair - 1][key.image - 1, key.person - 1]]
        return stored[:].T.astype(np.uint8) if stored.ndim == 3 else None

    def cells(self) -> Iterator[Key]:
        """Every place for an image, empty ones included, in file order."""
        for pair, cells in enumerate(self.pairs, 1):
            images, people = cells.shape
            for person in range(1, people + 1):
                for image in range(1, images + 1):
                    yield Key(pair, person, 1 + (image > IMAGES_PER_VIEW), image)

    def test_people(self, fold: int) -> set[tuple[int, int]]:
        """(pair, person) of the test set of one of the 20 classic splits."""
        sets: Any = self.file["testsets"][:].ravel()
        return {(int(pair), int(person)) for pair, person in self.file[sets[fold]][:].T}


def write_images(matrix: Matrix, files: Iterable[tuple[Key, Path]], target: Path) -> None:
    """Write images to their paths below ``target``, emptied first; all that are missing are reported."""
    empty_own_folder(target)
    missing = []
    for key, path in tqdm(list(files), "unpacking cuhk-03.mat", unit="image", leave=False):
        pixels = matrix.pixels(key)
        if pixels is None:
            missing.append(key.name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    if missing:
        raise DatasetError(
            f"{matrix.path} lacks {len(missing)} image(s) that the protocol lists: " + ", ".join(missing)
        )
