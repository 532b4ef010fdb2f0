"""From params.yaml and a run's name to its resolved configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

import methods
from core.backbones.net import BACKBONES
from core.checkpoint import source_hash
from core.config import Config, ConfigError, Patch, parse_assignments, resolve
from datasets import split_fold
from pipeline.jobs import ROOT

SECTIONS = ("datasets", "variants", "ablations", "profiles")
BACKBONE_SECTIONS = ("train", "pretrain", "references")
FULL = "full"  # the ablation row that changes nothing


@dataclass(frozen=True)
class Run:
    """One cell's settings. ``name`` is METHOD or METHOD-VARIANT, as in params.yaml and stage names."""

    name: str
    method: str
    variant: str
    backbone: str
    profile: str
    dataset: str
    config: Config

    @property
    def title(self) -> str:
        """As printed: method:variant@backbone."""
        return f"{self.method}:{self.variant}@{self.backbone}"

    def record(self) -> dict[str, Any]:
        """Plain dict for results, with the configuration's hash."""
        return {**asdict(self), "config_hash": self.config.digest()}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; raises ConfigError when the file is missing or holds something else."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    try:
        record = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if record is None:
        return {}
    if not isinstance(record, dict):
        raise ConfigError(f"{path} must hold keys and values at its top level")
    return record


def method_config(method: str) -> dict[str, Any]:
    """``methods/NAME/config.yaml``."""
    return read_yaml(methods.folder(method) / "config.yaml")


def variants(method: str) -> list[str]:
    """Variant names of a method, the default first; a method without any has one, called ``default``."""
    return list(method_config(method).get("variants") or {"default": {}})


def named_patches(written: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Patches of variants and ablation rows by name; both are asked for by the same names.

    Raises ConfigError for a name that stands for two different patches.
    """
    variants, rows = (written.get(section) or {} for section in ("variants", "ablations"))
    twice = sorted(name for name in set(variants) & set(rows) if (variants[name] or {}) != (rows[name] or {}))
    if twice:
        raise ConfigError(f"{file}: {twice} are a variant and another ablation row; rename one of the two")
    return {**variants, **rows}


def split_name(name: str) -> tuple[str, str]:
    """``hhcl-paper`` -> (``hhcl``, ``paper``); ``hhcl`` -> its default variant, the first in its config.yaml.

    An ablation row is named like a variant. Raises ConfigError naming what is known.
    """
    method, _, variant = name.partition("-")
    known = variants(method)
    extra = list(method_config(method).get("ablations") or {})
    if variant and variant not in known + extra:
        near = difflib.get_close_matches(variant, known + extra, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"variants: {known}; ablations: {extra}"
        raise ConfigError(f"{method} has no variant '{variant}'; {hint}")
    return method, variant or known[0]


def ablation_rows(method: str, asked: Sequence[str] | None) -> dict[str, Mapping[str, Any]]:
    """Row name -> what it changes, the full method first.

    Raises ConfigError when the method lists no ablations, or not the ones asked for.
    """
    known = method_config(method).get("ablations") or {}
    if not known:
        raise ConfigError(f"methods/{method}/config.yaml lists no `ablations`")
    unknown = sorted(set(asked or ()) - set(known))
    if unknown:
        raise ConfigError(f"{method} has no ablation rows {unknown}; known: {', '.join(known)}")
    return {FULL: {}, **{name: patch or {} for name, patch in known.items() if not asked or name in asked}}


def row_name(method: str, row: str) -> str:
    """The run of an ablation row, as `train --method` takes it."""
    return method if row == FULL else f"{method}-{row}"


def profile_settings(profile: str) -> dict[str, Any]:
    """``profiles/NAME.yaml``: ``train``, ``pretrain`` and ``references`` patches, and what pre-training starts from."""
    folder = ROOT / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if profile not in known:
        raise ConfigError(f"no profile is called '{profile}'; known: {', '.join(known)}")
    settings = read_yaml(folder / f"{profile}.yaml")
    check_profile(settings, f"profiles/{profile}.yaml")
    return settings


def check_profile(settings: Mapping[str, Any], file: str) -> None:
    """Raise ConfigError for a section that nothing would read: a patch's own keys are checked when it is applied."""
    backbones = settings.get("backbones") or {}
    sections = [settings, *(section or {} for section in backbones.values())]
    read = [
        ("keys", set(settings), {"start_from", *BACKBONE_SECTIONS, "backbones"}),
        ("backbones", set(backbones), set(BACKBONES)),
        *(("keys of a backbone", set(section), set(BACKBONE_SECTIONS)) for section in sections[1:]),
        *(("references", set(section.get("references") or {}), set(methods.available())) for section in sections),
    ]
    for what, found, known in read:
        if found - known:
            raise ConfigError(f"{file}: unknown {what} {sorted(found - known)}; known: {', '.join(sorted(known))}")


def resolve_run(
    name: str,
    dataset: str,
    params: Mapping[str, Any],
    stage: str = "train",
    assignments: Sequence[str] = (),
    backbone: str | None = None,
) -> Run:
    """Stack the layers: core defaults, method, dataset override, variant, profile, params.yaml, command line.

    Two layers fit a profile: the method's own ``profiles`` section, and the profile's ``backbones`` section.

    The profile's ``references`` (warm start, supervised bound), and then those of its section for the backbone, come
    above params.yaml's overrides, which are meant for the methods: ``overrides.schedule.epochs`` must not train the
    warm start.

    ``stage`` is ``train`` or ``pretrain`` and picks the profile's patch. Raises ConfigError naming layer and key.
    """
    method, variant = split_name(name)
    file = f"methods/{method}/config.yaml"
    written = method_config(method)
    own = {key: value for key, value in written.items() if key not in SECTIONS}
    override = (written.get("datasets") or {}).get(split_fold(dataset)[0]) or {}
    named = named_patches(written, file)
    profile = params.get("profile", "published")
    shared, chosen = f"profiles/{profile}.yaml", profile_settings(profile)
    fitted = (chosen.get("backbones") or {}).get(backbone) or {}
    patches = [
        Patch(file, own, paper=True),
        Patch(f"{file} (datasets.{dataset})", override, paper=True),
        Patch(f"{file} (variant {variant})", named.get(variant) or {}, paper=True),
        Patch(shared, chosen.get(stage) or {}, paper=False),
        Patch(f"{file} (profiles.{profile})", (written.get("profiles") or {}).get(profile) or {}, paper=False),
    ]
    if backbone:
        patches.append(Patch("--backbone", {"backbone": {"name": backbone}}, paper=False))
        patches.append(Patch(f"{shared} (backbones.{backbone})", fitted.get(stage) or {}, paper=False))
    patches.append(Patch("params.yaml (overrides)", params.get("overrides") or {}, paper=False))
    if stage == "train":  # above the overrides: what frames the methods keeps its own schedule and rate
        for place, section in (("", chosen), (f"backbones.{backbone}.", fitted)):
            reference = (section.get("references") or {}).get(method) or {}
            patches.append(Patch(f"{shared} ({place}references.{method})", reference, paper=False))
    patches.append(Patch("--set", parse_assignments(assignments), paper=False))
    config = resolve(patches, methods.load(method).Settings)
    return Run(name, method, variant, config.backbone.name, profile, dataset, config)


def code_hash(method: str) -> str:
    """Hash of the code that decides a run's numbers: the core's and the method's."""
    return source_hash([ROOT / "core", *sorted(methods.folder(method).glob("*.py"))])
