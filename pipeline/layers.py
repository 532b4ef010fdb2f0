"""The layers that decide a run's settings, low to high, and which of them won for each key.

core defaults, methods/NAME/config.yaml, its dataset override, its variant or ablation row, the profile, the method's
own section for the profile, --backbone, the profile's section for the backbone, params.yaml's overrides, the profile's
references (warm start, supervised bound), --set. A reference stands above params.yaml's overrides, which are meant for
the methods: ``overrides.schedule.epochs`` must not train the warm start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import methods
from core.backbones.net import BACKBONES
from core.config import Config, ConfigError, Patch, parse_assignments
from core.names import unknown
from core.validation import read_mapping
from datasets import split_number, split_pair
from pipeline.params import ROOT

SECTIONS = ("datasets", "variants", "ablations", "profiles", "finetune")
BACKBONE_SECTIONS = ("train", "pretrain", "references")
PROFILE_KEYS = ("notices", "start_from", "own_backbone", *BACKBONE_SECTIONS, "backbones")


class HiddenSetting(ConfigError):
    """What makes a variant or an ablation row is set otherwise by a higher layer."""


class Named(NamedTuple):
    """What a run is called and under which circumstances it runs; ``variant`` is a variant or an ablation row."""

    method: str
    variant: str
    dataset: str
    profile: str
    stage: str
    backbone: str | None


def method_config(method: str) -> dict[str, Any]:
    """``methods/NAME/config.yaml``."""
    return read_mapping(methods.folder(method) / "config.yaml")


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


def profiles() -> list[str]:
    """Names of all profiles."""
    return sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def profile_settings(profile: str) -> dict[str, Any]:
    """``profiles/NAME.yaml``: ``train``, ``pretrain`` and ``references`` patches, and what pre-training starts from."""
    if profile not in profiles():
        raise ConfigError(unknown("profile", profile, profiles()))
    settings = read_mapping(ROOT / "profiles" / f"{profile}.yaml")
    check_profile(settings, f"profiles/{profile}.yaml")
    return settings


def profile_notices(profile: str) -> list[str]:
    """What every table of numbers of the profile must say; none for a profile that is no longer there."""
    return list(profile_settings(profile).get("notices") or []) if profile in profiles() else []


def check_profile(settings: Mapping[str, Any], file: str) -> None:
    """Raise ConfigError for a section that nothing would read: a patch's own keys are checked when it is applied."""
    backbones = settings.get("backbones") or {}
    sections = [settings, *(section or {} for section in backbones.values())]
    read = [
        ("key", settings, PROFILE_KEYS),
        ("backbone", backbones, BACKBONES),
        *(("key of a backbone", section, BACKBONE_SECTIONS) for section in sections[1:]),
        *(("method", section.get("references") or {}, methods.available()) for section in sections),
    ]
    for what, found, known in read:
        for name in found:
            if (name.partition("-")[0] if what == "method" else name) not in known:
                raise ConfigError(f"{file}: {unknown(what, name, known)}")


def stack(run: Named, overrides: Mapping[str, Any], assignments: Sequence[str]) -> list[Patch]:
    """The run's layers, low to high.

    Raises ConfigError for a variant or ablation row one of whose keys a higher layer sets otherwise: the run would be
    a copy of another one under this one's name.
    """
    file, shared = f"methods/{run.method}/config.yaml", f"profiles/{run.profile}.yaml"
    written, chosen = method_config(run.method), profile_settings(run.profile)
    own = {key: value for key, value in written.items() if key not in SECTIONS}
    override = (written.get("datasets") or {}).get(split_number(split_pair(run.dataset)[0])[0]) or {}
    named = named_patches(written, file).get(run.variant) or {}
    fitted = (chosen.get("backbones") or {}).get(run.backbone) or {}
    asked = Patch(f"{file} (variant {run.variant})", named, paper=True)
    below = [Patch(file, own, paper=True), Patch(f"{file} (datasets.{run.dataset})", override, paper=True), asked]
    # What a variant or row names is meant also where the method's own section fits the method to a small profile.
    fit = without((written.get("profiles") or {}).get(run.profile) or {}, dict(leaves(named)))
    above = [
        Patch(shared, chosen.get(run.stage) or {}, paper=False),
        Patch(f"{file} (profiles.{run.profile})", fit, paper=False),
    ]
    if run.backbone:
        above.append(Patch("--backbone", {"backbone": {"name": run.backbone}}, paper=False))
        above.append(Patch(f"{shared} (backbones.{run.backbone})", fitted.get(run.stage) or {}, paper=False))
    above.append(Patch("params.yaml (overrides)", overrides, paper=False))
    if run.stage == "train":
        for place, section in (("", chosen), (f"backbones.{run.backbone}.", fitted)):
            for name in (run.method, f"{run.method}-{run.variant}"):
                reference = (section.get("references") or {}).get(name) or {}
                above.append(Patch(f"{shared} ({place}references.{name})", reference, paper=False))
    above.append(Patch("--set", parse_assignments(assignments), paper=False))
    if run.variant != variants(run.method)[0]:
        refuse_hidden(run, asked, above)
    return [*below, *above]


def refuse_hidden(run: Named, asked: Patch, above: Sequence[Patch]) -> None:
    """Raise ConfigError when a layer above ``asked`` sets one of its keys to another value, but for --set."""
    for key, value in leaves(asked.values):
        setters = [(patch.source, dict(leaves(patch.values))) for patch in reversed(above)]
        winner = next(((source, found[key]) for source, found in setters if key in found), None)
        if winner and winner[1] != value and winner[0] != "--set":
            raise HiddenSetting(
                f"{run.method}-{run.variant} sets {key} to {value}, but {winner[0]} sets it to {winner[1]}: it would "
                f"not be what it is called; choose another profile, or change {winner[0]}"
            )


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"schedule": {"step": 5}}`` -> ``("schedule.step", 5)``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without(values: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``values`` less the leaves named in ``keys``."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = without(value, keys, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in keys:
            kept[key] = value
    return kept


def winners(patches: Sequence[Patch], config: Config) -> dict[str, tuple[Any, str]]:
    """Key -> its resolved value and the layer that set it; what no layer sets is a default of the code."""
    found: dict[str, tuple[Any, str]] = {}
    setters = [(patch.source, dict(leaves(patch.values))) for patch in reversed(patches)]
    for key, value in leaves(asdict(config)):
        source, written = next(((s, keys[key]) for s, keys in setters if key in keys), ("default", value))
        several = isinstance(written, list | tuple) and list(written) != list(value)
        scaled = several or (isinstance(written, int | float) and written != value)
        found[key] = (value, f"{source}, scaled from {written} with the run's length" if scaled else source)
    return found
