"""The loss of HCL and MGCE-HCL against literal loops: docs/methods/hcl.md, "Hybrid loss" and "Priority"."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data import Batch, Labels
from methods.hcl.hybrid import co_association, memory_entries, pair_losses, positive_weights, weighted_mean
from tests.methods.draws import unit
from tests.methods.hcl_small import CLUSTERS, DIM, TAU, batch_of, filled, hcl, scene_of, splits, total

HCL_ONLY = {"eps_offsets": (0.0,)}


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Labels, Tensor, Batch]:
    return scene_of(generator)


def literal_loss(f: Tensor, bank: Tensor, labels: Labels, indices: Tensor, *, weighted: bool, keep: bool) -> float:
    """Section 5 as loops over single numbers; ``keep``: outliers are negatives."""
    ids, granularities = labels.ids.tolist(), labels.extra["granularities"].tolist()
    clusters = [F.normalize(bank[[j for j, y in enumerate(ids) if y == k]].mean(0), dim=0) for k in range(CLUSTERS)]
    singletons = [bank[j] for j, y in enumerate(ids) if y < 0] if keep else []
    anchors = 0.0
    for query, i in zip(f, indices.tolist(), strict=True):
        negatives = [c for k, c in enumerate(clusters) if k != ids[i]] + singletons
        below = sum(math.exp(float(query @ c) / TAU) for c in negatives)
        losses, weights = 0.0, 0.0
        for p in range(len(ids)):
            if p == i or ids[p] != ids[i]:
                continue
            above = math.exp(float(query @ bank[p]) / TAU)
            held = [a == b and a != -1 for a, b in zip(granularities[i], granularities[p], strict=True)]
            weight = sum(held) / len(held) if weighted else 1.0
            losses += weight * -math.log(above / (above + below))
            weights += weight
        anchors += losses / weights
    return anchors / len(indices)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_the_loss_is_its_equation_written_as_loops(scene, weighted: bool, keep: bool) -> None:
    features, labels, f, batch = scene
    if not weighted:
        labels = Labels(labels.ids, {"granularities": torch.as_tensor(labels.ids)[:, None]})
    method = filled(hcl(outliers="negative" if keep else "drop"), features, labels)
    for _ in range(2):  # also after the memory has moved: centroids follow it
        bank = method.instances.rows.clone()
        ours = total(method.loss({"feature": f}, batch))
        theirs = literal_loss(f, bank, labels, batch.indices, weighted=weighted, keep=keep)
        assert float(ours) == pytest.approx(theirs, rel=1e-9)
        method.after_step({"feature": f}, batch)
    assert not torch.equal(bank, F.normalize(features, dim=1))


def test_one_granularity_weighs_all_positives_alike(scene) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)
    single = Labels(labels.ids, {"granularities": ids[:, None]})
    mgce = filled(hcl(**HCL_ONLY), features, single)
    weight = co_association(ids[batch.indices, None], ids[:, None])
    assert torch.equal(weight, (ids[batch.indices, None] == ids).float())
    ours = total(mgce.loss({"feature": f}, batch))
    assert float(ours) == pytest.approx(
        literal_loss(f, mgce.instances.rows, single, batch.indices, weighted=False, keep=True), rel=1e-9
    )


@pytest.mark.parametrize("normalise", [True, False])
def test_equal_labelings_at_all_granularities_give_the_loss_of_one(scene, normalise: bool) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)[:, None]
    losses = []
    for copies in (1, 3):
        same = Labels(labels.ids, {"granularities": ids.repeat(1, copies)})
        method = filled(hcl(normalise_weights=normalise), features, same)
        losses.append(total(method.loss({"feature": f}, batch)))
    assert torch.equal(*losses)
    several = filled(hcl(normalise_weights=normalise), features, labels)
    assert not torch.isclose(losses[0], total(several.loss({"feature": f}, batch)))


def test_a_noisy_positive_of_low_priority_moves_the_loss_less(scene, generator) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)
    anchor = batch.indices[:1]
    mate = int(torch.nonzero((ids == ids[anchor]) & (torch.arange(60) != anchor)).flatten()[0])
    noise = unit(generator, 1, DIM)[0]
    changes = []
    for held in (3, 2, 1):  # in how many of the granularities the pair is
        granularities = ids[:, None].repeat(1, 3)
        granularities[mate, : 3 - held] = -1
        graded = Labels(labels.ids, {"granularities": granularities})
        one = batch_of(anchor, graded)
        clean = filled(hcl(cluster_memory="momentum"), features, graded)  # the same centroids before and after
        before = total(clean.loss({"feature": f[:1]}, one))
        clean.instances.rows[mate] = noise
        changes.append(abs(float(total(clean.loss({"feature": f[:1]}, one)) - before)))
    assert changes[0] > changes[1] > changes[2] > 0


def test_with_equal_members_and_no_outlier_it_is_the_cross_entropy_of_cluster_contrast(scene, generator) -> None:
    _, _, f, batch = scene
    ids = torch.arange(60) % CLUSTERS
    features = unit(generator, CLUSTERS, DIM)[ids]
    labels = Labels(ids.numpy(), {"granularities": splits(ids, generator)})
    batch = batch_of(batch.indices, labels)
    ours = total(filled(hcl(), features, labels).loss({"feature": f}, batch))
    torch.testing.assert_close(ours, F.cross_entropy(f @ features[:CLUSTERS].T / TAU, batch.targets))


@pytest.mark.parametrize("hybrid", ["pair", "sum", "cluster"])
@pytest.mark.parametrize("cluster_memory", ["dynamic", "momentum"])
def test_no_gradient_reaches_a_memory(scene, hybrid: str, cluster_memory: str) -> None:
    features, labels, f, batch = scene
    method = filled(hcl(hybrid=hybrid, cluster_memory=cluster_memory), features, labels)
    banks = [method.instances.rows, *([method.centroids.rows] if cluster_memory == "momentum" else [])]
    query = f.clone().requires_grad_()
    for bank in banks:
        bank.requires_grad_()
    total(method.loss({"feature": query}, batch)).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
    assert all(bank.grad is None for bank in banks)


@pytest.mark.parametrize("hybrid", ["pair", "sum"])
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 0, 1, 1, 2, 2], id="one positive each"),
        pytest.param([0, 0, 0, 0, 0, 0], id="one cluster, no negative"),
        pytest.param([0, 0, 0, 1, 1, 2], id="a cluster of one image"),
    ],
)
def test_loss_and_gradient_stay_finite_in_degenerate_epochs(ids: list[int], hybrid: str, generator) -> None:
    labels = Labels(np.array(ids), {"granularities": torch.tensor(ids)[:, None]})
    method = filled(hcl(hybrid=hybrid), unit(generator, 6, DIM), labels)
    query = unit(generator, 6, DIM).requires_grad_()
    loss = total(method.loss({"feature": query}, batch_of(torch.arange(6), labels)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_an_image_alone_in_its_cluster_is_drawn_to_its_own_row(scene, generator) -> None:
    ids = torch.tensor([0, 0, 0, 1, 1, 2])
    labels = Labels(ids.numpy(), {"granularities": ids[:, None]})
    features, f = unit(generator, 6, DIM), unit(generator, 1, DIM)
    method = filled(hcl(), features, labels)
    centroids = torch.stack([F.normalize(features[ids == k].mean(0), dim=0) for k in range(3)])
    ours = total(method.loss({"feature": f}, batch_of(torch.tensor([5]), labels)))
    torch.testing.assert_close(ours, F.cross_entropy(f @ centroids.T / TAU, torch.tensor([2])))


@pytest.mark.parametrize("hybrid", ["pair", "sum"])
def test_the_loss_does_not_depend_on_how_clusters_are_numbered(scene, hybrid: str, generator) -> None:
    features, labels, f, batch = scene
    renamed = torch.randperm(CLUSTERS, generator=generator)
    ids = torch.as_tensor(labels.ids)
    other = Labels(
        torch.where(ids >= 0, renamed[ids], -1).numpy(),
        {"granularities": torch.where(labels.extra["granularities"] >= 0, labels.extra["granularities"] + 7, -1)},
    )
    losses = []
    for given in (labels, other):
        method = filled(hcl(hybrid=hybrid), features, given)
        losses.append(total(method.loss({"feature": f}, batch_of(batch.indices, given))))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)


def test_entries_number_the_kept_outliers_after_the_clusters() -> None:
    labels = torch.tensor([-1, 1, 0, -1, 1])
    assert memory_entries(labels, keep_outliers=True).tolist() == [2, 1, 0, 3, 1]
    assert memory_entries(labels, keep_outliers=False).tolist() == [-1, 1, 0, -1, 1]
    assert memory_entries(torch.tensor([0, 1, 0]), keep_outliers=True).tolist() == [0, 1, 0]


@pytest.mark.parametrize("outliers", ["negative", "drop"])
def test_the_sum_adds_the_loss_over_all_instances_and_the_cross_entropy_over_the_entries(scene, outliers: str) -> None:
    features, labels, f, batch = scene
    method = filled(hcl(hybrid="sum", outliers=outliers), features, labels)
    terms = method.loss({"feature": f}, batch)
    ids, granularities = torch.as_tensor(labels.ids), labels.extra["granularities"]
    similarity = torch.exp(f @ F.normalize(features, dim=1).T / TAU)
    keep = outliers == "negative"
    anchors = []
    for row, i in zip(similarity, batch.indices.tolist(), strict=True):
        below = row[(ids != ids[i]) & (keep | (ids >= 0))].sum()
        mates = [p for p in range(60) if p != i and ids[p] == ids[i]]
        weights = torch.stack(
            [(granularities[i] == granularities[p]).double()[granularities[i] >= 0].sum() for p in mates]
        )
        losses = torch.stack([-torch.log(row[p] / (row[p] + below)) for p in mates])
        anchors.append((weights * losses).sum() / weights.sum())
    torch.testing.assert_close(terms["instance"], torch.stack(anchors).mean())
    centroids = torch.stack([features[ids == k].mean(0) for k in range(CLUSTERS)])
    entries = torch.cat([centroids, features[ids < 0]]) if keep else centroids
    expected = F.cross_entropy(f @ F.normalize(entries, dim=1).T / TAU, batch.targets)
    torch.testing.assert_close(terms["cluster"], expected)
    alone = filled(hcl(hybrid="cluster", outliers=outliers), features, labels).loss({"feature": f}, batch)
    assert torch.equal(alone["cluster"], terms["cluster"])


def test_without_normalisation_the_weights_are_averaged_over_the_positives() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    weights = torch.tensor([[0.5, 0.0, 0.25], [0.0, 1.0, 1.0]])
    assert float(weighted_mean(losses, weights, normalise=True)) == pytest.approx((1.5 / 0.75 + 12 / 2) / 2)
    assert float(weighted_mean(losses, weights, normalise=False)) == pytest.approx((1.5 / 2 + 12 / 2) / 2)


def test_the_image_itself_is_a_positive_only_when_it_is_alone() -> None:
    entries, anchors = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 2])
    itself = anchors[:, None] == torch.arange(4)
    weights = positive_weights(torch.full((2, 4), 0.5), entries[anchors][:, None] == entries, itself)
    assert weights.tolist() == [[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_pair_losses_do_not_overflow(scale: float, generator) -> None:
    positives = (scale * torch.randn(3, 4, generator=generator)).requires_grad_()
    negatives = (scale * torch.randn(3, 5, generator=generator)).requires_grad_()
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0] = True
    losses = pair_losses(positives, negatives, excluded)
    gradients = torch.autograd.grad(losses.sum(), [positives, negatives])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(losses).all()
    assert (losses[0] == 0).all()
