"""Training with a labelled source beside the target: what enters a step, what is kept, and what may be seen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import core.engine
from core.augment import Augment
from core.backbones.net import Embedder
from core.config import Optimiser
from core.data import Labels, Needs, Pixels, TrainingData, UndeclaredAccess
from core.distributed import ProcessGroup
from core.errors import UserError
from core.manifest import Manifest, read_manifest
from core.method import Method
from core.rng import Streams
from pipeline.assemble import training_data
from pipeline.initial import Initial
from pipeline.jobs import ROOT
from pipeline.records import read_train
from pipeline.scoring import load_method
from tests.adaptation import Adaptation, interrupt, known, small_run, train_small
from tests.replay.people import write_dataset

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
NOWHERE = Initial(None, "random", None)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, seed=0).write(folder)
    return read_manifest(folder)


def weights(folder: Path, epoch: int = 2) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / f"weights/epoch_{epoch:03d}.pt", weights_only=True)
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def permuted(manifest: Manifest, source: bool) -> Manifest:
    """Other ids of the source, or of everything else; as many people as before."""
    table = manifest.table.copy()
    rows = (table["split"] == "source") == source
    table.loc[rows, "person_id"] = np.random.default_rng(1).permutation(table["person_id"][rows].to_numpy())
    return replace(manifest, table=table)


def data_of(manifest: Manifest, needs: Needs, tmp_path: Path) -> TrainingData:
    data, _ = training_data(small_run(), manifest, needs, NOWHERE, ALONE, tmp_path)
    data.computed_by(small_run().config)
    return data


@pytest.fixture(scope="module")
def plain(people: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    record = train_small(people, out, ALONE)
    assert record.status == "ok", record.reason
    return out


def test_ids_of_the_target_change_no_weight_and_those_of_the_source_do(
    people: Manifest, plain: Path, tmp_path: Path
) -> None:
    train_small(permuted(people, source=False), tmp_path / "target", ALONE)
    train_small(permuted(people, source=True), tmp_path / "source", ALONE)
    assert same(weights(plain), weights(tmp_path / "target"))
    assert not same(weights(plain), weights(tmp_path / "source"))
    assert read_train(plain).key == read_train(tmp_path / "target").key
    assert read_train(plain).key != read_train(tmp_path / "source").key


def test_source_images_are_counted_beside_the_targets_and_evaluation_rebuilds_the_heads(plain: Path) -> None:
    record = read_train(plain)
    assert (record.cost.images_seen, record.cost.source_images_seen) == (2 * 2 * 12, 2 * 2 * 16)
    assert (record.source_identities, record.needs.identities) == (6, "source")
    history = pd.read_csv(plain / "history.csv")
    assert history["source_images_seen"].tolist() == [32, 64]
    assert (history["apart"] > 0).all()
    with known():
        _, method = load_method(record)
    assert method.classifier.weight.shape[0] == 6
    method.load_state_dict(weights(plain))


def test_an_interrupted_run_goes_on_with_the_same_source_batches(
    people: Manifest, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train_small(people, tmp_path / "out", ALONE)
    assert train_small(people, tmp_path / "out", ALONE).cost.source_images_seen == 64
    assert same(weights(plain), weights(tmp_path / "out"))


@pytest.mark.slow
def test_two_processes_equal_one_with_a_source_batch(people: Manifest, plain: Path, tmp_path: Path) -> None:
    people.write(tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "tests.adaptation", str(tmp_path / "out")], cwd=ROOT, check=True)
    one, two = weights(plain), weights(tmp_path / "out")
    assert read_train(tmp_path / "out").provenance.processes == 2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


class Misnamed(Adaptation):
    """Gives rows of the source under a name of the target's."""

    def forward(self, batch: core.engine.Batch) -> dict[str, Tensor]:
        output = super().forward(batch)
        return {**output, "logits_0": output["source_logits"]}

    def source_batches(self, source: TrainingData, rng: np.random.Generator) -> list[np.ndarray]:
        return [np.arange(6)]


