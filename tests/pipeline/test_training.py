"""The training contract: what a run writes, resumes to, and may not see."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import methods
from core.errors import UserError
from core.manifest import Manifest, read_manifest
from pipeline import evaluate, pretrain, train
from pipeline.jobs import ROOT
from pipeline.settings import finetuning, run_backbone, split_name, variants
from tests.conftest import PARAMS, TinyWorld

TRAINED = sorted(set(methods.available()) - {"warm_start"})
# Columns of history.csv that every method has; docs/how_to.md lists them.
COMMON = re.compile(
    r"epoch|lr|clusters|outliers|(source_)?images_seen|peak_\w+|seconds_(extract|label|jaccard|cluster|memories|train)"
)


PRETRAINED = [method for method in TRAINED if finetuning(method)]


def weights(folder: Path, epoch: int = 2) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights" / f"epoch_{epoch:03d}.pt", weights_only=True)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def run(world: TinyWorld, method: str, out: Path, *more: str) -> dict[str, object]:
    assert train.main(world.train_arguments(method, out, *more)) == 0
    return json.loads((out / "train.json").read_text())


def columns_of_readme(method: str) -> set[str]:
    """Columns of history.csv that a method's README says it adds."""
    section = (methods.folder(method) / "README.md").read_text().partition("\n## Run\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_and_is_scored_on_rendered_people(world: TinyWorld, method: str, tmp_path: Path) -> None:
    record = run(world, method, tmp_path / "trained")
    assert record["status"] == "ok", record["reason"]
    assert record["cost"]["images_seen"] == 2 * 3 * 16
    history = pd.read_csv(tmp_path / "trained/history.csv")
    losses = history.filter(like="loss_")
    assert list(history["epoch"]) == [1, 2]
    assert len(losses.columns)
    assert np.isfinite(losses.to_numpy()).all()
    trained = split_name(finetuning(method) or method)[0]
    if trained != "supervised":  # it has no README
        own = {name for name in history if not COMMON.fullmatch(name)}
        assert own == columns_of_readme(trained), f"methods/{trained}/README.md names the columns that the method adds"
    assert evaluate.main(world.evaluate_arguments(method, tmp_path / "trained", tmp_path / "scored")) == 0
    result = json.loads((tmp_path / "scored/result.json").read_text())
    last = result["selection"]["last"]
    assert last["epoch"] == 2
    assert 0 < last["mAP"] <= 1
    assert last["rank1"] <= last["rank5"] <= last["rank10"]
    queries = pd.read_csv(tmp_path / "scored/queries.csv")
    assert len(queries) == last["valid_queries"]
    assert queries["ap"].mean() == pytest.approx(last["mAP"])


@pytest.mark.parametrize("method", PRETRAINED)
def test_the_columns_that_a_pre_training_logs_are_in_its_readme(world: TinyWorld, method: str, tmp_path: Path) -> None:
    where = ["--dataset", "rendered", "--profile", "tiny", "--data", str(world.data), "--cache", str(world.cache)]
    initial = world.initial_of(run_backbone(method, "rendered", PARAMS))
    made = ["--initial", str(initial), "--out", str(tmp_path), "--device", "cpu"]
    assert pretrain.main(["--method", method, *where, *made]) == 0
    history = pd.read_csv(tmp_path / "pretraining/history.csv")
    assert {name for name in history if not COMMON.fullmatch(name)} == columns_of_readme(method)


@pytest.mark.parametrize("method", methods.available())
def test_every_variant_of_a_method_resolves(method: str, world: TinyWorld, tmp_path: Path) -> None:
    from pipeline.settings import method_config, resolve_run

    named = variants(method) + list(method_config(method).get("ablations") or {})
    for dataset in ("market1501", "msmt17_v2", "rendered"):
        for variant in named:
            name = method if variant == "default" else f"{method}-{variant}"
            assert resolve_run(name, dataset, "published").dataset == dataset


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(world: TinyWorld, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(world, "hhcl", tmp_path / name, "--seed", seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def permuted(world: TinyWorld, folder: Path, chosen: Callable[[pd.Series], pd.Series]) -> str:
    """The tiny people with other ids in the chosen splits."""
    manifest = read_manifest(world.data)
    table = manifest.table.copy()
    rows = chosen(table["split"])
    table.loc[rows, "person_id"] = np.random.default_rng(0).permutation(table["person_id"][rows].to_numpy())
    Manifest(table, manifest.root.resolve(), manifest.name, manifest.fingerprint, manifest.info).write(folder)
    return str(folder)


@pytest.mark.parametrize("method", sorted(set(TRAINED) - {"supervised"}))
def test_permuting_person_ids_leaves_the_trained_weights_bit_identical(
    world: TinyWorld, method: str, tmp_path: Path
) -> None:
    """All ids but those of the source where the method declares them: these change its weights."""
    declared = run(world, method, tmp_path / "plain")["needs"]["identities"]
    hidden = permuted(world, tmp_path / "hidden ids", lambda split: split != declared)
    run(world, method, tmp_path / "permuted", "--data", hidden)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "permuted"))
    if declared:
        seen = permuted(world, tmp_path / "seen ids", lambda split: split == declared)
        run(world, method, tmp_path / "other source", "--data", seen)
        assert not same(weights(tmp_path / "plain"), weights(tmp_path / "other source"))


def test_the_supervised_bound_does_see_the_ids(world: TinyWorld, tmp_path: Path) -> None:
    """The counterpart of the test above: it shows that a permutation can be seen at all."""
    manifest = read_manifest(world.data)
    table = manifest.table.copy()
    train = table["split"] == "train"
    table.loc[train, "person_id"] = np.random.default_rng(0).permutation(table["person_id"][train].to_numpy())
    Manifest(table, manifest.root.resolve(), manifest.name, manifest.fingerprint).write(tmp_path / "shuffled")
    run(world, "supervised", tmp_path / "plain")
    run(world, "supervised", tmp_path / "permuted", "--data", str(tmp_path / "shuffled"))
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "permuted"))


