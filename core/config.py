"""Typed configuration: frozen dataclasses whose defaults are the Cluster-Contrast family's paper values.

A run's configuration is a stack of patches (method, dataset override, variant, profile, params.yaml, command
line), each a nested dict, merged low to high and then read into ``Config``. An unknown key is an error that names
the nearest known one; a wrong type is an error that names the key. There is no inheritance and no registry.

Constants counted in epochs (``per_epochs``: a decay's step, a warm-up, the start of a loss) are places in the run. A
run that is shortened or lengthened above the paper's layers keeps their share of it: 3 of 50 epochs become 0.6 of 10,
which at 15 steps an epoch are 9 of 150. They are compared with ``Batch.epoch``, the exact place of a step, so nothing
is rounded; a step belongs where it starts. What can change only between two epochs rounds down and compares
``epoch >= int(start)``: a short warm-up may vanish, but never takes more than its share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.approximate import SEARCHES
from core.augment import Augment
from core.errors import UserError
from core.names import unknown

SCIENTIFIC = re.compile(r"[+-]?\d+e[+-]?\d+", re.IGNORECASE)  # 3e-4: a word in YAML 1.1, which wants 3.0e-4

LARGEST_BATCH = 16_384
# Bounds, both included: wide enough for any machine, and narrow enough that a slip of the finger fails at once.
RANGES: dict[str, tuple[float, float]] = {
    "input.height": (1, 4096),
    "input.width": (1, 4096),
    "backbone.bn_groups": (1, 1024),
    "sampler.identities": (1, LARGEST_BATCH),
    "sampler.instances": (1, LARGEST_BATCH),
    "clustering.k1": (1, 10_000),
    "clustering.k2": (1, 10_000),
    "clustering.min_samples": (1, 10_000),
    "backbone.last_stride": (1, 2),
    "backbone.drop_path": (0, 0.99),
    "optimiser.weight_decay": (0, 10),
    "optimiser.weight_decay_end": (0, 10),
    "schedule.epochs": (0, 100_000),
    "schedule.iterations": (1, 10_000_000),
    "schedule.step": (0, 100_000),
    "schedule.warmup": (0, 100_000),
    "schedule.warmup_factor": (0, 1),
    "schedule.cosine_end": (0, 1),
    "schedule.eval_every": (1, 100_000),
    "augment.pad": (0, 4096),
    "extraction_batch": (1, 65_536),
}
CHOICES = {
    "precision": ("fp32", "fp64", "bf16", "fp16"),
    "optimiser.name": ("adam", "adamw", "sgd"),
    "sampler.singleton": ("fill", "repeat"),
    "clustering.search": SEARCHES,
}


class ConfigError(UserError):
    """A configuration that cannot be run: unknown key, wrong type or impossible value."""


def per_epochs(default: float | tuple[float, ...]) -> Any:
    """A field of one or several epochs, fractions allowed: it keeps its share of a run of another length."""
    return field(default=default, metadata={"per_epochs": True})


@dataclass(frozen=True)
class Input:
    """Image size in pixels after PIL bicubic resizing."""

    height: int = 256
    width: int = 128


@dataclass(frozen=True)
class Backbone:
    """What embeds an image. ``bn_groups``: chunks a batch is normalised in, as that many GPUs would.

    ``last_stride``: of a convolutional network's last stage; ``drop_path``: of a vision transformer; None leaves the
    network its own.
    """

    name: str = "resnet50"
    pooling: str = "avg"
    bn_groups: int = 4
    last_stride: int | None = None
    drop_path: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the network's constructor is given; a kind of network reads its own option alone."""
        own = {"drop_path": self.drop_path} if self.name.startswith("vit") else {"last_stride": self.last_stride}
        return {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True)
class Sampler:
    """P identities x K instances; ``uses_camera`` prefers instances of other cameras, as released."""

    identities: int = 16
    instances: int = 16
    uses_camera: bool = True
    singleton: str = "fill"

    @property
    def batch(self) -> int:
        """Images in a batch."""
        return self.identities * self.instances


@dataclass(frozen=True)
class Clustering:
    """Jaccard distance over k1 reciprocal neighbours, expanded over k2, then DBSCAN.

    ``search``: how the neighbours are found, exact, or for very many images ivf or hnsw, whose recall is recorded.
    """

    k1: int = 30
    k2: int = 6
    eps: float = 0.6
    min_samples: int = 4
    search: str = "exact"


