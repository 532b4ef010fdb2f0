"""Typed records: what a file says becomes a frozen pydantic model, or one sentence that names file, key and fault.

class Limits(Record):
    seconds: float
    devices: tuple[str, ...] = ()

limits = read_yaml(Limits, Path("limits.yaml"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import UserError
from core.names import unknown

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml, which is faster
except ImportError:  # yaml was built without it
    from yaml import SafeLoader  # type: ignore[assignment]


class RecordError(UserError):
    """A file or a layer of settings that does not hold what its model asks for."""


class Record(BaseModel):
    """A frozen model; an unknown key is an error, and a value has the stated type already (``"3"`` is no int)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=BaseModel)


def read_json(model: type[Model], path: Path) -> Model:
    """The model that a JSON file holds; raises RecordError, or FileNotFoundError when there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from error
    return read(model, values, str(path))


def read_yaml(model: type[Model], path: Path) -> Model:
    """The model that a YAML file holds; raises RecordError."""
    return read(model, read_mapping(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; raises RecordError when it is missing, is no mapping, or has a key twice."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist (in the folder {Path.cwd()})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecordError(f"{path} must hold keys and values at its top level, not {_shown(values)}")
    return values


class UniqueKeyLoader(SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be written over
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(model: type[Model], values: Any, source: str) -> Model:
    """The model of plain values (dicts, lists, numbers, text); raises RecordError that names ``source`` and key.

    ``source`` is what a reader would look at: a file, or a layer of settings.
    """
    try:
        # As JSON, whose lists are tuples where the model says so, and whose text is never a number.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise RecordError(sentence(error, model, source)) from error


def sentence(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """``SOURCE: unknown key 'scedule'; did you mean 'schedule'? ...; 'seeds[0]' must be a valid integer, not 'a'``."""
    return f"{source}: " + "; ".join(_fault(fault, model) for fault in error.errors(include_url=False))


def _fault(fault: Any, model: type[BaseModel]) -> str:
    place = tuple(fault["loc"])
    key = _dotted(place)
    if fault["type"] == "extra_forbidden":
        prefix = _dotted(place[:-1])
        return unknown("key", str(place[-1]), _known(model, place[:-1]), f"{prefix}." if prefix else "")
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    if fault["type"] == "value_error":  # a validator of the model's own says it in its own words
        told = str(fault["ctx"]["error"])
        return f"'{key}': {told}" if key else told
    what = fault["msg"].replace("Input should be", "must be")
    return f"'{key}' {what}, not {_shown(fault['input'])}" if key else f"{what}, not {_shown(fault['input'])}"


def _dotted(place: tuple[int | str, ...]) -> str:
    """``("rows", 0, "mAP")`` -> ``rows[0].mAP``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _known(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at ``place`` inside ``model``."""
    kind: Any = model
    for part in place:
        fields = _fields(kind)
        kind = fields[part].annotation if part in fields else kind  # an entry of a list or mapping: same annotation
    return list(_fields(kind))


def _fields(kind: Any) -> Mapping[Any, Any]:
    """Fields of a model, or of the first model inside ``Model | None``, ``tuple[Model, ...]``, ``dict[str, Model]``."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields
    return next((found for inner in get_args(kind) if (found := _fields(inner))), {})


def _shown(value: Any) -> str:
    """A value as an error repeats it: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
