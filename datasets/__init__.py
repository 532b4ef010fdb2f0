"""The datasets, one file each: where its images are, what its names mean, what its counts must be.

``NAME.py``, or ``NAME/dataset.py`` for one that needs a folder, is the dataset NAME and holds its
``DATASET``. ``base.py`` and files that start with ``_`` are shared helpers.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from core.names import unknown
from datasets.base import Dataset, DatasetError
from evaluation import protocol as protocols
from evaluation.protocol import Protocol

HERE = Path(__file__).parent
HELPERS = {"base"}
BESIDE = "-from-"  # in the name of a dataset that has another's training images as its source
USUAL_PROTOCOL = "market1501"  # most datasets' rules


def available() -> list[str]:
    """Names of all datasets."""
    files = {path.stem for path in HERE.glob("[!_]*.py")} - HELPERS
    return sorted(files | {path.parent.name for path in HERE.glob("*/dataset.py")})


def split_number(name: str) -> tuple[str, int | None]:
    """``NAME-NUMBER`` -> (NAME, NUMBER) for one of several partitions or drawn worlds; others -> (name, None)."""
    dataset, _, number = name.rpartition("-")
    return (dataset, int(number)) if number.isdecimal() and dataset in available() else (name, None)


def load(name: str) -> Dataset:
    """The dataset of that name; an unknown name is an error that suggests the nearest."""
    names = available()
    if name not in names:
        raise DatasetError(unknown("dataset", name, names))
    in_folder = (HERE / name / "dataset.py").is_file()
    dataset = importlib.import_module(f"datasets.{name}" + ".dataset" * in_folder).DATASET
    assert isinstance(dataset, Dataset)
    assert dataset.name == name
    return dataset


def split_pair(name: str) -> tuple[str, str | None]:
    """``TARGET-from-SOURCE`` -> (TARGET, SOURCE); others -> (name, None)."""
    target, _, source = name.partition(BESIDE)
    return target, source or None


def protocol_of(name: str) -> Protocol:
    """The protocol that runs on a dataset are scored by, a pair's by its target's.

    Raises DatasetError when it has other folds than the data.
    """
    name, _ = split_pair(name)
    dataset = load(name)
    protocol = protocols.load(dataset.protocol or (name if name in protocols.available() else USUAL_PROTOCOL))
    if protocol.folds != dataset.folds:
        raise DatasetError(f"{name} has {dataset.folds} fold(s), its protocol {protocol.name} has {protocol.folds}")
    return protocol


def notices(name: str) -> tuple[str, ...]:
    """What every table of numbers on the dataset must say: its protocol's notices, or its own; none for other names."""
    name, _ = split_pair(name)
    return (protocol_of(name).notices or load(name).notices) if name in available() else ()
