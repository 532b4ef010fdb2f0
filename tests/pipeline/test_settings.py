"""The order of the layers that a run's settings are stacked from."""

from __future__ import annotations

from typing import Any

import pytest

from core.config import ConfigError
from pipeline.settings import check_profile, resolve_run

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


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"trian": {}}, "trian"),
        ({"references": {"supervisd": {}}}, "supervisd"),
        ({"backbones": {"vit_tiny6_isc": {}}}, "vit_tiny6_isc"),
        ({"backbones": {"vit_tiny6_ics": {"trian": {}}}}, "trian"),
        ({"backbones": {"vit_tiny6_ics": {"references": {"supervisd": {}}}}}, "supervisd"),
    ],
)
def test_a_section_of_a_profile_that_nothing_reads_is_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"some.yaml.*{told}.*known"):
        check_profile(section, "some.yaml")


def test_no_memory_sees_an_erased_view_in_the_controlled_profile() -> None:
    for name, backbone in [("spcl", "resnet18_half"), ("pisl", "resnet18_half"), ("vitc_ureid", "vit_tiny6_ics")]:
        assert resolved(name, backbone).augment.erase_probability == 0
