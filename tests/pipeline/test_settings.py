"""The order of the layers that a run's settings are stacked from."""

from __future__ import annotations

from typing import Any

import pytest

import methods
from core.config import ConfigError, Patch, resolve
from pipeline.settings import check_profile, method_config, named_patches, resolve_run

LOUD = {"profile": "controlled", "overrides": {"optimiser": {"lr": 0.5}, "schedule": {"epochs": 3}}}


def resolved(name: str, backbone: str = "resnet18_half", *assignments: str) -> Any:
    return resolve_run(name, "rendered", LOUD, assignments=assignments, backbone=backbone).config


@pytest.mark.parametrize("method", methods.available())
def test_the_configuration_of_a_shortened_run_reads_back_from_its_file(method: str) -> None:
    """A setting counted in epochs becomes a fraction there, which an integer field would refuse."""
    config = resolve_run(method, "rendered", {"profile": "controlled"}, assignments=["schedule.epochs=7"]).config
    assert resolve([Patch("train.json", config.as_dict(), paper=True)], methods.load(method).Settings) == config


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


def test_a_name_that_is_a_variant_and_another_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename one of the two"):
        named_patches({"variants": {"released": {"a": 1}}, "ablations": {"released": {"a": 2}}}, "some.yaml")
    same = {"variants": {"default": None, "released": {"a": 1}}, "ablations": {"released": {"a": 1}, "none": {}}}
    assert named_patches(same, "some.yaml") == {"default": None, "released": {"a": 1}, "none": {}}


@pytest.mark.parametrize("method", methods.available())
def test_every_variant_and_row_of_a_method_resolves(method: str) -> None:
    written = method_config(method)
    for name in named_patches(written, method):
        assert resolve_run(f"{method}-{name}", "market1501", {"profile": "published"}).variant == name


def test_the_released_selective_contrastive_has_its_camera_penalty_at_test() -> None:
    config = resolve_run("selective_contrastive-released", "market1501", {"profile": "published"}).config
    assert (config.settings.memory_mode, config.settings.lambda_c_test) == ("released", 0.05)


def test_no_memory_sees_an_erased_view_in_the_controlled_profile() -> None:
    for name, backbone in [("spcl", "resnet18_half"), ("pisl", "resnet18_half"), ("vitc_ureid", "vit_tiny6_ics")]:
        assert resolved(name, backbone).augment.erase_probability == 0
