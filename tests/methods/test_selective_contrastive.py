"""Selective contrastive learning against literal loops: docs/methods/selective_contrastive.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import seeded_init
from core.config import Config, Optimiser, Sampler
from core.data import Batch, Labels
from core.engine import build_optimiser
from core.memory import CentroidMemory
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.selective_contrastive.contrast import log_probabilities, selective_nll, term_weights
from methods.selective_contrastive.heads import Heads, stripe_means
from methods.selective_contrastive.method import Settings
from methods.selective_contrastive.selection import Selection, euclidean, select, squared_distance
from tests.methods.draws import unit
from tests.methods.selective_contrastive_small import (
    BATCH,
    DIM,
    IMAGES,
    NEGATIVES,
    STRIPES,
    Data,
    K,
    batch_of,
    build,
    filled,
    total,
    views_of,
)

GLOBAL_ALONE = {"stripes": 0, "lambda_g": 1.0, "lambda_p": 0.0}


@pytest.fixture
def output() -> dict[str, Tensor]:
    return views_of(BATCH, 7)


# Property 1: the two heads.


def test_the_global_head_starts_by_its_fan_out_and_the_local_ones_as_torch_s_layers_do_as_released() -> None:
    with seeded_init(torch.Generator().manual_seed(0)):
        heads = Heads(1024, 8)
    assert float(heads.whole.linear.weight.std()) == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    assert not heads.whole.linear.bias.any()
    bound = 1 / math.sqrt(1024)
    for stripe in heads.stripes:
        assert float(stripe.linear.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert 0.99 * bound < float(stripe.linear.weight.abs().max()) <= bound


@pytest.mark.parametrize("training", [True, False])
def test_the_global_feature_and_every_stripe_have_length_one_and_the_stripes_together_the_root_of_their_number(
    training: bool,
) -> None:
    method = build().train(training)
    images = torch.randn(6, 3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = method.forward(Batch([images], *(torch.arange(6),) * 2, None, {}, 0))
    assert views["global"].shape == (6, 1, DIM)
    assert views["local"].shape == (6, STRIPES, DIM // STRIPES)
    for view in views.values():
        torch.testing.assert_close(view.norm(dim=2), torch.ones(view.shape[:2], dtype=torch.float64))
    joined = views["local"].flatten(1).norm(dim=1)
    torch.testing.assert_close(joined, torch.full((6,), math.sqrt(STRIPES), dtype=torch.float64))


def test_a_stripe_is_the_mean_of_its_rows_and_rows_left_over_are_not_read() -> None:
    feature_map = torch.randn(2, 5, 9, 3, generator=torch.Generator().manual_seed(0))
    means = stripe_means(feature_map, 4)
    for s in range(4):
        torch.testing.assert_close(means[:, s], feature_map[:, :, 2 * s : 2 * s + 2].mean((2, 3)))
    feature_map[:, :, 8] = torch.nan
    assert torch.equal(means, stripe_means(feature_map, 4))
    with pytest.raises(ValueError, match=r"settings\.stripes 10 cannot be cut from a feature map of 9 rows"):
        stripe_means(feature_map, 10)
    with pytest.raises(ValueError, match="does not divide the 16 channels"):
        Heads(16, 5)


def test_all_that_learns_is_used_and_the_unused_neck_does_not_learn(output: dict[str, Tensor]) -> None:
    method = filled(build())
    images = torch.randn(BATCH, 3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = batch_of()
    batch.images = [images]
    total(method.loss(method.forward(batch), batch)).backward()
    learning = [p for group in method.param_groups() for p in group["params"]]
    assert learning
    assert all(p.grad is not None for p in learning)
    assert not any(p.requires_grad for p in method.embedder.bnneck.parameters())


# Property 2: weights, and the loss without neighbours.


def test_weights_sum_to_the_documented_value() -> None:
    weights = term_weights(7, 0.5, 1.75)
    assert weights == [0.5] + 7 * [0.125]
    assert sum(weights) == 1.375
    assert sum(term_weights(4, 0.3, 1.5)) == pytest.approx(0.3 + 1.5 * 0.7)
    assert term_weights(0, 0.5, 1.75) == [0.5]


def test_without_neighbours_the_loss_is_instance_discrimination_weighted_by_lambda_t(output: dict[str, Tensor]) -> None:
    method = filled(build(positives=0, negatives=None, lambda_t=0.3))
    batch = batch_of()
    bank = method.banks["mixture"].rows
    for name, term in method.loss(output, batch).items():
        expected = 0.3 * F.cross_entropy(10 * output[name].flatten(1) @ bank.T, batch.indices)
        torch.testing.assert_close(term, 0.5 * expected)


def test_with_every_addition_off_it_is_cluster_contrast_with_each_image_as_its_own_cluster() -> None:
    alone = {**GLOBAL_ALONE, "positives": 0, "negatives": None, "lambda_t": 1.0}
    ours = filled(build(**alone))
    config = Config(settings=ClusterContrastSettings(temperature=0.1, momentum=0.5))
    theirs = ClusterContrast(config, nn.Identity(), IMAGES)  # type: ignore[arg-type]
    theirs.memory = CentroidMemory(ours.banks["mixture"].rows, 0.5)
    ours.banks["mixture"].rows.copy_(theirs.memory.rows)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        batch = batch_of(torch.randint(IMAGES, (BATCH,), generator=generator))
        feature = unit(generator, BATCH, DIM).requires_grad_()
        views = {"global": feature[:, None]}
        losses = total(ours.loss(views, batch)), total(theirs.loss({"feature": feature}, batch))
        assert torch.equal(*losses)
        (mine,), (other,) = (torch.autograd.grad(loss, feature) for loss in losses)
        assert torch.equal(mine, other)
        ours.after_step({"global": views["global"].detach()}, batch)
        theirs.after_step({"feature": feature.detach()}, batch)
        assert torch.equal(ours.banks["mixture"].rows, theirs.memory.rows)


# Properties 3 to 5: selection.


@pytest.mark.parametrize("negatives", [NEGATIVES, 1000, None])
def test_the_anchor_leads_its_positives_and_the_negatives_are_the_nearest_of_the_rest(negatives: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(BATCH, IMAGES, generator=generator)
    anchors = batch_of().indices
    chosen = select(distance, anchors, K, negatives)
    count = IMAGES - K - 1 if negatives != NEGATIVES else NEGATIVES
    assert chosen.positives.shape == (BATCH, K + 1)
    assert chosen.negatives.shape == (BATCH, count)
    for i in range(BATCH):
        ranked = [j for j in distance[i].argsort().tolist() if j != anchors[i]]
        assert chosen.positives[i].tolist() == [int(anchors[i]), *ranked[:K]]
        assert chosen.negatives[i].tolist() == ranked[K : K + count]


def test_more_neighbours_than_images_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"settings\.positives 5 neighbours cannot be found among 4"):
        select(torch.rand(2, 4), torch.tensor([0, 1]), 5, 1)


def test_selection_follows_the_written_distance(output: dict[str, Tensor]) -> None:
    cameras = np.random.default_rng(0).integers(3, size=IMAGES)
    method = filled(build(lambda_g=0.3, lambda_c=0.4), cameras)
    batch = batch_of()
    method.loss(output, batch)
    bank_g = method.banks["global"].rows
    bank_l = method.banks["local"].rows.view(IMAGES, STRIPES, -1)
    distance = torch.empty(BATCH, IMAGES, dtype=torch.float64)
    for i in range(BATCH):
        for j in range(IMAGES):
            g = (output["global"][i, 0] - bank_g[j]).square().sum()
            stripes = [(output["local"][i, s] - bank_l[j, s]).square().sum() for s in range(STRIPES)]
            same = float(cameras[batch.indices[i]] == cameras[j])
            distance[i, j] = 0.3 * g + 0.7 * sum(stripes) / STRIPES + 0.4 * same
    expected = select(distance, batch.indices, K, NEGATIVES)
    assert torch.equal(method.selection.rows, expected.rows)


def test_without_the_camera_penalty_cameras_are_neither_declared_nor_read(output: dict[str, Tensor]) -> None:
    method = filled(build(lambda_c=0.0))  # Data has no cameras to give
    method.loss(output, batch_of())
    assert method.needs(method.config).cameras == frozenset()
    for on, uses in (({"lambda_c": 0.05}, {"loss"}), ({"lambda_c_test": 0.05}, {"test"})):
        assert build(**on).needs(build(**on).config).cameras == uses
    both = build(lambda_c=0.05, lambda_c_test=0.05)
    assert both.needs(both.config).cameras == {"loss", "test"}


def test_a_large_camera_penalty_makes_all_neighbours_those_of_other_cameras(output: dict[str, Tensor]) -> None:
    cameras = np.arange(IMAGES) % 2
    batch = batch_of()
    same = {}
    for penalty in (0.0, 10.0):
        method = filled(build(lambda_c=penalty), cameras)
        method.loss(output, batch)
        neighbours = method.selection.positives[:, 1:]
        same[penalty] = (cameras[neighbours] == cameras[batch.indices][:, None]).mean()
    assert same[10.0] == 0
    assert same[0.0] > 0.2


@pytest.mark.parametrize(("lambda_g", "ignored", "read"), [(1.0, "local", "global"), (0.0, "global", "local")])
def test_lambda_g_at_its_ends_ignores_one_bank(
    output: dict[str, Tensor], lambda_g: float, ignored: str, read: str
) -> None:
    chosen = []
    for changed in (None, ignored, read):
        method = filled(build(lambda_g=lambda_g))
        if changed:
            method.banks[changed].rows.copy_(method.banks[changed].rows.roll(5 * STRIPES, 0))
        method.loss(output, batch_of())
        chosen.append(method.selection.rows)
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


# Property 10 and the retrieval vector.


def test_the_test_distance_is_the_mixture_of_plain_distances_and_reads_cameras_only_when_told() -> None:
    query, gallery = views_of(5, 1), views_of(9, 2)
    plain = build(lambda_g=0.3).distance(query, gallery)
    for i in range(5):
        for j in range(9):
            g = (query["global"][i, 0] - gallery["global"][j, 0]).norm()
            stripes = [(query["local"][i, s] - gallery["local"][j, s]).norm() for s in range(STRIPES)]
            torch.testing.assert_close(plain[i, j], 0.3 * g + 0.7 * sum(stripes) / STRIPES)
    rng = np.random.default_rng(0)
    cameras = [torch.as_tensor(rng.integers(3, size=n)) for n in (5, 9)]
    query, gallery = {**query, "camera": cameras[0]}, {**gallery, "camera": cameras[1]}
    assert torch.equal(build(lambda_g=0.3).distance(query, gallery), plain)
    with_cameras = build(lambda_g=0.3, lambda_c_test=0.05).distance(query, gallery)
    same = cameras[0][:, None] == cameras[1]
    assert torch.equal(with_cameras[~same], plain[~same])
    assert torch.equal(with_cameras[same], plain[same] + 0.05)
    assert 0 < same.sum() < same.numel()


def test_squared_distances_of_the_retrieval_vector_are_those_of_the_selection() -> None:
    for settings in ({"lambda_g": 0.3}, GLOBAL_ALONE):
        method = build(**settings).eval()
        images = torch.randn(6, 3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        views = method.embed(images)
        parts = [share * squared_distance(views[name], views[name]) for name, share in method.shares.items()]
        found = torch.cdist(views["feature"], views["feature"]).square()
        torch.testing.assert_close(found, torch.stack(parts).sum(0), rtol=0, atol=1e-7)
        assert method.distance(views, views).shape == (6, 6)


def test_near_neighbours_keep_their_order_in_float32() -> None:
    base = F.normalize(torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    aside = torch.randn(1, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = torch.linspace(2e-3, 1e-4, 40, dtype=torch.float64)[:, None]
    gallery = F.normalize(base + steps * F.normalize(aside - (aside @ base.T) * base, dim=1), dim=1)
    distance = euclidean(base[:, None].float(), gallery[:, None].float())[0]
    assert torch.equal(distance.argsort(), torch.arange(40).flip(0))


# State, batches, settings.


def test_a_resumed_run_goes_on_with_bit_identical_banks(output: dict[str, Tensor]) -> None:
    first, second = filled(build()), build()
    assert second.memory_state() == {}
    second.load_memory_state({})
    batch = batch_of()
    first.loss(output, batch)
    first.after_step(output, batch)
    second.load_memory_state(first.memory_state())
    untouched = Data({name: torch.zeros_like(view) for name, view in views_of(IMAGES, 1).items()})
    for method in (first, second):
        method.start_epoch(Labels(np.arange(IMAGES)), untouched, torch.Generator())  # type: ignore[arg-type]
        method.loss(output, batch)
        method.after_step(output, batch)
    for name, bank in first.banks.items():
        assert torch.equal(bank.rows, second.banks[name].rows)


def test_a_pass_draws_every_image_at_most_once_in_full_batches_whatever_the_labels() -> None:
    method = build(sampler=Sampler(identities=6, instances=1, uses_camera=False))
    labels = method.label(0, Data({}))  # type: ignore[arg-type]
    assert labels.ids.tolist() == list(range(IMAGES))
    drawn = list(method.batches(labels, Data({}), np.random.default_rng(0)))  # type: ignore[arg-type]
    assert [len(rows) for rows in drawn] == [6] * 6
    assert len(set(np.concatenate(drawn).tolist())) == 36


def test_sgd_has_nesterov_momentum_and_adam_runs_too(output: dict[str, Tensor]) -> None:
    sgd = build_optimiser(build(), Optimiser("sgd", 1e-3))
    assert [(group["nesterov"], group["momentum"]) for group in sgd.param_groups] == [(True, 0.9)]
    method, weight = build(), nn.Parameter(torch.ones(1))
    method.param_groups = lambda: [{"params": [weight], "nesterov": True}]  # type: ignore[method-assign]
    sgd = build_optimiser(method, Optimiser("sgd", 0.1, weight_decay=0.0))
    weight.grad = torch.ones(1)
    sgd.step()
    assert float(weight.detach()) == pytest.approx(1 - 0.1 * 1.9)  # gradient + 0.9 x momentum, already at step 1
    build_optimiser(build(), Optimiser("adam")).step()


def test_the_loss_of_a_list_ignores_every_row_outside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    z, bank = unit(generator, 2, DIM).requires_grad_(), unit(generator, IMAGES, DIM)
    chosen = Selection(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [6, 7]]))
    loss = selective_nll(log_probabilities(z, bank, chosen, 0.1), chosen.positives, [0.5, 0.2])
    (gradient,) = torch.autograd.grad(loss, z)
    bank[8:] = unit(generator, IMAGES - 8, DIM)
    again = selective_nll(log_probabilities(z, bank, chosen, 0.1), chosen.positives, [0.5, 0.2])
    assert torch.equal(loss, again)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_mode": "live"}, "frozen or released, not 'live'"),
        ({"lambda_t": 1.5}, r"settings\.lambda_t is a share"),
        ({"positives": -1}, r"settings\.positives must not be negative"),
        ({"stripes": 0}, "set lambda_g to 1 and lambda_p to 0"),
        ({"mixture": ()}, "one or both of local, global"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]
