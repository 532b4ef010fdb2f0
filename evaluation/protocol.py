"""Evaluation protocols as data: what is ranked, what counts as right, and how often it is repeated.

A file of protocols/ states rules and the names of the protocols that follow them, each with its own notices. Numbers
may be compared only where name and version agree; a change of a rule raises the version.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from core.names import unknown
from core.validation import Record, RecordError, read_yaml
from evaluation import metrics

HERE = Path(__file__).resolve().parent.parent / "protocols"


class ProtocolError(RecordError):
    """A protocol is unknown or its file is malformed."""


class Rules(Record):
    """How a dataset is tested. A choice of one is stated for the reader, and for those who compare protocols.

    junk: gallery images of person -1 are removed before ranking. same_camera: gallery images of the query's person
    under its camera are not ranked. distractors: gallery images of person 0 are wrong matches. ties: of exactly equal
    distances, the earlier in the gallery ranks first. metric: under ``cmc`` mAP and mINP are null. average_precision:
    the mean precision at the hits; the trapezoid stands beside it. gallery_shot: ``one_per_person`` is drawn at random
    from the other cameras, ``draws`` times from ``seed``. folds: splits to average over.
    """

    version: int
    query: str
    gallery: str
    metric: Literal["cmc_and_map", "cmc"]
    average_precision: Literal["hits", "none"]
    gallery_shot: Literal["all", "one_per_person"] = "all"
    draws: int = 1
    folds: int = 1
    seed: int = 0
    junk: Literal["drop"] = "drop"
    same_camera: Literal["leave_out"] = "leave_out"
    distractors: Literal["wrong_match"] = "wrong_match"
    ties: Literal["gallery_order"] = "gallery_order"
    distance: Literal["euclidean"] = "euclidean"


class Named(Record):
    """A protocol that a file stands for. notices: what every table of its numbers must say."""

    notices: tuple[str, ...] = ()


class File(Rules):
    """A file of protocols/: the rules, and who follows them."""

    names: dict[str, Named]


class Protocol(Rules):
    """The rules under one name."""

    name: str
    notices: tuple[str, ...] = ()

    def rules(self) -> dict[str, Any]:
        """Every field that decides a number: all but the notices."""
        return self.model_dump(exclude={"notices"})

    @property
    def headline(self) -> str:
        """The figure that epochs and results are judged by: mAP, or rank-1 where there is no mAP."""
        return metrics.headline(self.metric)


def available() -> list[str]:
    """Names of all protocols."""
    return sorted(known())


def load(name: str) -> Protocol:
    """The protocol of that name; an unknown name is an error that suggests the nearest."""
    if name not in known():
        raise ProtocolError(unknown("protocol", name, known()))
    return known()[name]


@cache
def known(folder: Path = HERE) -> dict[str, Protocol]:
    """All protocols by name; raises ProtocolError for a malformed file, and for a name that two files have."""
    found: dict[str, Protocol] = {}
    for path in sorted(folder.glob("*.yaml")):
        for name, protocol in read(path).items():
            if name in found:
                raise ProtocolError(f"{path}: another file of {folder} states the protocol '{name}' already")
            found[name] = protocol
    return found


def read(path: Path) -> dict[str, Protocol]:
    """Read and check one file: the protocols that it states, by name."""
    try:
        file = read_yaml(File, path)
    except RecordError as error:
        raise ProtocolError(str(error)) from error
    rules = file.model_dump(exclude={"names"})
    return {name: Protocol(**rules, name=name, notices=named.notices) for name, named in file.names.items()}
