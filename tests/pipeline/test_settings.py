"""The order of the layers that a run's settings are stacked from."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.settings import resolve_run

LOUD = {"profile": "controlled", "overrides": {"optimiser": {"lr": 0.5}, "schedule": {"epochs": 3}}}


def resolved(name: str, backbone: str = "resnet18_half", *assignments: str) -> Any:
    return resolve_run(name, "rendered", LOUD, assignments=assignments, backbone=backbone).config


def test_overrides_are_above_the_profile_and_its_backbone() -> None:
    for backbone in ("resnet18_half", "vit_tiny6_ics"):
        assert resolved("cluster_contrast", backbone).optimiser.lr == 0.5


@pytest.mark.parametrize(("backbone", "rate"), [("resnet18_half", 1e-3), ("vit_tiny6_ics", 3e-4)])
def test_overrides_change_neither_the_bounds_rate_nor_the_warm_start(backbone: str, rate: float) -> None:
    assert resolved("supervised", backbone).optimiser.lr == rate
    assert resolved("supervised", backbone).schedule.epochs == 3
    assert resolved("warm_start", backbone).schedule.epochs == 0


def test_the_command_line_is_above_everything() -> None:
    assert resolved("supervised", "vit_tiny6_ics", "optimiser.lr=0.25").optimiser.lr == 0.25