def test_rows_of_the_source_under_another_name_are_refused(people: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'logits_0' has 6 rows.*12 images.*begin with 'source_'"):
        train_small(people, tmp_path / "out", ALONE, Misnamed)


class Labelling(Adaptation):
    """Extracts where one rank is alone."""

    def label(self, epoch: int, data: TrainingData) -> Labels:
        data.extract(lambda pixels, rows: {})
        raise AssertionError("it was allowed")


def test_extracting_on_one_rank_alone_is_an_error_that_names_the_place_for_it(people: Manifest, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"`label` runs on one: extract in `Method\.extract`"):
        train_small(people, tmp_path / "out", ALONE, Labelling)


def test_extract_gives_every_image_once_in_order_from_either_split_and_draws_nothing(
    people: Manifest, tmp_path: Path
) -> None:
    data = data_of(people, Adaptation.needs(small_run().config), tmp_path)
    state = torch.get_rng_state()
    for side in (data, data.source):
        assert side is not None
        found = side.extract(lambda pixels, rows: {"first": pixels[:, 0, 0, 0], "rows": rows})
        assert found["rows"].tolist() == list(range(len(side)))
        assert torch.equal(found["first"], side.images.images[:, 0, 0, 0])
    assert torch.equal(state, torch.get_rng_state())
    assert len(data) != len(data.source)


def test_made_views_of_a_part_are_that_part_of_the_whole_and_copies_are_cropped_alike(
    people: Manifest, tmp_path: Path
) -> None:
    config = small_run().config
    data = data_of(people, Adaptation.needs(config), tmp_path)
    rows = torch.tensor([5, 0, 3, 17, 9, 11])

    def pixels(part: slice, side: TrainingData = data) -> Pixels:
        stream = partial(Streams(3).torch, epoch=1)
        return Pixels(side, rows, torch.arange(6), part, stream, Augment(), torch.float64)

    method = Adaptation(config, Embedder(torch.nn.Identity(), torch.nn.Identity(), 8), 1, 6)
    whole = method.make_views(pixels(slice(None)))
    halves = zip(*(method.make_views(pixels(part)) for part in (slice(0, 3), slice(3, 6))), strict=True)
    assert all(torch.equal(view, torch.cat(half)) for view, half in zip(whole, halves, strict=True))
    assert not torch.equal(*whole)
    given = pixels(slice(0, 3))
    assert torch.equal(given.augmented(1), given.augmented(1, images=given.images))
    smaller = given.augmented(1, images=given.images[:, :, :16], config=Augment(flip_probability=1, pad=0))
    assert smaller.shape == (3, 3, 16, 16)
    assert pixels(slice(None), data.source).domain == "source"
    blind = data_of(people, Needs(), tmp_path)
    with pytest.raises(UndeclaredAccess, match="by the style"):
        _ = pixels(slice(None), blind).cameras


def test_both_splits_without_ids_are_one_training_split_whose_cameras_are_apart(
    people: Manifest, tmp_path: Path
) -> None:
    needs = Needs(cameras=frozenset({"style"}), trains_on="train+source")
    data = data_of(people, needs, tmp_path)
    train, source = (people.split(name) for name in ("train", "source"))
    assert len(data) == len(train) + len(source)
    own = data_of(people, Needs(trains_on="source"), tmp_path)
    assert torch.equal(data.images.images[len(train) :], own.images.images)
    cameras = data.cameras("style")
    assert set(cameras[: len(train)]) == {0, 1, 2, 3}
    assert set(cameras[len(train) :]) == {4, 5, 6, 7}
    with pytest.raises(UndeclaredAccess, match="person ids"):
        _ = data.identities
    with pytest.raises(AssertionError, match="without ids"):
        Needs(trains_on="train+source", identities="train+source")


def test_training_reads_each_step_s_place_in_the_run(people: Manifest, tmp_path: Path) -> None:
    seen = []

    class Watching(Adaptation):
        def after_step(self, output: dict[str, Tensor], batch: core.engine.Batch) -> None:
            seen.append((batch.progress, batch.source.progress, batch.source.targets.tolist()))

    train_small(people, tmp_path / "out", ALONE, Watching)
    assert [place for place, _, _ in seen] == [0, 0.25, 0.5, 0.75] == [place for _, place, _ in seen]
    assert len({tuple(targets) for _, _, targets in seen}) == 4, "another batch at every step"


def moved(people: Manifest, out: Path, clip: float | None) -> dict[str, Tensor]:
    """What one step of SGD at a rate of 1 changes: the gradient."""
    steps: list[dict[str, Tensor]] = []

    def note(method: Method) -> None:
        steps.append({name: value.detach().clone() for name, value in method.named_parameters()})

    class Stepping(Adaptation):
        def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
            super().start_epoch(labels, data, generator)
            note(self)

        def after_step(self, output: dict[str, Tensor], batch: core.engine.Batch) -> None:
            note(self)

    schedule = replace(small_run().config.schedule, epochs=1, iterations=1)
    optimiser = Optimiser("sgd", lr=1.0, weight_decay=0.0, clip=clip)
    train_small(people, out, ALONE, Stepping, optimiser=optimiser, schedule=schedule)
    return {key: steps[0][key] - steps[1][key] for key in steps[0]}


def test_clipping_bounds_the_gradient_of_each_parameter_by_itself(people: Manifest, tmp_path: Path) -> None:
    free, clipped = (moved(people, tmp_path / str(clip), clip) for clip in (None, 0.01))
    norms = [float(gradient.norm()) for gradient in free.values()]
    assert min(norms) < 0.01 < max(norms)
    for key, gradient in free.items():
        expected = gradient * min(1.0, 0.01 / (float(gradient.norm()) + 1e-6))
        torch.testing.assert_close(clipped[key], expected, rtol=1e-6, atol=1e-15)
