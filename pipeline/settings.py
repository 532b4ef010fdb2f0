"""From a run's name to its resolved configuration, its backbone and the hash of its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import methods
from core.checkpoint import source_hash
from core.config import Config, ConfigError, digest, resolve
from core.names import unknown
from evaluation.protocol import Protocol
from pipeline.layers import Named, leaves, method_config, named_patches, profile_settings, stack, variants, winners
from pipeline.params import ROOT, Params

FULL = "full"  # the ablation row that changes nothing
# Code that decides a run's numbers beside its method's, and a result's beside its run's.
TRAINS = ("core", "pipeline/assemble.py")
SCORES = ("evaluation", "pipeline/scoring.py")


@dataclass(frozen=True)
class Run:
    """One cell's settings. ``name`` is METHOD or METHOD-VARIANT, as in params.yaml and stage names.

    ``finetuned_by``: where the run trains from what its method has pre-trained, the method that does; ``config`` is of
    that one then.
    """

    name: str
    method: str
    variant: str
    backbone: str
    profile: str
    dataset: str
    config: Config
    finetuned_by: str | None = None

    @property
    def trains(self) -> str:
        """The method whose code trains: the run's own, or the one that fine-tunes what its own has pre-trained."""
        return self.finetuned_by or self.method

    @property
    def title(self) -> str:
        """As printed: method:variant@backbone."""
        return f"{self.method}:{self.variant}@{self.backbone}"

    def record(self) -> dict[str, Any]:
        """Plain dict for results, with the configuration's hash."""
        return {**asdict(self), "config_hash": self.config.digest()}


def split_name(name: str) -> tuple[str, str]:
    """``hhcl-paper`` -> (``hhcl``, ``paper``); ``hhcl`` -> its default variant, the first in its config.yaml.

    An ablation row is named like a variant. Raises ConfigError naming what is known.
    """
    method, _, variant = name.partition("-")
    known = [*variants(method), *(method_config(method).get("ablations") or {})]
    if variant and variant not in known:
        raise ConfigError(f"{method}: {unknown('variant or ablation row', variant, known)}")
    return method, variant or known[0]


def resolve_run(
    name: str,
    dataset: str,
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    stage: str = "train",
    assignments: Sequence[str] = (),
    backbone: str | None = None,
    pretrains: bool = False,
) -> Run:
    """The run's configuration from its layers (``pipeline.layers``); raises ConfigError naming layer and key.

    ``stage`` is ``train`` or ``pretrain`` and picks the profile's patch. ``backbone`` None leaves the method its own. A
    method that pre-trains has two configurations: its own, if ``pretrains``, and that of the fine-tuning, whose network
    is the one that was pre-trained.
    """
    method, variant = split_name(name)
    follower = None if pretrains else finetuning(method)
    if follower and backbone is None:
        backbone = dict(leaves(method_config(method))).get("backbone.name")
    tuned, of = split_name(follower) if follower else (method, variant)
    named = Named(tuned, of, dataset, profile, stage, backbone)
    config = resolve(stack(named, overrides or {}, assignments), methods.load(tuned).Settings)
    return Run(name, method, variant, config.backbone.name, profile, dataset, config, tuned if follower else None)


def finetuning(method: str) -> str | None:
    """The run, METHOD or METHOD-VARIANT, that fine-tunes what a method pre-trains; None for one that pre-trains not."""
    named = method_config(method).get("finetune")
    return None if named is None else str(named)


def explain_run(
    name: str, dataset: str, params: Params, stage: str, assignments: Sequence[str], backbone: str | None
) -> dict[str, tuple[Any, str]]:
    """Every key of the run's configuration with its value and the layer that set it."""
    method, variant = split_name(finetuning(split_name(name)[0]) or name)
    patches = stack(Named(method, variant, dataset, params.profile, stage, backbone), params.overrides, assignments)
    return winners(patches, resolve(patches, methods.load(method).Settings))


def choose_backbone(name: str, params: Params, asked: str | None = None) -> str | None:
    """The backbone of a run: the one asked for, its variant's, the profile's choice, or that of its kind.

    A profile with ``own_backbone`` leaves every method its own (None). A run's kind is the one under which params.yaml
    lists it, or its method, or else the kind whose backbone is of the same family (transformer or not) as its method's.
    """
    if asked:
        return asked
    method, variant = split_name(name)
    written = method_config(method)
    patch = dict(leaves(named_patches(written, f"methods/{method}/config.yaml").get(variant) or {}))
    if "backbone.name" in patch:
        return str(patch["backbone.name"])
    if profile_settings(params.profile).get("own_backbone"):
        return None
    by_run = [kind for kind, listed in params.listed.items() if name in listed]
    by_method = [k for k, listed in params.listed.items() if any(run.partition("-")[0] == method for run in listed)]
    own = dict(leaves(written)).get("backbone.name", Config(None).backbone.name)
    alike = [kind for kind, backbone in params.backbones.items() if is_transformer(backbone) == is_transformer(own)]
    return params.backbones[(by_run or by_method or alike or list(params.backbones))[0]]


def run_backbone(name: str, dataset: str, params: Params, asked: str | None = None) -> str:
    """The name of the backbone that ``choose_backbone`` leads to."""
    chosen = choose_backbone(name, params, asked)
    return chosen or resolve_run(name, dataset, params.profile, params.overrides).backbone


def is_transformer(backbone: str) -> bool:
    """Whether a backbone's name is a vision transformer's."""
    return backbone.startswith("vit")


def ablation_rows(method: str, asked: Sequence[str] | None) -> dict[str, Mapping[str, Any]]:
    """Row name -> what it changes, the full method first.

    Raises ConfigError when the method lists no ablations, or not the ones asked for.
    """
    known = method_config(method).get("ablations") or {}
    if not known:
        raise ConfigError(f"methods/{method}/config.yaml lists no `ablations`")
    for row in asked or ():
        if row not in known:
            raise ConfigError(f"{method}: {unknown('ablation row', row, known)}")
    return {FULL: {}, **{name: patch or {} for name, patch in known.items() if not asked or name in asked}}


def row_name(method: str, row: str) -> str:
    """The run of an ablation row, as `train --method` takes it."""
    return method if row == FULL else f"{method}-{row}"


def code_hash(method: str, root: Path = ROOT) -> str:
    """Hash of the code that decides a run's numbers: the core's, the method's, and what assembles a run."""
    return source_hash([*(root / place for place in TRAINS), *sorted((root / "methods" / method).glob("*.py"))])


def scoring_hash(protocol: Protocol, root: Path = ROOT) -> str:
    """Hash of what decides a result's numbers beside its run: the evaluation's code and its protocol's rules."""
    return digest({"code": source_hash([root / place for place in SCORES]), "protocol": protocol.rules()})
