"""params.yaml as a typed record: what to run, on what, how often."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

import methods
from core.backbones.net import BACKBONES
from core.names import unknown
from core.validation import Record, RecordError, read, read_mapping
from datasets import split_number

ROOT = Path(__file__).resolve().parent.parent
DRAWN = "rendered"  # the dataset that is drawn, one world a replicate
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # run names become folders, stages and shell words
MOST_THREADS = 1024


class Rendered(Record):
    """How large the worlds of drawn people are; `datasets` lists them as rendered-0, rendered-1 and so on."""

    size: str


class External(Record):
    """A system from outside the suite on one dataset: the file of its features, as `evaluate --features` takes them.

    name: of its row, the same for all its datasets. normalize: L2-normalise first. about: what readers should know of
    its training, in a few words.
    """

    name: str
    dataset: str
    features: str
    normalize: bool = False
    about: str = ""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name.partition("-")[0] in methods.available():
            raise ValueError(
                f"'{name}' is no name of an outside system: letters, digits, '_', '.', '-', and no method's"
            )
        return name


class Params(Record):
    """What params.yaml says; README and the file's own comments explain the keys."""

    profile: str
    datasets: tuple[str, ...]
    backbones: dict[str, str]
    runs: dict[str, tuple[str, ...]]
    pretrainings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    translators: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    threads: int = Field(ge=1, le=MOST_THREADS)
    launch: str
    data_root: str
    rendered: Rendered
    overrides: dict[str, Any] = Field(default_factory=dict)
    external: tuple[External, ...] = ()
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("datasets")
    @classmethod
    def _named_datasets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:  # a prepared folder may have a name of the user's own
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no name of a dataset: letters, digits, '_', '.' and '-' only")
        if not names:
            raise ValueError("list at least one dataset, as in [rendered-0]")
        return _each_once(names)

    @field_validator("backbones")
    @classmethod
    def _known_backbones(cls, kinds: dict[str, str]) -> dict[str, str]:
        for name in kinds.values():
            _check_known("backbone", name, BACKBONES)
        if not kinds:
            raise ValueError("name at least one backbone, as in {cnn: resnet18_half}")
        return kinds

    @field_validator("runs", "pretrainings")
    @classmethod
    def _known_runs(cls, kinds: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for listed in kinds.values():
            for name in _each_once(listed):
                if not NAME.fullmatch(name):
                    raise ValueError(f"'{name}' is no run: METHOD or METHOD-VARIANT, as in hhcl-paper")
                _check_known("method", name.partition("-")[0], methods.available())
        return kinds

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0:
            raise ValueError(f"list one seed or more, none of them negative, not {list(seeds)}")
        return _each_once(seeds)

    @field_validator("external")
    @classmethod
    def _each_system_once_per_dataset(cls, systems: tuple[External, ...]) -> tuple[External, ...]:
        _each_once(tuple(f"external {system.name} on {system.dataset}" for system in systems))
        return systems

    @field_validator("translators")
    @classmethod
    def _each_translator_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once(names)

    @model_validator(mode="after")
    def _only_what_is_listed(self) -> Params:
        for dataset, named in self.only.items():
            _check_known("entry of `datasets`", dataset, self.datasets)
            for name in _each_once(named):
                _check_known("listed run", name, [run for listed in self.listed.values() for run in listed])
        return self

    def has(self, dataset: str, run: str) -> bool:
        """Whether the run is wanted on the dataset: ``only`` may name a dataset's runs, others have all."""
        return run in self.only.get(dataset, (run,))

    @property
    def listed(self) -> dict[str, tuple[str, ...]]:
        """Every run of each kind of backbone, those that fine-tune a pre-training among them."""
        return {kind: (*self.runs[kind], *self.pretrainings.get(kind, ())) for kind in self.runs}

    def with_worlds(self, count: int) -> Params:
        """The same with the worlds 0 to ``count`` - 1 of drawn people in place of those listed.

        Raises RecordError where no world is listed, or none asked for.
        """
        drawn = [name for name in self.datasets if split_number(name)[0] == DRAWN]
        if not drawn or count < 1:
            raise RecordError(f"--worlds {count} needs a world in `datasets` of params.yaml, and a number from 1 up")
        first = self.datasets.index(drawn[0])
        kept = [name for name in self.datasets if name not in drawn]
        worlds = [f"{DRAWN}-{number}" for number in range(count)]
        return self.model_copy(update={"datasets": (*kept[:first], *worlds, *kept[first:])})

    @model_validator(mode="after")
    def _runs_have_a_backbone(self) -> Params:
        for section in ("runs", "pretrainings"):
            for kind in getattr(self, section):
                if kind not in self.backbones:
                    listed = unknown("kind", kind, self.backbones)
                    raise ValueError(f"`{section}` are listed by kind of backbone: {listed}")
        if beyond := sorted(set(self.translators) - set(self.datasets)):
            raise ValueError(f"'translators': {beyond[0]} is not among `datasets`, whose images a translator trains on")
        for kind in self.backbones:  # dvc.yaml has a family of stages for each
            if kind not in self.runs:
                raise ValueError(f"'runs.{kind}' is missing; list its runs, or `{kind}: []` for none")
        return self


def elsewhere() -> str:
    """A hint for who stands in another folder than the suite's, whose files commands name; nothing in its root."""
    return "" if Path.cwd() == ROOT else f" (commands run from the suite's root: `cd {shlex.quote(str(ROOT))}`)"


def read_params(path: Path, changes: Mapping[str, Any] | None = None) -> Params:
    """Read and check a settings file, with ``changes`` of the command line on top.

    Raises RecordError naming file, key and the nearest known one.
    """
    if not path.is_file():
        raise RecordError(f"{path} does not exist in {Path.cwd()}{elsewhere()}")
    return read(Params, {**read_mapping(path), **(changes or {})}, str(path))


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in list(known):
        raise ValueError(unknown(kind, name, known))


def _each_once(listed: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({str(entry) for entry in listed if listed.count(entry) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed twice")
    return listed
