"""Evaluation protocols, one YAML file each: what is ranked, what counts as right, and how often it is repeated.

A protocol is data. Numbers may be compared only where name and version agree; a change of any field
but the notices raises the version.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from core.names import unknown
from evaluation import metrics

HERE = Path(__file__).resolve().parent.parent / "protocols"
# What each field may say. One value means: stated for the reader, and for those who compare
# protocols.
CHOICES = {
    "junk": ("drop",),  # gallery images of person -1 are removed before ranking
    "same_camera": ("leave_out",),  # same person and same camera as the query: not ranked
    "distractors": ("wrong_match",),  # gallery images of person 0
    "ties": ("gallery_order",),  # exactly equal distances
    "distance": ("euclidean",),
    "metric": ("cmc_and_map", "cmc"),  # cmc: mAP and mINP are null
    "average_precision": ("hits", "none"),  # headline AP: mean precision at the hits; the trapezoid stands beside it
    "gallery_shot": ("all", "one_per_person"),  # one_per_person: drawn at random from the other cameras
}


class ProtocolError(UserError):
    """A protocol is unknown or its file is malformed."""


@dataclass(frozen=True)
class Protocol:
    """How a dataset is tested, in the words of CHOICES. draws: random galleries; folds: splits to average over."""

    name: str
    version: int
    dataset: str
    query: str
    gallery: str
    metric: str
    average_precision: str
    gallery_shot: str = "all"
    draws: int = 1
    folds: int = 1
    seed: int = 0
    junk: str = "drop"
    same_camera: str = "leave_out"
    distractors: str = "wrong_match"
    ties: str = "gallery_order"
    distance: str = "euclidean"
    notices: tuple[str, ...] = ()

    def rules(self) -> dict[str, Any]:
        """Every field that decides a number: all but the notices."""
        return {key: value for key, value in asdict(self).items() if key != "notices"}

    @property
    def headline(self) -> str:
        """The figure that epochs and results are judged by: ``mAP``, or ``rank1`` where there is no mAP."""
        return metrics.headline(self.metric)


def available() -> list[str]:
    """Names of all protocols."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(name: str) -> Protocol:
    """The protocol of that name; an unknown name is an error that suggests the nearest."""
    names = available()
    if name not in names:
        raise ProtocolError(unknown("protocol", name, names))
    return read(HERE / f"{name}.yaml")


def read(path: Path) -> Protocol:
    """Read and check one protocol file."""
    given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = {field.name: field for field in fields(Protocol)}
    for key in given:
        if key not in known:
            raise ProtocolError(f"{path}: {unknown('key', key, known)}")
    absent = [key for key, field in known.items() if field.default is MISSING and key not in given]
    if absent:
        raise ProtocolError(f"{path} lacks {', '.join(absent)}")
    for key, value in given.items():
        kind = {"int": int, "str": str}.get(str(known[key].type), list)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ProtocolError(f"{path}: {key} must be of type {kind.__name__}, found {value!r}")
        if value not in CHOICES.get(key, (value,)):
            raise ProtocolError(f"{path}: {key} is '{value}', it can be {' or '.join(CHOICES[key])}")
    protocol = Protocol(**{**given, "notices": tuple(given.get("notices", ()))})
    if protocol.name != path.stem:
        raise ProtocolError(f"{path}: the name is '{protocol.name}', but the file is called {path.stem}")
    return protocol
