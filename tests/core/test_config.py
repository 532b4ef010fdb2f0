"""Configuration layers: precedence, scaling with the number of epochs, and errors that say what to do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import pytest

from core.config import Config, ConfigError, Patch, parse_assignments, per_epochs, resolve
from core.engine import Step


@dataclass(frozen=True)
class Settings:
    temperature: float = 0.05
    parts_from: float = per_epochs(5)
    eps: tuple[float, ...] = (0.4,)


def paper(**values: object) -> Patch:
    return Patch("method", values, paper=True)


def above(source: str = "profile", **values: object) -> Patch:
    return Patch(source, values, paper=False)


def test_defaults_are_the_family_s_paper_values() -> None:
    config = resolve([], Settings)
    assert (config.input.height, config.input.width) == (256, 128)
    assert (config.sampler.identities, config.sampler.instances) == (16, 16)
    assert (config.optimiser.name, config.optimiser.lr, config.optimiser.weight_decay) == ("adam", 3.5e-4, 5e-4)
    assert (config.clustering.k1, config.clustering.k2, config.clustering.min_samples) == (30, 6, 4)


def test_a_later_layer_wins_key_by_key() -> None:
    config = resolve([paper(clustering={"eps": 0.45, "k1": 20}), above(clustering={"eps": 0.5})], Settings)
    assert (config.clustering.eps, config.clustering.k1) == (0.5, 20)


def test_an_unknown_key_names_the_layer_and_the_nearest_known_key() -> None:
    with pytest.raises(ConfigError, match=r"--set: unknown key 'clustering\.esp'; did you mean 'clustering\.eps'"):
        resolve([above("--set", clustering={"esp": 0.5})], Settings)
    with pytest.raises(ConfigError, match=r"unknown key 'settings\.temprature'; did you mean 'settings\.temperature'"):
        resolve([paper(settings={"temprature": 0.1})], Settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": {"epochs": "ten"}}, r"'schedule\.epochs' must be int"),
        ({"schedule": {"epochs": True}}, r"'schedule\.epochs' must be int"),
        ({"clustering": 0.5}, r"'clustering' must be a section"),
        ({"precision": "fp8"}, r"'precision' must be one of fp32, fp64, bf16, fp16"),
        ({"backbone": {"bn_groups": 0}}, r"'backbone\.bn_groups' must be 1 to"),
        ({"clustering": {"eps": 1.0}}, r"'clustering\.eps' is a Jaccard distance in \[0, 1\)"),
        ({"settings": {"eps": 0.5}}, r"'settings\.eps' must be a list"),
        ({"schedule": {"milestones": [9, 8]}}, r"'schedule\.milestones' are epochs .* in rising order"),
        ({"schedule": {"milestones": [9], "cosine": True}}, r"both say how the rate falls"),
        ({"schedule": {"warmup": 50, "cosine": True}}, r"'schedule\.warmup' takes 50 of 50 epochs"),
        ({"optimiser": {"clip": 0}}, r"'optimiser\.clip' is the largest norm"),
    ],
)
def test_an_impossible_value_names_its_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([above("params.yaml", **values)], Settings)


def test_a_network_is_given_the_options_of_its_kind_alone() -> None:
    given = {"last_stride": 2, "drop_path": 0.1}
    cnn, vit = (resolve([paper(backbone={"name": name, **given})], Settings) for name in ("resnet50", "vit_small"))
    assert (cnn.backbone.options, vit.backbone.options) == ({"last_stride": 2}, {"drop_path": 0.1})
    assert resolve([], Settings).backbone.options == {}


def test_an_integer_is_taken_where_a_number_is_wanted() -> None:
    decay = resolve([paper(optimiser={"weight_decay": 0})], Settings).optimiser.weight_decay
    assert decay == 0
    assert isinstance(decay, float)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "+3e-4"])
def test_a_rate_may_be_written_as_yaml_does_not_know_it(text: str) -> None:
    assert resolve([above("--set", **parse_assignments([f"optimiser.lr={text}"]))], Settings).optimiser.lr == 3e-4
    with pytest.raises(ConfigError, match=r"'optimiser\.lr' must be float, not 'fast'"):
        resolve([above("--set", **parse_assignments(["optimiser.lr=fast"]))], Settings)


def test_epoch_counted_settings_keep_their_share_of_a_shorter_run() -> None:
    published = paper(schedule={"epochs": 50, "step": 20})
    config = resolve([published, above(schedule={"epochs": 10})], Settings)
    assert config.schedule.step == 4
    assert config.settings.parts_from == 1
    assert config.settings.temperature == 0.05


def test_milestones_keep_their_shares_and_a_profile_can_take_them_back() -> None:
    published = paper(schedule={"epochs": 40, "milestones": [25, 35]})
    assert resolve([published, above(schedule={"epochs": 20})], Settings).schedule.milestones == (12.5, 17.5)
    assert resolve([published, above(schedule={"epochs": 20, "milestones": []})], Settings).schedule.milestones == ()
    named = above(schedule={"epochs": 20, "milestones": [15]})
    assert resolve([published, named], Settings).schedule.milestones == (15,)


def test_three_of_fifty_epochs_become_nine_of_a_hundred_and_fifty_steps() -> None:
    published = paper(schedule={"epochs": 50}, settings={"parts_from": 3})
    config = resolve([published, above(schedule={"epochs": 10, "iterations": 15})], Settings)
    assert config.settings.parts_from == 0.6
    places = [Step(epoch, number, 15).place for epoch in range(10) for number in range(15)]
    assert [place < config.settings.parts_from for place in places] == [True] * 9 + [False] * 141


@pytest.mark.parametrize("epochs", [2, 7, 10, 50, 60, 120])
def test_an_epoch_counted_setting_falls_on_the_step_that_has_its_share_exactly(epochs: int) -> None:
    """Where no step starts at the very share, the next one does: compared in whole numbers, without rounding."""
    for counted, steps in itertools.product((1, 3, 5, 10, 20), (3, 7, 15, 400)):
        layers = [paper(schedule={"epochs": 50}, settings={"parts_from": counted}), above(schedule={"epochs": epochs})]
        start = resolve(layers, Settings).settings.parts_from
        for position in range(epochs * steps):
            place = Step(*divmod(position, steps), steps).place
            assert (place < start) == (position * 50 < counted * epochs * steps)


def test_an_epoch_counted_setting_named_above_the_paper_is_taken_as_it_is() -> None:
    profile = above(schedule={"epochs": 10, "step": 7}, settings={"parts_from": 3})
    config = resolve([paper(schedule={"epochs": 50, "step": 20}), profile], Settings)
    assert (config.schedule.step, config.settings.parts_from) == (7, 3)


def test_a_count_of_epochs_without_a_fraction_is_written_and_hashed_as_a_whole_number() -> None:
    whole, written = (resolve([paper(schedule={"step": step})], Settings) for step in (20, 20.0))
    assert whole.digest() == written.digest()
    assert repr(whole.as_dict()["schedule"]["step"]) == "20"


def test_the_hash_changes_with_every_value_and_with_nothing_else() -> None:
    first, same = resolve([paper(precision="fp32")], Settings), resolve([], Settings)
    other = resolve([paper(settings={"temperature": 0.06})], Settings)
    assert first.digest() == same.digest() != other.digest()


def test_an_exact_search_leaves_record_and_hash_as_they_were_before_there_was_another() -> None:
    exact, named = resolve([], Settings), resolve([paper(clustering={"search": "exact"})], Settings)
    assert list(exact.as_dict()["clustering"]) == ["k1", "k2", "eps", "min_samples"]
    assert exact.digest() == named.digest()
    approximate = resolve([paper(clustering={"search": "ivf"})], Settings)
    assert approximate.as_dict()["clustering"]["search"] == "ivf"
    assert approximate.digest() != exact.digest()
    again = resolve([Patch("train.json", approximate.as_dict(), paper=True)], Settings)
    assert again == approximate


def test_assignments_read_yaml_values_into_sections() -> None:
    assert parse_assignments(["clustering.eps=0.5", "clustering.k1=20", "schedule.iterations=null"]) == {
        "clustering": {"eps": 0.5, "k1": 20},
        "schedule": {"iterations": None},
    }
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_assignments(["clustering.eps"])


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config = resolve([paper(settings={"eps": [0.4, 0.5]})], Settings)
    again = resolve([Patch("train.json", config.as_dict(), paper=True)], Settings)
    assert isinstance(again, Config)
    assert again == config


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("schedule.iterations=0", "'schedule.iterations' must be 1 to 1e"),
        ("schedule.epochs=-1", "'schedule.epochs' must be 0 to"),
        ("schedule.step=-1", "'schedule.step' must be 0 to"),
        ("schedule.warmup=-2", "'schedule.warmup' must be 0 to"),
        ("schedule.gamma=0", r"'schedule.gamma' .* in \(0, 1\], not 0"),
        ("schedule.gamma=1.5", r"'schedule.gamma' .* in \(0, 1\], not 1.5"),
        ("schedule.warmup_factor=2", "'schedule.warmup_factor' must be 0 to 1"),
        ("sampler.identities=100000", "'sampler.identities' must be 1 to 16384"),
        ("sampler.identities=10000", "10000 x 16 is a batch of 160000 images"),
        ("input.height=10000000", "'input.height' must be 1 to 4096"),
        ("backbone.bn_groups=0", "'backbone.bn_groups' must be 1 to"),
        ("clustering.k1=0", "'clustering.k1' must be 1 to"),
        ("clustering.search=fast", "'clustering.search' must be one of exact, ivf, hnsw, not 'fast'"),
        ("clustering.eps=1", r"a Jaccard distance in \[0, 1\)"),
        ("optimiser.lr=0", "'optimiser.lr' must be above 0"),
        ("optimiser.lr=.inf", "'optimiser.lr' must be a finite number"),
        ("optimiser.weight_decay=-1", "'optimiser.weight_decay' must be 0 to"),
        ("optimiser.weight_decay=.nan", "'optimiser.weight_decay' must be a finite number"),
        ("augment.erase_fill=[0, .nan, 0]", r"'augment.erase_fill\[1\]' must be a finite number"),
        ("extraction_batch=0", "'extraction_batch' must be 1 to"),
        ("precision=fp8", "'precision' must be one of fp32"),
        ("settings.temperature=0", "'settings.temperature' is a temperature and must be above 0"),
        ("settings.temperature=-.inf", "'settings.temperature' must be a finite number"),
    ],
)
def test_an_impossible_value_is_refused_at_once(assignment: str, told: str) -> None:
    @dataclass(frozen=True)
    class Warm:
        temperature: float = 0.05

    with pytest.raises(ConfigError, match=told):
        resolve([Patch("--set", parse_assignments([assignment]), paper=False)], Warm)


def test_a_settings_field_may_be_one_of_several_words_or_a_mapping() -> None:
    @dataclass(frozen=True)
    class Worded:
        rule: Literal["mean", "hardest"] = "mean"
        weights: dict[str, float] = field(default_factory=dict)

    def read(*assignments: str) -> Worded:
        return resolve([Patch("--set", parse_assignments(assignments), paper=False)], Worded).settings

    assert read("settings.rule=hardest", "settings.weights={global: 1}") == Worded("hardest", {"global": 1.0})
    with pytest.raises(ConfigError, match=r"'settings\.rule' must be one of mean, hardest, not 'hard'"):
        read("settings.rule=hard")
    with pytest.raises(ConfigError, match=r"'settings\.weights\.global' must be float, not 'much'"):
        read("settings.weights={global: much}")
    with pytest.raises(ConfigError, match=r"cannot be read as a YAML value"):
        read("settings.weights={global")


def test_a_field_that_is_a_number_or_a_range_reads_both() -> None:
    def aspect(text: str) -> object:
        assigned = parse_assignments([f"augment.erase_aspect={text}"])
        return resolve([Patch("--set", assigned, paper=False)], Settings).augment.erase_aspect

    assert aspect("0.4") == 0.4
    assert aspect("[0.3, 3]") == (0.3, 3.0)
    with pytest.raises(ConfigError, match=r"'augment\.erase_aspect' must hold 2 values"):
        aspect("[0.3]")
