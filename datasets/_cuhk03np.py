"""CUHK03 in the new protocol (Zhong et al., CVPR 2017): 767 people for training, 700 for testing.

Read either as a folder in the Market-1501 layout, or from ``cuhk-03.mat`` and the configuration
file of the protocol, whose images are then written in that same layout.

The configuration file (MATLAB 5) holds the columns ``filelist`` (cell of names), ``labels`` (people,
from 1), ``camId`` (view, 1 or 2) and ``train_idx``, ``query_idx``, ``gallery_idx`` (rows, from 1).
Checked against the protocol's own generator and README (zhunzhong07/person-re-ranking:
evaluation/data/CUHK03/gen_train_test_split.m, CUHK03-NP/README.md), against torchreid's reader, and
for the detected boxes against the configuration file itself: a public copy of the folder has the
names and counts that it lists. ``cuhk-03.mat``, and the file of the labeled boxes, were not at hand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from datasets import _cuhk03
from datasets.base import (
    MARKET_LAYOUT,
    Counts,
    Dataset,
    DatasetError,
    index_names,
    lacking,
)

NAME_PATTERN = r"(?P<person>-?\d+)_c(?P<camera>\d)"
SPLITS = ("train_idx", "query_idx", "gallery_idx")  # in the order of MARKET_LAYOUT


def describe(name: str, boxes: str, expected: Counts) -> Dataset:
    """The dataset of the ``detected`` or the ``labeled`` boxes."""
    config = config_name(boxes)
    return Dataset(
        name=name,
        folders=_cuhk03.FOLDERS,
        layouts=(folder_layout(boxes), *((matrix, config) for matrix in _cuhk03.MATRIX)),
        obtain=f"{_cuhk03.OBTAIN}; {config} comes with the new protocol (Zhong et al., CVPR 2017)",
        index=partial(index_names, pattern=NAME_PATTERN, prefix=boxes),
        expected=expected,
        unpack=partial(unpack, boxes=boxes),
        collection=_cuhk03.COLLECTION,
    )


def folder_layout(boxes: str) -> tuple[str, ...]:
    """What a folder in the Market-1501 layout must contain."""
    return tuple(f"{boxes}/{part}" for part in MARKET_LAYOUT)


def config_name(boxes: str) -> str:
    """The protocol's configuration file."""
    return f"cuhk03_new_protocol_config_{boxes}.mat"


def unpack(folder: Path, target: Path, fold: int, boxes: str) -> Path:
    """Write the images that the protocol lists below ``target``, unless they are files already."""
    if not lacking(folder, folder_layout(boxes)):
        return folder
    with _cuhk03.Matrix(folder, boxes) as matrix:
        files = protocol_files(folder / config_name(boxes), target / boxes)
        _cuhk03.write_images(matrix, files, target)
    return target


def protocol_files(config: Path, target: Path) -> list[tuple[_cuhk03.Key, Path]]:
    """Every listed image and the file to write it to; indices in the file count from 1."""
    with _cuhk03.foreign(config, "the new protocol's file"):
        settings = loadmat(config)
        absent = [key for key in ("filelist", "labels", "camId", *SPLITS) if key not in settings]
        if absent:
            raise DatasetError(f"{config} lacks {', '.join(absent)}; is it the new protocol's file?")
        names = [str(np.asarray(entry).item()) for entry in settings["filelist"].ravel()]
        people, cameras = (settings[key].ravel() for key in ("labels", "camId"))
        files = []
        for split, part in zip(SPLITS, MARKET_LAYOUT, strict=True):
            for number in settings[split].ravel():
                if not 1 <= number <= min(len(names), len(people), len(cameras)):
                    raise ValueError(f"{split} holds {number}, but {len(names)} images are listed")
                row = int(number) - 1
                name = f"{int(people[row]):04d}_c{int(cameras[row])}_{names[row]}"
                files.append((_cuhk03.read_key(names[row]), target / part / name))
    return files
