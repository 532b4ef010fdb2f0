"""params.yaml: what it may say, and what an error of it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import methods
from core.rng import Streams
from core.validation import RecordError
from pipeline.assemble import Sizes, build_method
from pipeline.jobs import ROOT, jobs
from pipeline.params import read_params
from pipeline.settings import resolve_run, run_backbone

GOOD: dict[str, Any] = {
    "profile": "controlled",
    "datasets": ["rendered"],
    "backbones": {"cnn": "resnet18_half", "vit": "vit_tiny6_ics"},
    "runs": {"cnn": ["hhcl-paper", "spcl"], "vit": ["vitc_ureid"]},
    "seeds": [0],
    "threads": 2,
    "launch": "python",
    "data_root": "nowhere",
    "rendered": {"size": "small"},
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"sedes": [0]}, r"unknown key 'sedes'; did you mean 'seeds'"),
    ({"datasets": "rendered"}, r"'datasets' must be a valid (tuple|array)"),
    ({"datasets": []}, r"'datasets': list at least one dataset"),
    ({"datasets": ["a b"]}, r"'a b' is no name of a dataset"),
    ({"datasets": ["../evil"]}, r"'\.\./evil' is no name of a dataset"),
    ({"datasets": ["rendered", "rendered"]}, r"rendered is listed twice"),
    ({"seeds": [0, 0]}, r"0 is listed twice"),
    ({"seeds": []}, r"'seeds': list one seed or more"),
    ({"seeds": [-1]}, r"'seeds': list one seed or more"),
    ({"seeds": 0}, r"'seeds' must be a valid (tuple|array)"),
    ({"seeds": ["0"]}, r"'seeds\[0\]' must be a valid integer"),
    ({"threads": 0}, r"'threads' must be greater than or equal to 1"),
    ({"threads": 100_000}, r"'threads' must be less than or equal to 1024"),
    ({"threads": 2.5}, r"'threads' must be a valid integer"),
    ({"runs": ["hhcl"]}, r"'runs' must be an object|'runs' must be a valid dict"),
    ({"runs": {"transformer": ["hhcl"]}}, r"unknown kind 'transformer'; known: cnn, vit"),
    ({"runs": {"cnn": ["hhcl"]}}, r"'runs\.vit' is missing; list its runs, or `vit: \[\]` for none"),
    ({"runs": {"cnn": ["pislo"]}}, r"unknown method 'pislo'; did you mean 'pisl'"),
    ({"runs": {"cnn": ["hhcl; rm -r data"]}}, r"is no run: METHOD or METHOD-VARIANT"),
    ({"backbones": {"cnn": "resnet51"}}, r"unknown backbone 'resnet51'; did you mean 'resnet50'"),
    ({"only": {"rendred": ["spcl"]}}, r"unknown entry of `datasets` 'rendred'; did you mean 'rendered'"),
    ({"only": {"rendered": ["hhcl"]}}, r"unknown listed run 'hhcl'; known: hhcl-paper, spcl"),
    ({"translators": ["rendered-7"]}, r"'translators': rendered-7 is not among `datasets`"),
    ({"rendered": {}}, r"'rendered\.size' is missing"),
    ({"rendered": {"size": "small", "siez": 0}}, r"unknown key 'rendered\.siez'; did you mean 'rendered\.size'"),
]


def written(folder: Path, text: str) -> Path:
    file = folder / "params.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(("change", "told"), BAD, ids=[str(change) for change, _ in BAD])
def test_a_wrong_entry_is_an_error_that_names_file_and_key(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    file = written(tmp_path, yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(RecordError, match=rf"params\.yaml: .*{told}"):
        read_params(file)


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    rest = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(RecordError, match=f"'{key}' is missing"):
        read_params(written(tmp_path, yaml.safe_dump(rest)))


def test_a_dataset_has_all_runs_or_only_its_own(tmp_path: Path) -> None:
    two = {"datasets": ["rendered", "market1501"], "only": {"market1501": ["spcl"]}}
    params = read_params(written(tmp_path, yaml.safe_dump({**GOOD, **two})))
    wanted = {dataset: [job.run for job in jobs(params) if job.dataset == dataset] for dataset in params.datasets}
    assert wanted == {"rendered": ["hhcl-paper", "spcl", "vitc_ureid"], "market1501": ["spcl"]}


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="'seeds' stands twice"):
        read_params(written(tmp_path, yaml.safe_dump(GOOD) + "seeds: [1]\n"))


def test_a_missing_file_says_in_which_folder_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match=f"params.yaml does not exist.*{tmp_path.name}"):
        read_params(Path("params.yaml"))


def test_the_suites_own_files_are_good() -> None:
    for file in sorted(ROOT.glob("params*.yaml")):
        assert read_params(file).seeds


TABLES = [read_params(ROOT / name) for name in ("params.yaml", "params.more.yaml", "params.adaptation.yaml")]
LISTED = {(kind, name): table for table in TABLES for kind in table.runs for name in table.listed[kind]}


@pytest.mark.parametrize(("kind", "name"), LISTED)
def test_every_row_of_the_tables_embeds_images_of_its_profile_s_size(kind: str, name: str) -> None:
    table = LISTED[kind, name]
    run = resolve_run(name, table.datasets[0], table.profile, table.overrides, backbone=table.backbones[kind])
    needs = methods.load(run.trains).needs(run.config)
    method = build_method(run, Sizes(20, 5 if needs.source else None), Streams(0), None).float().eval()
    size, two = run.config.input, torch.zeros(2, dtype=torch.long)
    feature = method.embed(torch.zeros(2, 3, size.height, size.width), two)["feature"]
    assert len(feature) == 2
    assert feature.isfinite().all()


@pytest.mark.parametrize(
    ("run", "profile", "backbone"),
    [
        ("hhcl-paper", "controlled", "resnet18_half"),  # listed
        ("vitc_ureid-cap", "controlled", "vit_tiny6_ics"),  # by its method
        ("sdft", "controlled", "vit_tiny6_ics"),  # by its method's family: it is listed nowhere here
        ("jcl", "controlled", "resnet18_half"),
        ("vitc_ureid-small", "controlled", "vit_small"),  # what the variant is about
        ("hhcl", "published", "resnet50"),  # each paper's own
        ("vitc_ureid", "published", "vit_base"),
        ("sdft", "published", "vit_small"),
    ],
)
def test_a_run_finds_its_backbone(run: str, profile: str, backbone: str, tmp_path: Path) -> None:
    params = read_params(written(tmp_path, yaml.safe_dump(GOOD)), {"profile": profile})
    assert run_backbone(run, "rendered", params) == backbone
    assert run_backbone(run, "rendered", params, asked="resnet50_ibn") == "resnet50_ibn" or run == "vitc_ureid-small"


def test_worlds_are_asked_for_by_one_number_and_stand_where_the_listed_ones_stood(tmp_path: Path) -> None:
    listed = {**GOOD, "datasets": ["market1501", "rendered-4", "rendered-7", "msmt17_v1"]}
    params = read_params(written(tmp_path, yaml.safe_dump(listed)))
    worlds = params.with_worlds(3).datasets
    assert worlds == ("market1501", "rendered-0", "rendered-1", "rendered-2", "msmt17_v1")
    with pytest.raises(RecordError, match="--worlds 0 needs"):
        params.with_worlds(0)
    with pytest.raises(RecordError, match="needs a world"):
        params.model_copy(update={"datasets": ("market1501",)}).with_worlds(2)
