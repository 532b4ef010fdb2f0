"""What papers print: ``methods/NAME/published.yaml``, the numbers with where they were read and how far that goes."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

from pydantic import create_model, field_validator, model_validator

import methods
from core.validation import Record, RecordError, read_yaml
from evaluation import metrics

# Where a number was read. At its authors': the paper, their README, a table shipped as a picture, their model zoo, a
# training log, an answer in an issue. Second-hand: quoted by others, others' own run, memory. None: nothing is known.
FirstHand = Literal["paper", "readme", "image", "zoo", "log", "issue"]
SecondHand = Literal["quoted", "third-party", "second-hand", "memory", "unverified"]
FIDELITIES = ("official-code parity", "paper equations", "reconstructed", "adapted")
REFERENCES = ("warm_start", "supervised")  # no method: no training, and training with the labels


class Paper(Record):
    """Whose method it is; what could not be found out is None."""

    title: str
    authors: str | None
    venue: str | None
    arxiv: str | None = None
    doi: str | None = None
    code: str | None


Figures: Any = create_model(
    "Figures", __base__=Record, **{metric.name: (float | None, ...) for metric in metrics.PUBLISHED}
)


class Row(Figures):
    """One line of a paper's table, in percent; a number that nobody knows is None."""

    dataset: str
    variant: str
    backbone: str
    verified: Literal[FirstHand, SecondHand] | None
    source: str

    @model_validator(mode="after")
    def _marked(self) -> Row:
        known = [metric.name for metric in metrics.PUBLISHED if self.figure(metric.name) is not None]
        if known and self.verified is None:
            raise ValueError(f"{', '.join(known)} must say where it was read: `verified` is null")
        if self.verified is not None and not known:
            raise ValueError(f"`verified` is {self.verified}, but no number is known")
        return self

    @property
    def first_hand(self) -> bool:
        """Whether its numbers were read in a source of the authors; others may be wrong."""
        return self.verified in get_args(FirstHand)

    def figure(self, metric: str) -> float | None:
        """The value of a metric, in percent."""
        value: float | None = getattr(self, metric)
        return value


class Published(Record):
    """A method's paper: its numbers, what our code is faithful to, and what had to be assumed.

    fidelity: one of FIDELITIES, and of what, for each variant, ``default`` standing for those that are not named.
    baseline: the runs that the method is measured against, if not the usual one; the first that was run is its row's.
    context: numbers that belong to no variant here, by name.
    """

    paper: Paper
    fidelity: dict[str, str]
    rows: tuple[Row, ...]
    assumptions: tuple[str, ...] = ()
    ablations: None = None
    baseline: tuple[str, ...] = ()
    context: dict[str, tuple[dict[str, Any], ...]] = {}  # noqa: RUF012

    @field_validator("fidelity", mode="before")
    @classmethod
    def _of_every_variant(cls, value: Any) -> Any:
        return {"default": value} if isinstance(value, str) else value

    @field_validator("fidelity")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for stated in value.values():
            if not stated.startswith(FIDELITIES):
                raise ValueError(f"must begin with {' or '.join(FIDELITIES)}, not {stated!r}")
        return value


@cache
def read_published(method: str) -> Published | None:
    """A method's published.yaml; None where it has none. Raises RecordError when the file is malformed."""
    file = methods.folder(method) / "published.yaml"
    if not file.is_file():
        return None
    published = read_yaml(Published, file)
    seen = [(row.dataset, row.variant, row.backbone) for row in published.rows]
    if twice := {key for key in seen if seen.count(key) > 1}:
        raise RecordError(f"{file}: 'rows' holds {sorted(twice)} more than once")
    return published


def rows(method: str) -> tuple[Row, ...]:
    """The rows of a method's published.yaml; none where it has no such file."""
    published = read_published(method)
    return published.rows if published else ()


def row_of(method: str, variant: str, backbone: str, dataset: str) -> Row | None:
    """The paper's own numbers on this dataset with this backbone; None where it has none."""
    wanted = (dataset, variant, backbone)
    return next((row for row in rows(method) if (row.dataset, row.variant, row.backbone) == wanted), None)


def fidelity(method: str, variant: str) -> str | None:
    """What a variant is faithful to, or what is missing to know it; None for the reference rows."""
    if method in REFERENCES:
        return None
    published = read_published(method)
    if published is None:
        return "not stated: no published.yaml"
    stated = published.fidelity.get(variant, published.fidelity.get("default"))
    return stated or f"not stated: published.yaml names no '{variant}' and no default"
