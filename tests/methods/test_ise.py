"""ISE (docs/methods/ise.md): its properties; the numbers of the official code are in tests/golden/ise_*.npz."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Config, Sampler, Schedule
from core.data import Batch
from core.memory import CentroidMemory
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.ise.method import ISE, Settings
from methods.ise.supports import degree, label_preserving, support_samples
from pipeline import train
from pipeline.settings import resolve_run
from tests.conftest import TinyWorld
from tests.methods.draws import unit

CLUSTERS, DIM, K, EPOCHS = 7, 16, 3, 10
GROUPED = torch.tensor([2, 0, 5, 6]).repeat_interleave(K)
MIXED = GROUPED[torch.tensor([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11])]
UNEVEN = torch.tensor([2, 2, 2, 2, 0, 0, 0, 5, 5, 6, 6, 6])


def ise(rows: Tensor, **settings: object) -> ISE:
    own = Settings(**settings)  # type: ignore[arg-type]
    config = Config(own, sampler=Sampler(instances=K), schedule=Schedule(epochs=EPOCHS))
    method = ISE(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]
    method.memory = CentroidMemory(rows, own.momentum, own.update)
    return method


def contrast(rows: Tensor, **settings: object) -> ClusterContrast:
    own = ClusterContrastSettings(**settings)  # type: ignore[arg-type]
    method = ClusterContrast(Config(own), torch.nn.Identity(), 1)  # type: ignore[arg-type]
    method.memory = CentroidMemory(rows, own.momentum, own.update)
    return method


def batch_of(targets: Tensor, epoch: float = 6.5) -> Batch:
    return Batch([], torch.arange(len(targets)), targets, None, {}, epoch)


def literal(f: Tensor, g: Tensor, targets: Tensor, temperature: float, run: int) -> list[float]:
    """(B,) label-preserving losses, one image and one support at a time."""
    losses = []
    for i, y in enumerate(targets.tolist()):
        scores = [math.exp(float(f[i] @ g[j]) / temperature) for j in range(len(g))]
        positive = min(scores[j] for j in range(len(g)) if targets[j] == y)
        others = [scores[j] for j in range(len(g)) if targets[j] != y]
        if len(g) % run == 0 and len(others) % run == 0:
            others = [max(others[start : start + run]) for start in range(0, len(others), run)]
        losses.append(-math.log(positive / (positive + sum(others) + 1e-6) + 1e-6))
    return losses


@pytest.mark.parametrize("targets", [GROUPED, MIXED, UNEVEN], ids=["grouped", "mixed", "uneven"])
def test_the_label_preserving_loss_is_that_of_a_loop_over_images_and_runs(targets: Tensor, generator) -> None:
    """In the uneven batch all others count for exactly the anchors whose count fits no run."""
    f, g = unit(generator, 12, DIM), unit(generator, 12, DIM)
    expected = literal(f, g, targets, 0.6, K)
    fallen_back = {int((targets != y).sum()) % K != 0 for y in targets.tolist()}
    assert fallen_back == ({True, False} if targets is UNEVEN else {False})
    assert float(label_preserving(f, g, targets, 0.6, K)) == pytest.approx(sum(expected) / 12, abs=1e-12)
    plain = literal(f, g, targets, 0.6, 1)
    changed = [i for i in range(12) if expected[i] != plain[i]]
    assert changed == [i for i, y in enumerate(targets.tolist()) if int((targets != y).sum()) % K == 0]


def test_at_the_start_of_a_run_the_supports_are_the_samples_and_the_loss_is_cluster_contrasts(generator) -> None:
    rows, f, batch = unit(generator, CLUSTERS, DIM), unit(generator, 12, DIM), batch_of(MIXED, epoch=0)
    method, plain = ise(rows), contrast(rows, update="hardest", momentum=0.2)
    torch.testing.assert_close(method.supports(f, batch), f)
    cluster = method.loss({"feature": f}, batch)["cluster"]
    torch.testing.assert_close(cluster, plain.loss({"feature": f}, batch)["cluster"])
    for each in (method, plain):
        each.after_step({"feature": f}, batch)
    torch.testing.assert_close(method.memory.rows, plain.memory.rows)


def test_the_degree_grows_from_zero_to_a_half_and_a_step_is_at_most_a_quarter_of_the_way(generator) -> None:
    degrees = [degree(share / 20) for share in range(21)]
    assert degrees[0] == 0
    assert degrees == sorted(set(degrees))
    assert degrees[-1] == pytest.approx(0.5)
    rows, f = unit(generator, CLUSTERS, DIM), unit(generator, 12, DIM)
    batch = batch_of(MIXED, epoch=EPOCHS)
    g = ise(rows).supports(f, batch)
    near = rows[(f @ rows.T).scatter(1, MIXED[:, None], -torch.inf).argmax(dim=1)]
    torch.testing.assert_close(g, F.normalize(f + 0.25 * (near - rows[MIXED]), dim=1))
    towards = ise(rows, direction="towards", factor=1.0).supports(f, batch)
    torch.testing.assert_close(towards, F.normalize(f + 0.5 * near, dim=1))


@pytest.mark.parametrize("update", ["hardest", "sequential", "mean"])
def test_with_every_addition_off_loss_gradient_and_memory_are_cluster_contrasts_to_the_bit(
    update: str, generator
) -> None:
    rows, batch = unit(generator, CLUSTERS, DIM), batch_of(MIXED)
    method = ise(rows, update=update, supports_in_memory=False, lp_weight=0.0)
    plain = contrast(rows, update=update, momentum=0.2)
    for _ in range(2):
        f = unit(generator, 12, DIM)
        both = []
        for each in (method, plain):
            query = f.clone().requires_grad_()
            terms = each.loss({"feature": query}, batch)
            assert list(terms) == ["cluster"]
            terms["cluster"].backward()
            each.after_step({"feature": query.detach()}, batch)
            both.append((terms["cluster"].detach(), query.grad, each.memory.rows))
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_the_baseline_row_trains_to_cluster_contrasts_weights_to_the_bit(world: TinyWorld, tmp_path: Path) -> None:
    assignments = ("settings.update=hardest", "settings.momentum=0.2", "clustering.eps=0.4")
    alike = [word for assignment in assignments for word in ("--set", assignment)]
    assert train.main(world.train_arguments("ise-baseline", tmp_path / "ise")) == 0
    assert train.main(world.train_arguments("cluster_contrast", tmp_path / "plain", *alike)) == 0
    found = [torch.load(tmp_path / name / "weights/epoch_002.pt", weights_only=True) for name in ("ise", "plain")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_neighbour_is_never_the_own_row_even_where_that_is_most_similar(generator) -> None:
    rows = unit(generator, CLUSTERS, DIM)
    f = rows[MIXED]
    g = support_samples(f, rows, MIXED, 1e6, nearest=CLUSTERS - 1)  # so long a step that the direction is left
    direction = g.view(12, CLUSTERS - 1, DIM)
    others = F.normalize(rows[None] - f[:, None], dim=2)
    found = torch.einsum("ikd,icd->ikc", direction, others).argmax(dim=2)
    for i, y in enumerate(MIXED.tolist()):
        assert sorted(found[i].tolist()) == sorted(set(range(CLUSTERS)) - {y})
        similarity = (rows @ f[i])[found[i]]
        assert torch.equal(similarity, similarity.sort(descending=True).values), "nearest first"


def test_more_neighbours_than_there_are_give_each_other_cluster_once(generator) -> None:
    rows, f = unit(generator, 2, DIM), unit(generator, 4, DIM)
    targets = torch.tensor([0, 0, 1, 1])
    method = ise(rows, nearest=3)
    assert method.supports(f, batch_of(targets)).shape == (4, DIM)
    assert all(torch.isfinite(term) for term in method.loss({"feature": f}, batch_of(targets)).values())
    method.after_step({"feature": f}, batch_of(targets))


def test_the_label_preserving_loss_is_positive_and_with_two_classes_has_one_negative_each(generator) -> None:
    f, g = unit(generator, 2 * K, DIM), unit(generator, 2 * K, DIM)
    targets = torch.tensor([4, 1]).repeat_interleave(K)
    scores = torch.exp(f @ g.T / 0.6)
    same = targets[:, None] == targets
    positive, negative = scores.where(same, torch.inf).amin(dim=1), scores.where(~same, 0).amax(dim=1)
    expected = -torch.log(positive / (positive + negative + 1e-6) + 1e-6).mean()
    assert expected > 0
    torch.testing.assert_close(label_preserving(f, g, targets, 0.6, K), expected)


def test_the_order_of_whole_classes_changes_nothing_but_images_across_classes_change_the_runs(generator) -> None:
    """Groups by class depend on no order at all."""
    rows, f = unit(generator, CLUSTERS, DIM), unit(generator, 12, DIM)

    def terms(order: Tensor, **settings: object) -> dict[str, Tensor]:
        return ise(rows, **settings).loss({"feature": f[order]}, batch_of(GROUPED[order]))

    plain = terms(torch.arange(12))
    by_class = torch.arange(12).view(4, K)[torch.tensor([2, 0, 3, 1])].flatten()
    across = torch.randperm(12, generator=generator)
    for name, value in terms(by_class).items():
        torch.testing.assert_close(value, plain[name])
    torch.testing.assert_close(terms(across)["cluster"], plain["cluster"])
    assert abs(float(terms(across)["label_preserving"] - plain["label_preserving"])) > 1e-4
    for order in (torch.arange(12), by_class, across):
        torch.testing.assert_close(terms(order, groups="classes")["label_preserving"], plain["label_preserving"])


def test_a_sequential_memory_ends_with_the_supports_so_the_order_of_images_matters_there(generator) -> None:
    """All images first, then all supports."""
    rows, f, batch = unit(generator, CLUSTERS, DIM), unit(generator, 12, DIM), batch_of(MIXED)
    method = ise(rows, update="sequential", momentum=0.1)
    expected = rows.clone()
    for sample, y in zip([*f, *method.supports(f, batch)], [*MIXED.tolist()] * 2, strict=True):
        expected[y] = F.normalize(0.1 * expected[y] + 0.9 * sample, dim=0)
    method.after_step({"feature": f}, batch)
    torch.testing.assert_close(method.memory.rows, expected)


def test_an_image_alone_in_its_class_has_its_own_support_for_a_positive(generator) -> None:
    f, g = unit(generator, 4, DIM), unit(generator, 4, DIM)
    query = f.clone().requires_grad_()
    loss = label_preserving(query, g, torch.tensor([3, 1, 1, 1]), 0.6, 3)  # 4 is no multiple of 3: all others count
    (gradient,) = torch.autograd.grad(loss, query)
    alone = f[0].clone().requires_grad_()
    scores = torch.exp(alone @ g.T / 0.6)
    (expected,) = torch.autograd.grad(-torch.log(scores[0] / (scores[0] + scores[1:].sum() + 1e-6) + 1e-6), alone)
    torch.testing.assert_close(gradient[0], expected / 4)


def test_gradients_reach_the_samples_through_their_supports_and_nothing_else(generator) -> None:
    rows = unit(generator, CLUSTERS, DIM).requires_grad_()
    f = unit(generator, 12, DIM)
    assert torch.autograd.gradcheck(
        lambda query: support_samples(query, rows.detach(), MIXED, 0.2), f.clone().requires_grad_()
    )
    support_samples(f.requires_grad_(), rows, MIXED, 0.2).sum().backward()
    assert rows.grad is None
    assert f.grad is not None
    method = ise(rows)
    torch.stack(list(method.loss({"feature": f}, batch_of(MIXED)).values())).sum().backward()
    assert not method.memory.rows.requires_grad


def test_rows_keep_unit_length_and_those_of_absent_classes_their_bits(generator) -> None:
    for update in ("hardest", "sequential"):
        method = ise(unit(generator, CLUSTERS, DIM), update=update)
        before = method.memory.rows.clone()
        method.after_step({"feature": unit(generator, 12, DIM)}, batch_of(MIXED))
        torch.testing.assert_close(method.memory.rows.norm(dim=1), torch.ones(CLUSTERS, dtype=torch.float64))
        for y in range(CLUSTERS):
            assert torch.equal(before[y], method.memory.rows[y]) is (y not in MIXED)


def test_each_dataset_has_its_published_update_momentum_and_weight() -> None:
    """`--use-hard`, given in both commands, is ignored."""

    def own(dataset: str, name: str = "ise") -> tuple[object, ...]:
        config = resolve_run(name, dataset, "published").config
        settings, schedule = config.settings, config.schedule
        rule = (settings.update, settings.momentum, settings.lp_weight)
        return (*rule, config.clustering.eps, schedule.epochs, schedule.step)

    assert own("market1501") == ("hardest", 0.2, 0.1, 0.4, 70, 30)
    assert own("msmt17_v1") == own("msmt17_v2") == ("sequential", 0.1, 0.01, 0.7, 50, 20)
    assert own("msmt17_v1", "ise-interpolation_only")[2] == 0
    assert own("msmt17_v1", "ise-label_preserving_only")[2] == 0.01
