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
from contextlib import AbstractContextManager, contextmanager
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


@contextmanager
def foreign(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a foreign file may raise into a DatasetError that names it; ``kind``: what it should be.

    h5py and scipy raise unrelated types on files that are damaged or laid out otherwise.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{path} is not {kind}: {type(error).__name__}: {error}") from error


class Matrix:
    """``cuhk-03.mat``, opened for reading; use as a context manager."""

    def __init__(self, folder: Path, boxes: str) -> None:
        import h5py  # only this dataset needs it

        self.path = next((folder / name for name in MATRIX if (folder / name).is_file()), folder / MATRIX[0])
        with self._read():
            self.file = h5py.File(self.path, "r")
            self.pairs = [self.file[reference] for reference in self.file[boxes][:].ravel()]

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def has(self, key: Key) -> bool:
        """Whether there is an image; reads no pixels."""
        with self._read():
            return self._cell(key) is not None

    def pixels(self, key: Key) -> np.ndarray | None:
        """(height, width, 3) uint8, or None where the cell is empty or does not exist."""
        with self._read():
            cell = self._cell(key)
            if cell is None:
                return None
            if cell.dtype != np.uint8 or cell.shape[0] != 3:
                raise ValueError(f"{key.name} holds {cell.dtype} {cell.shape[::-1]}, no RGB image of 8 bits")
            return cell[:].T

    def cells(self) -> Iterator[Key]:
        """Every place for an image, empty ones included, in file order."""
        for pair, cells in enumerate(self.pairs, 1):
            images, people = self._shape(cells)
            for person in range(1, people + 1):
                for image in range(1, images + 1):
                    yield Key(pair, person, 1 + (image > IMAGES_PER_VIEW), image)

    def test_people(self, fold: int) -> set[tuple[int, int]]:
        """(pair, person) of the test set of one of the 20 classic splits."""
        with self._read():
            sets: Any = self.file["testsets"][:].ravel()
            return {(int(pair), int(person)) for pair, person in self.file[sets[fold]][:].T}

    def _cell(self, key: Key) -> Any:
        """The stored array (3, width, height), or None."""
        if not 1 <= key.pair <= len(self.pairs):
            return None
        images, people = self._shape(self.pairs[key.pair - 1])
        if not (1 <= key.person <= people and 1 <= key.image <= images):
            return None
        stored = self.file[self.pairs[key.pair - 1][key.image - 1, key.person - 1]]
        return stored if stored.ndim == 3 else None

    def _shape(self, cells: Any) -> tuple[int, int]:
        """Images and people of a pair."""
        with self._read():
            images, people = cells.shape
            return images, people

    def _read(self) -> AbstractContextManager[None]:
        return foreign(self.path, "the HDF5 file of CUHK03")


def write_images(matrix: Matrix, files: Iterable[tuple[Key, Path]], target: Path) -> None:
    """Write images to their paths below ``target``, emptied first; missing ones are reported before all are written."""
    files = list(files)
    missing = [key.name for key, _ in files if not matrix.has(key)]
    if missing:
        raise DatasetError(
            f"{matrix.path} lacks {len(missing)} image(s) that the protocol lists: " + ", ".join(missing)
        )
    empty_own_folder(target)
    for key, path in tqdm(files, "unpacking cuhk-03.mat", unit="image", leave=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(matrix.pixels(key)).save(path)