@dataclass(frozen=True)
class Optimiser:
    """``name``: adam, adamw or sgd (momentum 0.9; ``nesterov`` is for it alone).

    ``weight_decay_end``: the decay moves there over the run, along half a cosine, at every step. ``clip``: the largest
    norm of each parameter's gradient; None leaves gradients as they are.
    """

    name: str = "adam"
    lr: float = 3.5e-4
    weight_decay: float = 5e-4
    weight_decay_end: float | None = None
    nesterov: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Length of a run. ``iterations``: steps of an epoch, None means one pass of the sampler.

    ``step``: epochs until the rate falls by ``gamma``, again and again; 0 means never. ``milestones``: the epochs at
    which it falls, where there are any, in place of ``step``. ``cosine``: after the warm-up it falls at every step,
    along half a cosine, to the share ``cosine_end`` of its value, in place of both. ``warmup``: epochs over which it
    rises from ``warmup_factor`` of its value.
    """

    epochs: int = 50
    iterations: int | None = 400
    step: float = per_epochs(20)
    milestones: tuple[float, ...] = per_epochs(())
    gamma: float = 0.1
    cosine: bool = False
    cosine_end: float = 0.0
    warmup: float = per_epochs(0)
    warmup_factor: float = 0.01
    eval_every: int = 10


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes, but for the data, the seed and the initial weights."""

    settings: Any
    input: Input = Input()
    backbone: Backbone = Backbone()
    augment: Augment = field(default_factory=Augment)
    sampler: Sampler = Sampler()
    clustering: Clustering = Clustering()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    precision: str = "fp32"
    extraction_batch: int = 256

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, as written beside the results.

        An exact search goes without saying: records and hashes stay those of runs from before there was another.
        """
        record = dataclasses.asdict(self)
        if self.clustering.search == "exact":
            del record["clustering"]["search"]
        return record

    def digest(self) -> str:
        """Short hash of the resolved configuration."""
        return digest(self.as_dict())


class Patch(NamedTuple):
    """A layer of configuration and where it came from; ``paper`` layers state the paper's own settings."""

    source: str
    values: Mapping[str, Any]
    paper: bool


def digest(record: Any) -> str:
    """The first 16 hex digits of the sha256 of a JSON-able record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def resolve(patches: Sequence[Patch], settings: type) -> Config:
    """Merge the patches, low to high, and read them into a Config whose ``settings`` is the method's dataclass.

    Where a profile (or anything above the paper layers) changes ``schedule.epochs``, every field declared with
    ``per_epochs`` keeps its share of the run (see above), unless a layer above the paper sets it by name.

    Raises ConfigError naming the key and the layer that set it.
    """
    for patch in patches:
        _check_keys(Config, settings, patch)
    paper = _read(Config, merge([p.values for p in patches if p.paper]), "", settings)
    raised = merge([p.values for p in patches if not p.paper])
    config = _read(Config, merge([p.values for p in patches]), "", settings)
    lengths = config.schedule.epochs, max(1, paper.schedule.epochs)
    config = dataclasses.replace(
        config,
        schedule=_scaled(config.schedule, *lengths, raised.get("schedule", {})),
        settings=_scaled(config.settings, *lengths, raised.get("settings", {})),
    )
    _check_values(config)
    return config


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["clustering.eps=0.5"]`` -> ``{"clustering": {"eps": 0.5}}``; values are read as YAML."""
    import yaml

    merged: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' is not KEY=VALUE, as in clustering.eps=0.5")
        try:
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: '{text}' cannot be read as a YAML value") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merged = merge([merged, nested])
    return merged


def merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested settings, later layers above earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge([merged[key], value]) if both else value
    return merged


def _scaled(record: Any, epochs: int, paper_epochs: int, set_above: Mapping[str, Any]) -> Any:
    """Give the fields counted in epochs the share of ``epochs`` that they have of ``paper_epochs``.

    A single division rounds the result, as it does ``Batch.epoch``: where the two are equal, they are so to the bit.
    Whole numbers stay whole in files and hashes: 20, not 20.0.
    """
    changes = {}
    for entry in dataclasses.fields(record):
        if entry.metadata.get("per_epochs"):
            value = getattr(record, entry.name)
            lengths = (1, 1) if entry.name in set_above else (epochs, paper_epochs)
            several = isinstance(value, tuple)
            changes[entry.name] = tuple(_share(v, *lengths) for v in value) if several else _share(value, *lengths)
    return dataclasses.replace(record, **changes)


def _share(value: float, epochs: int, paper_epochs: int) -> float:
    scaled = value * epochs / paper_epochs
    return int(scaled) if scaled % 1 == 0 else scaled


