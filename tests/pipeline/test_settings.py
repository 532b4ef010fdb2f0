"""The order of the layers that a run's settings are stacked from."""

from __future__ import annotations

from typing import Any

import pytest

import methods
from core.config import ConfigError, Patch, resolve
from pipeline.jobs import ROOT
from pipeline.layers import check_profile, method_config, named_patches
from pipeline.params import read_params
from pipeline.settings import explain_run, resolve_run

LOUD = {"optimiser": {"lr": 0.5}, "schedule": {"epochs": 3}}


def resolved(name: str, backbone: str = "resnet18_half", *assignments: str) -> Any:
    return resolve_run(name, "rendered", "controlled", LOUD, assignments=assignments, backbone=backbone).config


@pytest.mark.parametrize("method", methods.available())
def test_the_configuration_of_a_shortened_run_reads_back_from_its_file(method: str) -> None:
    """A setting counted in epochs becomes a fraction there, which an integer field would refuse."""
    for pretrains in (True, False):
        run = resolve_run(method, "rendered", "controlled", assignments=["schedule.epochs=7"], pretrains=pretrains)
        settings = methods.load(method if pretrains else run.trains).Settings
        assert resolve([Patch("train.json", run.config.as_dict(), paper=True)], settings) == run.config


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
        for pretrains in (True, False):
            run = resolve_run(f"{method}-{name}", "market1501", "published", pretrains=pretrains)
            assert run.variant == name


def test_the_released_selective_contrastive_has_its_camera_penalty_at_test() -> None:
    config = resolve_run("selective_contrastive-released", "market1501", "published").config
    assert (config.settings.memory_mode, config.settings.lambda_c_test) == ("released", 0.05)


def test_no_memory_sees_an_erased_view_in_the_controlled_profile() -> None:
    for name, backbone in [("spcl", "resnet18_half"), ("pisl", "resnet18_half"), ("vitc_ureid", "vit_tiny6_ics")]:
        assert resolved(name, backbone).augment.erase_probability == 0


@pytest.mark.parametrize(
    ("run", "backbone", "told"),
    [
        ("cluster_contrast-gem", "resnet18_half", r"backbone\.pooling to gem, but profiles/controlled\.yaml"),
        ("spcl-gem", "resnet18_half", r"backbone\.pooling to gem, but profiles/controlled\.yaml"),
        ("selective_contrastive-batch32", "resnet18_half", r"sampler\.identities to 32, but profiles/controlled\.yaml"),
        ("vitc_ureid-small", "vit_tiny6_ics", r"backbone\.name to vit_small, but --backbone"),
    ],
)
def test_a_variant_that_a_higher_layer_hides_is_no_silent_copy_of_the_headline(
    run: str, backbone: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_run(run, "rendered", "controlled", backbone=backbone)


def test_overrides_hide_no_variant_but_the_command_line_may() -> None:
    with pytest.raises(ConfigError, match=r"settings\.update to hardest, but params\.yaml"):
        resolve_run("cluster_contrast-hardest", "rendered", "controlled", {"settings": {"update": "mean"}})
    shown = resolve_run("cluster_contrast-gem", "rendered", "controlled", assignments=["backbone.pooling=gem"])
    assert shown.config.backbone.pooling == "gem"


def test_what_a_row_names_is_meant_also_under_the_methods_own_section_for_a_profile() -> None:
    assert method_config("selective_contrastive")["profiles"]["tiny"]["settings"]["stripes"] == 4
    run = resolve_run("selective_contrastive-instance_discrimination", "rendered", "tiny")
    assert run.config.settings.stripes == 0


def test_every_key_of_a_run_says_which_layer_decided_it() -> None:
    params = read_params(ROOT / "params.yaml", {"overrides": {"clustering": {"eps": 0.55}}})
    decided = explain_run("hhcl-paper", "rendered", params, "train", ["optimiser.lr=1e-3"], "resnet18_half")
    assert decided["clustering.eps"] == (0.55, "params.yaml (overrides)")
    assert decided["optimiser.lr"] == (0.001, "--set")
    assert decided["backbone.name"] == ("resnet18_half", "--backbone")
    assert decided["schedule.epochs"] == (10, "profiles/controlled.yaml")
    assert decided["precision"] == ("fp32", "default")
    assert decided["settings.hard_memory"] == ("slots", "methods/hhcl/config.yaml (variant paper)")
