"""PPAN: docs/methods/ppan.md. Equality of the alignments with official code: tests/golden/alignment.npz."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from core.backbones.net import Embedder, build
from core.config import Config, Schedule
from core.data import Batch, Labels
from core.distributed import ProcessGroup
from core.manifest import Manifest, read_manifest
from methods.ppan.alignment import coral, gaussian_kernels, identity_weights, local_mmd, weighted_mmd
from methods.ppan.branches import part_images, slices
from methods.ppan.method import PPAN, Settings
from pipeline.settings import resolve_run
from tests.adaptation import interrupt, known, train_small
from tests.methods.draws import normal, unit
from tests.replay.people import write_dataset

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
SMALL = {"part_source": "feature", "branches": "heads", "embedding": None, "source_epochs": 0, "backbone_rate": 1.0}
LABELS = torch.tensor([0, 0, 3, 3, 3, 5, 1, 1])
DIM, PEOPLE, PARTS = 8, 6, 2


def ppan(**settings: object) -> PPAN:
    """On given features; 4 epochs, all of adaptation."""
    config = Config(Settings(**{**SMALL, "parts": PARTS, **settings}), schedule=Schedule(epochs=4))  # type: ignore[arg-type]
    method = PPAN(config, Embedder(nn.Identity(), nn.Identity(), DIM), 1, PEOPLE)
    method.gamma = torch.ones(1 + PARTS, PEOPLE, dtype=torch.float64)
    return method


def outputs(generator: torch.Generator) -> dict[str, Tensor]:
    """What ``forward`` gives, with a gradient: eight images of the source, six of the target."""
    shapes = {"source_branches": (8, DIM), "source_logits": (8, PEOPLE), "branches": (6, DIM), "logits": (6, PEOPLE)}
    drawn = {name: normal(generator, rows, 1 + PARTS, width) for name, (rows, width) in shapes.items()}
    return {name: value.requires_grad_() for name, value in drawn.items()}


def batch_at(epoch: float) -> Batch:
    side = Batch([], torch.arange(8), LABELS, None, {}, epoch)
    return Batch([], torch.arange(6), torch.arange(6), None, {}, epoch, source=side)


def one_hot(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, PEOPLE).double()


# ---- The alignments ----------------------------------------------------------------------------------------------


def test_equal_batches_have_no_distance_and_others_a_positive_one(generator) -> None:
    features, other, ones = unit(generator, 8, DIM), unit(generator, 6, DIM), torch.ones(PEOPLE).double()
    same, apart = gaussian_kernels(features, features), gaussian_kernels(features, other)
    soft = normal(generator, 6, PEOPLE).softmax(dim=1)
    for value in (weighted_mmd(same, ones[LABELS]), local_mmd(same, LABELS, one_hot(LABELS), ones)):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    assert weighted_mmd(apart, ones[LABELS]) > 1e-3
    assert local_mmd(apart, LABELS, soft, ones) > 1e-3
    assert coral(features, features) == 0


def test_with_one_identity_that_all_images_have_the_local_alignment_is_the_global_one(generator) -> None:
    kernels = gaussian_kernels(unit(generator, 8, DIM), unit(generator, 6, DIM))
    ones = torch.ones(1, dtype=torch.float64)
    local = local_mmd(kernels, torch.zeros(8, dtype=torch.int64), torch.ones(6, 1).double(), ones)
    torch.testing.assert_close(local, weighted_mmd(kernels, torch.ones(8).double()))


def test_the_order_of_images_and_the_names_of_domains_do_not_matter(generator) -> None:
    source, target = unit(generator, 8, DIM), unit(generator, 6, DIM)
    weights = torch.rand(8, generator=generator, dtype=torch.float64)
    order, other = torch.randperm(8, generator=generator), torch.randperm(6, generator=generator)
    plain = weighted_mmd(gaussian_kernels(source, target), weights)
    torch.testing.assert_close(plain, weighted_mmd(gaussian_kernels(source[order], target[other]), weights[order]))
    there = weighted_mmd(gaussian_kernels(source, target), torch.ones(8).double())
    torch.testing.assert_close(there, weighted_mmd(gaussian_kernels(target, source), torch.ones(6).double()))


def test_the_local_alignment_is_the_weighted_mean_over_identities_written_out(generator) -> None:
    source, target = unit(generator, 8, DIM), unit(generator, 6, DIM)
    soft, weights = normal(generator, 6, PEOPLE).softmax(dim=1), torch.rand(PEOPLE, generator=generator).double()
    joint = torch.cat([source, target])
    distance = torch.cdist(joint, joint).square()
    mean = distance.sum() / (14 * 13)
    kernel = sum(torch.exp(-distance / (mean * 2.0**power)) for power in range(-2, 3))
    found = {}
    for k in (0, 1, 3, 5):
        sides = torch.cat([(k == LABELS).double() / (k == LABELS).sum(), -soft[:, k] / soft[:, k].sum()])
        found[k] = sides @ kernel @ sides
    expected = sum(weights[k] * found[k] for k in found) / sum(weights[k] for k in found)
    torch.testing.assert_close(local_mmd(gaussian_kernels(source, target), LABELS, soft, weights), expected)


def test_dsans_mask_leaves_nothing_where_no_target_image_resembles_a_person_of_the_batch(generator) -> None:
    source = unit(generator, 8, DIM).requires_grad_()
    kernels = gaussian_kernels(source, unit(generator, 6, DIM))
    strangers, ones = one_hot(torch.tensor([2, 4, 2, 4, 2, 2])), torch.ones(PEOPLE).double()
    empty = local_mmd(kernels, LABELS, strangers, ones, "dsan")
    assert empty == 0
    assert torch.autograd.grad(empty, source)[0].abs().sum() == 0
    soft = normal(generator, 6, PEOPLE).softmax(dim=1)
    assert local_mmd(kernels, LABELS, soft, ones, "source") > 0


def test_the_identity_weights_have_1_for_their_largest(generator) -> None:
    weights = identity_weights(30 * normal(generator, 40, PEOPLE), 1.0)
    assert weights.max() == 1
    assert (weights >= 0).all()
    assert weights.min() < 0.9


# ---- The method's loss -------------------------------------------------------------------------------------------


def test_the_first_step_is_the_sum_of_the_branches_cross_entropies_whatever_the_weights(generator) -> None:
    method, output = ppan(), outputs(generator)
    method.gamma = torch.rand(1 + PARTS, PEOPLE, generator=generator).double()
    (loss,) = method.loss(output, batch_at(0)).values()
    plain = sum(nn.functional.cross_entropy(z, LABELS) for z in output["source_logits"].unbind(dim=1))
    torch.testing.assert_close(loss, plain)
    assert list(method.loss(output, batch_at(0.1))) == ["identity", "global", "local"]


def test_batch_norms_of_the_target_s_own_have_a_gradient_of_0_before_it_is_aligned(generator) -> None:
    output = outputs(generator)
    (loss,) = ppan(domain_norm=True).loss(output, batch_at(0)).values()
    assert torch.equal(torch.autograd.grad(loss, output["branches"])[0], torch.zeros_like(output["branches"]))


def test_rho_is_0_on_the_source_alone_and_rises_towards_1() -> None:
    method = ppan(source_epochs=2)
    places = torch.linspace(0, 4, 41).tolist()
    found = [method.rho(place) for place in places]
    assert set(found[:21]) == {0}
    assert found[20:] == sorted(set(found[20:]))
    assert found[-1] < 1
    assert [method.rho(place) for place in (2.2, 3.0)] == pytest.approx([0.462, 0.987], abs=1e-3)


@pytest.mark.parametrize("name", ["identity", "global", "local"])
def test_an_identity_of_weight_0_gives_no_gradient_in_any_term(name: str, generator) -> None:
    method, output = ppan(), outputs(generator)
    method.gamma[:, 3] = 0
    wanted = [output["source_logits"], output["source_branches"]]
    for epoch, silent in ((4e9, True), (0.2, False)):  # rho is 1 to the last digit; and not yet
        terms = method.loss(output, batch_at(epoch))
        gradients = torch.autograd.grad(terms[name], wanted, allow_unused=True, retain_graph=True)
        (gradient,) = [found for found in gradients if found is not None]
        assert (gradient[LABELS == 3].abs().sum() == 0).item() is silent
        assert gradient[LABELS != 3].abs().sum() > 0


def test_the_target_learns_from_the_alignments_alone_and_its_probabilities_are_constant(generator) -> None:
    method, output = ppan(), outputs(generator)
    for name, term in method.loss(output, batch_at(2)).items():
        wanted = [output["branches"], output["logits"]]
        gradient, of_logits = torch.autograd.grad(term, wanted, allow_unused=True, retain_graph=True)
        assert (gradient is None) is (name == "identity")
        assert of_logits is None
    assert not ppan(target=False).loss(output, batch_at(2)).keys() & {"global", "local"}


def test_a_branch_gets_no_gradient_from_what_another_branch_sees(generator) -> None:
    method, found = ppan(), []
    for moved in (False, True):
        output = outputs(torch.Generator().manual_seed(1))
        if moved:
            with torch.no_grad():
                for value in output.values():
                    value[:, 1] = normal(generator, *value[:, 1].shape)
        loss = torch.stack(list(method.loss(output, batch_at(2)).values())).sum()
        found.append(torch.autograd.grad(loss, [output[name] for name in ("source_branches", "source_logits")]))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
        assert not torch.equal(before[:, 1], after[:, 1])


# ---- The branches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [256, 64, 65, 7])
def test_slices_tile_the_image_and_are_resized_to_half_its_height(height: int, generator) -> None:
    images = normal(generator, 2, 3, height, 4)
    found = slices(images, 3)
    assert torch.equal(torch.cat(found, dim=2), images)
    heights = [part.shape[2] for part in found]
    assert max(heights) - min(heights) <= 1
    assert [tuple(part.shape) for part in part_images(images, 3)] == [(2, 3, height // 2, 4)] * 3


@pytest.mark.parametrize("branches", ["heads", "layer4"])
def test_before_training_a_part_that_is_the_whole_image_has_the_whole_body_s_feature(branches: str, generator) -> None:
    with known(PPAN):
        embedder = build("replay_cnn", generator=torch.Generator().manual_seed(0))
    embedder.bnneck.running_mean += 0.1
    config = Config(Settings(**{**SMALL, "parts": 1, "branches": branches}))  # type: ignore[arg-type]
    method = PPAN(config, embedder, 1, PEOPLE)
    method.weights_loaded()
    found = method.eval().embed(normal(generator, 2, 3, 64, 32).float())
    torch.testing.assert_close(found["branches"][:, 0], found["branches"][:, 1])
    assert found["feature"].shape == (2, 2 * 64)
    torch.testing.assert_close(found["feature"].norm(dim=1), torch.ones(2))


def test_the_published_branches_give_the_test_feature_its_length_and_the_pretrained_layers_their_rate() -> None:
    with known(PPAN):
        embedder = build("replay_cnn", generator=torch.Generator().manual_seed(0))
    method = PPAN(Config(Settings(embedding=5)), embedder, 1, PEOPLE)
    method.weights_loaded()
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    assert method.eval().embed(images)["feature"].shape == (2, 4 * 5)
    new, pretrained = method.param_groups()
    assert pretrained["lr_scale"] == 0.1
    kept = [p for p in method.parameters() if p.requires_grad]
    assert len(new["params"]) + len(pretrained["params"]) == len(kept)
    assert len(new["params"]) == 1 + 4 * 2  # classifiers; of each branch a projection and a neck's scale
    whole = PPAN(replace(method.config, settings=Settings(embedding=5, test_feature="whole")), embedder, 1, PEOPLE)
    assert whole.eval().embed(images)["feature"].shape == (2, 5)


@pytest.mark.parametrize("pair", ["market1501-from-dukemtmc", "dukemtmc-from-market1501", "msmt17_v2-from-market1501"])
def test_the_published_settings_are_the_same_for_every_pair(pair: str) -> None:
    config = resolve_run("ppan", pair, "published").config
    assert (config.settings.branches, config.settings.part_source, config.settings.source_epochs) == (
        "layer4",
        "image",
        40,
    )
    assert (config.schedule.epochs, config.schedule.milestones, config.sampler.batch) == (80, (70,), 64)


# ---- Training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, seed=0).write(folder)
    return read_manifest(folder)


def trained(people: Manifest, out: Path, **settings: object) -> dict[str, Tensor]:
    """The weights after two epochs of two steps on drawn people."""
    record = train_small(people, out, ALONE, PPAN, settings=Settings(**{**SMALL, **settings}))  # type: ignore[arg-type]
    assert record.status == "ok", record.reason
    found: dict[str, Tensor] = torch.load(out / "weights/epoch_002.pt", weights_only=True)
    return found


def test_with_every_alignment_off_the_weights_are_those_of_the_source_alone_to_the_bit(
    people: Manifest, tmp_path: Path
) -> None:
    off = trained(people, tmp_path / "off", global_weight=0.0, local_weight=0.0, progressive=False)
    source = trained(people, tmp_path / "source", target=False)
    running = {name for name in off if "running" in name or "batches_tracked" in name}
    assert all(torch.equal(off[name], source[name]) for name in off.keys() - running)
    assert any(not torch.equal(off[name], source[name]) for name in running)


def test_an_interrupted_run_does_not_set_its_classifiers_again(
    people: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(people, tmp_path / "whole", domain_norm=True)
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            trained(people, tmp_path / "out", domain_norm=True)
    found = trained(people, tmp_path / "out", domain_norm=True)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_number_of_identities_that_keep_their_weight_is_in_the_history(people: Manifest, tmp_path: Path) -> None:
    trained(people, tmp_path / "out")
    counts = pd.read_csv(tmp_path / "out/history.csv")["effective_identities"]
    assert len(counts) == 2
    assert counts.between(1, 6, inclusive="neither").all()


def test_batches_of_the_target_are_full_and_hold_every_image_at_most_once_a_pass() -> None:
    method, rng = ppan(), np.random.default_rng(0)
    for images, sizes in ((600, [256, 256]), (150, [150])):  # a batch of the source has 16 x 16
        drawn = list(method.batches(Labels(np.arange(images)), range(images), rng))  # type: ignore[arg-type]
        assert [len(batch) for batch in drawn] == sizes
        assert len(np.unique(np.concatenate(drawn))) == sum(sizes)