def _section_type(cls: type, name: str, settings: type) -> Any:
    return settings if cls is Config and name == "settings" else typing.get_type_hints(cls)[name]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _check_keys(cls: type, settings: type, patch: Patch) -> None:
    """Every key of the patch is a field; the error names the layer, the key and the nearest known key."""

    def visit(target: type, values: Any, prefix: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{patch.source}: '{prefix.rstrip('.')}' must be a section of keys")
        known = [entry.name for entry in dataclasses.fields(target)]
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{patch.source}: {unknown('key', str(key), known, prefix)}")
            kind = _section_type(target, key, settings)
            if _is_section(kind):
                visit(kind, value, f"{prefix}{key}.")

    visit(cls, patch.values, "")


def _read(cls: type, values: Mapping[str, Any], prefix: str, settings: type) -> Any:
    arguments = {}
    for entry in dataclasses.fields(cls):
        kind = _section_type(cls, entry.name, settings)
        if _is_section(kind):
            section = values.get(entry.name, {})
            arguments[entry.name] = _read(kind, section, f"{prefix}{entry.name}.", settings)
        elif entry.name in values:
            arguments[entry.name] = _convert(values[entry.name], kind, f"{prefix}{entry.name}")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:  # what a dataclass's own __post_init__ refuses
        raise ConfigError(str(error)) from error


def _convert(value: Any, kind: Any, key: str) -> Any:
    """Check one value against its annotation; ints widen to float, lists become tuples."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        others = [option for option in inner if option is not type(None)]
        lists = [option for option in others if typing.get_origin(option) is tuple]
        return _convert(value, (lists if lists and isinstance(value, (list, tuple)) else others)[0], key)
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(f"'{key}' must be one of {', '.join(map(str, inner))}, not {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{key}' must hold keys and values, not {value!r}")
        return {name: _convert(entry, inner[1], f"{key}.{name}") for name, entry in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"'{key}' must be a list, not {value!r}")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ConfigError(f"'{key}' must hold {len(kinds)} values, not {value!r}")
        return tuple(_convert(v, t, f"{key}[{i}]") for i, (v, t) in enumerate(zip(value, kinds, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        return float(value)
    if isinstance(value, bool) is (kind is bool) and isinstance(value, kind):
        return value
    raise ConfigError(f"'{key}' must be {_called(kind)}, not {value!r}")


def _called(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _check_values(config: Config) -> None:
    """Impossible values, caught before any work is done."""
    values = dict(_leaves(dataclasses.asdict(config)))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"'{key}' must be a finite number, not {value}")
        if _is_temperature(key) and value is not None and value <= 0:
            raise ConfigError(f"'{key}' is a temperature and must be above 0, not {value}")
    for key, (least, most) in RANGES.items():
        value = values[key]
        if value is not None and not least <= value <= most:
            raise ConfigError(f"'{key}' must be {least:g} to {most:g}, not {value}")
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise ConfigError(f"'{key}' must be one of {', '.join(allowed)}, not '{values[key]}'")
    if config.sampler.batch > LARGEST_BATCH:
        sampler = config.sampler
        raise ConfigError(
            f"'sampler.identities' x 'sampler.instances' = {sampler.identities} x {sampler.instances} is a batch of "
            f"{sampler.batch} images; the most is {LARGEST_BATCH}"
        )
    if not 0 < config.schedule.gamma <= 1:
        raise ConfigError(f"'schedule.gamma' is what the rate is multiplied by, in (0, 1], not {config.schedule.gamma}")
    _check_falls(config.schedule)
    clip = config.optimiser.clip
    if clip is not None and not clip > 0:
        raise ConfigError(f"'optimiser.clip' is the largest norm of a gradient, above 0 or null, not {clip}")
    if not config.optimiser.lr > 0:
        raise ConfigError(f"'optimiser.lr' must be above 0, not {config.optimiser.lr}")
    if not 0 <= config.clustering.eps < 1:  # the sparse graph holds the pairs whose distance is below 1
        raise ConfigError(f"'clustering.eps' is a Jaccard distance in [0, 1), not {config.clustering.eps}")


def _check_falls(schedule: Schedule) -> None:
    """One way for the rate to fall, at places in order."""
    milestones = schedule.milestones
    if any(later <= earlier for earlier, later in zip((0, *milestones), milestones, strict=False)):
        raise ConfigError(f"'schedule.milestones' are epochs above 0 in rising order, not {list(milestones)}")
    if schedule.cosine and milestones:
        raise ConfigError(
            f"'schedule.cosine' and 'schedule.milestones' {list(milestones)} both say how the rate falls; "
            "set cosine to false or milestones to []"
        )
    if schedule.cosine and not 0 <= schedule.warmup < max(1, schedule.epochs):
        raise ConfigError(
            f"'schedule.cosine' falls from the end of the warm-up to that of the run, but 'schedule.warmup' takes "
            f"{schedule.warmup} of {schedule.epochs} epochs"
        )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"schedule": {"step": 5}}`` -> ``("schedule.step", 5)``; a list is its entries."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield from ((f"{prefix}{key}[{index}]", entry) for index, entry in enumerate(value))
        else:
            yield f"{prefix}{key}", value


def _is_temperature(key: str) -> bool:
    """Whether a setting divides logits: fields called ``temperature``, ``..._temperature`` or ``tau...``."""
    name = key.rpartition(".")[2]
    return name.endswith("temperature") or name.startswith("tau")
