"""Where training starts: a warm start on labelled source images, or weights that somebody brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import methods
from core.manifest import Manifest, read_manifest
from pipeline import pretrain
from pipeline.settings import profile_settings, resolve_run, variants
from tests.conftest import TinyWorld


@pytest.fixture
def sourceless(world: TinyWorld, tmp_path: Path) -> list[str]:
    """Arguments for a dataset that has no labelled source split, as no real one has."""
    manifest = read_manifest(world.data)
    table = manifest.table[manifest.table["split"] != "source"]
    Manifest(table, manifest.root.resolve(), "real", "print").write(tmp_path / "data")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "initial"), "--cache", str(tmp_path / "cache")]
    return ["--dataset", "market1501", "--profile", "tiny", "--device", "cpu", *where]


def test_a_warm_start_says_what_it_was_trained_on(world: TinyWorld) -> None:
    record = json.loads((world.initial / "initial.json").read_text())
    assert record["source"] == "rendered source, labelled"
    weights = torch.load(world.initial / "weights.pt", weights_only=True)
    assert "backbone.conv1.weight" in weights
    assert not any("class" in name for name in weights), "the source's classifier is no initial weight"


def test_without_source_and_without_weights_there_is_nothing_to_start_from(sourceless: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no labelled source split.*--start-from imagenet or a checkpoint file"):
        pretrain.main(sourceless)


@pytest.mark.parametrize("method", methods.available())
def test_the_published_start_of_every_variant_needs_no_file_that_nobody_can_fetch(method: str) -> None:
    for variant in variants(method):
        run = resolve_run(f"{method}-{variant}", "market1501", "published")
        entry, path = pretrain.find_start(profile_settings("published")["start_from"], run.backbone)
        assert path is None
        assert entry.url is not None, f"{run.title} starts from {entry.source}"


def test_a_user_s_checkpoint_becomes_the_initial_weights(
    world: TinyWorld, sourceless: list[str], tmp_path: Path
) -> None:
    ours = torch.load(world.initial / "weights.pt", weights_only=True)
    theirs = {f"module.base.{k.removeprefix('backbone.')}": v for k, v in ours.items() if k.startswith("backbone.")}
    torch.save({"state_dict": {**theirs, "module.fc.weight": torch.zeros(3, 3)}}, tmp_path / "theirs.pth")
    assert pretrain.main([*sourceless, "--start-from", str(tmp_path / "theirs.pth")]) == 0
    loaded = torch.load(tmp_path / "initial/weights.pt", weights_only=True)
    assert all(torch.equal(loaded[k], ours[k]) for k in ours if k.startswith("backbone."))
    assert "theirs.pth" in json.loads((tmp_path / "initial/initial.json").read_text())["source"]


def test_a_missing_checkpoint_names_the_file(sourceless: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth does not exist"):
        pretrain.main([*sourceless, "--start-from", str(tmp_path / "nowhere.pth")])