def test_evaluating_touches_no_random_stream_and_no_batch_norm_state(world: TinyWorld, tmp_path: Path) -> None:
    run(world, "cluster_contrast", tmp_path / "trained")
    before = weights(tmp_path / "trained")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    evaluate.main(world.evaluate_arguments("cluster_contrast", tmp_path / "trained", tmp_path / "first"))
    assert torch.equal(state, torch.get_rng_state())
    assert same(before, weights(tmp_path / "trained"))
    evaluate.main(world.evaluate_arguments("cluster_contrast", tmp_path / "trained", tmp_path / "second"))
    first, second = ((tmp_path / name / "metrics.json").read_text() for name in ("first", "second"))
    assert first == second


LONG = ("--set", "schedule.epochs=4", "--set", "schedule.iterations=4")


@pytest.mark.slow
# Two memories; one granularity above the other; a second network, which follows the first.
@pytest.mark.parametrize("method", ["hhcl-paper", "hcl", "ice"])
def test_a_run_killed_at_any_moment_resumes_to_the_same_numbers(world: TinyWorld, method: str, tmp_path: Path) -> None:
    run(world, method, tmp_path / "whole", *LONG)
    arguments = world.train_arguments(method, tmp_path / "killed", *LONG)
    arguments += ["--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "pipeline.train", *arguments]
    kills = 0
    for epochs_before_kill in (1, 2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        if wait_for_epoch(tmp_path / "cache", epochs_before_kill, process):
            time.sleep(0.3)  # somewhere inside the next epoch
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills == 2, "the run ended before it could be killed; make it longer"
    assert not (tmp_path / "killed/train.json").exists()
    watched = tmp_path / f"cache/progress/{method}-rendered-resnet18_half-0/history.csv"
    assert pd.read_csv(watched)["epoch"].tolist() in ([1], [1, 2], [1, 2, 3])
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    assert same(weights(tmp_path / "whole", 4), weights(tmp_path / "killed", 4))
    assert watched.read_text() == (tmp_path / "killed/history.csv").read_text()
    kept = [sorted(os.listdir(tmp_path / name / "weights")) for name in ("whole", "killed")]
    assert kept[0] == kept[1]
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed")]
    columns = [c for c in histories[0] if not c.startswith(("seconds_", "peak_"))]
    pd.testing.assert_frame_equal(histories[0][columns], histories[1][columns])
    assert not any((tmp_path / "cache/checkpoints").glob("[!.]*")), "a finished run deletes its checkpoint"


def wait_for_epoch(cache: Path, epochs: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the checkpoint holds that many epochs; False when the process ended first."""
    while process.poll() is None:
        for state in cache.glob("checkpoints/*/state.pt"):
            if torch.load(state, weights_only=True)["progress"]["epoch"] >= epochs:
                return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
# The second takes its rank's part of what it draws; the third has a teacher whose batch is shuffled over the ranks.
@pytest.mark.parametrize("method", ["hhcl", "pisl", "ice"])
def test_two_processes_equal_one_process_with_two_batch_norm_groups(
    method: str, world: TinyWorld, tmp_path: Path
) -> None:
    double = ["--set", "precision=fp64", "--set", "backbone.bn_groups=2", "--set", "schedule.epochs=1"]
    double += ["--threads", "1", "--set", "extraction_batch=16"]
    run(world, method, tmp_path / "one", *double)
    arguments = world.train_arguments(method, tmp_path / "two", *double)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "pipeline.train", *arguments], cwd=ROOT, check=True)
    labels = [np.load(tmp_path / name / "labels.npz")["labels"] for name in ("one", "two")]
    np.testing.assert_array_equal(labels[0], labels[1])
    one, two = weights(tmp_path / "one", 1), weights(tmp_path / "two", 1)
    start = torch.load(world.initial / "weights.pt", weights_only=True)
    moved = [not torch.equal(one[f"embedder.{k}"].float(), v) for k, v in start.items()]
    assert sum(moved) > len(moved) / 2, "the comparison is of trained weights"
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_loss_that_is_not_finite_ends_as_a_failed_row_with_exit_status_zero(world: TinyWorld, tmp_path: Path) -> None:
    record = run(world, "hhcl", tmp_path / "trained", "--set", "settings.temperature=1.0e-45")
    assert record["status"] == "failed"
    assert "loss is not finite in epoch 1, step 1" in record["reason"]
    assert "training rows of the batch" in record["reason"]
    assert evaluate.main(world.evaluate_arguments("hhcl", tmp_path / "trained", tmp_path / "scored")) == 0
    metrics = json.loads((tmp_path / "scored/metrics.json").read_text())
    assert metrics["status"] == "failed"
    assert metrics["mAP"] is None


def test_clusters_that_collapse_twice_running_end_as_a_failed_row(world: TinyWorld, tmp_path: Path) -> None:
    record = run(world, "cluster_contrast", tmp_path / "trained", "--set", "clustering.eps=0.0")
    assert record["status"] == "failed"
    assert "fewer than two clusters in epochs 1 and 2" in record["reason"]


def test_a_dataset_without_cameras_is_refused_by_a_method_that_uses_them(world: TinyWorld, tmp_path: Path) -> None:
    manifest = read_manifest(world.data)
    table = manifest.table.assign(camera_id=-1)
    Manifest(table, manifest.root.resolve(), manifest.name, manifest.fingerprint).write(tmp_path / "blind")
    arguments = world.train_arguments("hhcl", tmp_path / "out", "--data", str(tmp_path / "blind"))
    with pytest.raises(ValueError, match=r"uses camera labels \(for: sampler\).*sampler\.uses_camera=false"):
        train.main(arguments)
    run(
        world, "hhcl", tmp_path / "camera_free", "--data", str(tmp_path / "blind"), "--set", "sampler.uses_camera=false"
    )


def test_missing_initial_weights_say_which_command_makes_them(world: TinyWorld, tmp_path: Path) -> None:
    arguments = world.train_arguments("hhcl", tmp_path / "out", "--initial", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"run `python -m pipeline pretrain --dataset rendered"):
        train.main(arguments)
