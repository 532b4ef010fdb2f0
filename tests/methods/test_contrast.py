"""Cluster Contrast and HHCL by the equations of docs/methods/cluster_contrast.md and docs/methods/hhcl.md."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Config
from core.data import Batch, Labels
from core.memory import CentroidMemory, SlotMemory
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.hhcl.method import HHCL
from methods.hhcl.method import Settings as HHCLSettings
from pipeline.settings import resolve_run
from reports.published import rows
from tests.methods.draws import unit

CLUSTERS, DIM, TAU, M = 7, 16, 0.05, 0.1


def test_the_published_numbers_of_cluster_contrast_stand_beside_the_pooling_they_were_made_with() -> None:
    pooled = set()
    for row in rows("cluster_contrast"):
        if row.figure("mAP") is not None:
            run = resolve_run(f"cluster_contrast-{row.variant}", row.dataset, "published", backbone=row.backbone)
            pooled.add((row.backbone, run.config.backbone.pooling))
    assert pooled == {("resnet50", "gem"), ("resnet50_ibn", "avg")}
    mean_average = {row.variant: row.figure("mAP") for row in rows("cluster_contrast") if row.dataset == "market1501"}
    assert mean_average["gem"] == 82.1
    assert mean_average["sequential"] is None


class Features:
    """Stands in for the training data: features are all that these methods read of it."""

    def __init__(self, features: Tensor) -> None:
        self._features = features

    def features(self) -> Tensor:
        return self._features


def hhcl(**settings: object) -> HHCL:
    return HHCL(Config(settings=HHCLSettings(**settings)), torch.nn.Identity(), 1)  # type: ignore[arg-type]


def contrast(**settings: object) -> ClusterContrast:
    config = Config(settings=ClusterContrastSettings(**settings))
    return ClusterContrast(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def filled(method, features: Tensor, labels: Tensor):
    method.start_epoch(Labels(labels.numpy()), Features(features), torch.Generator().manual_seed(0))
    return method


def batch_of(targets: Tensor) -> Batch:
    return Batch([], torch.arange(len(targets)), targets, None, {}, 0)


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Batch]:
    """60 clustered features with outliers, and a batch with uneven classes of which some are absent."""
    labels = torch.randint(-1, CLUSTERS, (60,), generator=generator)
    labels[:CLUSTERS] = torch.arange(CLUSTERS)
    targets = torch.tensor([2, 0, 2, 5, 2, 0, 5, 5, 1])
    return unit(generator, 60, DIM), labels, unit(generator, len(targets), DIM), batch_of(targets)


def plain_nll(f: Tensor, bank: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy spelled out."""
    score = torch.exp(f @ bank.T / TAU)
    return -torch.log(score[torch.arange(len(f)), targets] / score.sum(1)).mean()


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def test_released_loss_is_half_the_hard_and_a_quarter_of_the_mean_cross_entropy(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(), features, labels)
    for _ in range(2):  # after an update the two memories differ
        expected = 0.5 * plain_nll(f, method.hard.rows, batch.targets)
        expected = expected + 0.25 * plain_nll(f, method.mean.rows, batch.targets)
        torch.testing.assert_close(total(method.loss({"feature": f}, batch)), expected, rtol=0, atol=1e-6)
        method.after_step({"feature": f}, batch)
    assert not torch.equal(method.hard.rows, method.mean.rows)


@pytest.mark.parametrize("hard_memory", ["momentum", "slots"])
def test_gradient_is_that_of_a_frozen_memory_and_the_memory_has_none(scene, hard_memory: str) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(hard_memory=hard_memory, slots=3), features, labels)
    rows = method.hard.slots if isinstance(method.hard, SlotMemory) else method.hard.rows
    query = f.clone().requires_grad_()
    total(method.loss({"feature": query}, batch)).backward()
    assert query.grad is not None
    for bank in (rows, method.mean.rows):
        assert bank.grad is None
        assert not bank.requires_grad
    if hard_memory == "momentum":
        frozen = f.clone().requires_grad_()
        loss = 0.5 * F.cross_entropy(frozen @ rows.T / TAU, batch.targets)
        loss = loss + 0.25 * F.cross_entropy(frozen @ method.mean.rows.T / TAU, batch.targets)
        loss.backward()
        torch.testing.assert_close(query.grad, frozen.grad)


def test_released_update_takes_the_least_similar_sample_and_the_batch_mean(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(), features, labels)
    hard, mean = method.hard.rows.clone(), method.mean.rows.clone()
    method.after_step({"feature": f}, batch)
    for y in range(CLUSTERS):
        mine = f[batch.targets == y]
        if len(mine) == 0:
            assert torch.equal(method.hard.rows[y], hard[y])
            assert torch.equal(method.mean.rows[y], mean[y])
            continue
        hardest = mine[(mine @ hard[y]).argmin()]
        torch.testing.assert_close(method.hard.rows[y], F.normalize(M * hard[y] + (1 - M) * hardest, dim=0))
        torch.testing.assert_close(method.mean.rows[y], F.normalize(M * mean[y] + (1 - M) * mine.mean(0), dim=0))


def test_both_released_memories_start_as_the_centroids_so_their_losses_are_equal(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(), features, labels)
    centroids = torch.stack([F.normalize(features[labels == c].mean(0), dim=0) for c in range(CLUSTERS)])
    torch.testing.assert_close(method.hard.rows, centroids)
    torch.testing.assert_close(method.mean.rows, centroids)
    terms = method.loss({"feature": f}, batch)
    torch.testing.assert_close(terms["hard"] / 0.5, terms["mean"] / 0.25)


def test_without_the_hard_memory_it_is_cluster_contrast_with_batch_mean_update(scene) -> None:
    features, labels, f, batch = scene
    reduced = filled(hhcl(w_hard=0.0, w_mean=1.0), features, labels)
    baseline = filled(contrast(update="mean"), features, labels)
    sequential = filled(contrast(update="sequential"), features, labels)
    for _ in range(3):
        ours, theirs = (total(m.loss({"feature": f}, batch)) for m in (reduced, baseline))
        assert torch.equal(ours, theirs)
        for method in (reduced, baseline, sequential):
            method.after_step({"feature": f}, batch)
        assert torch.equal(reduced.mean.rows, baseline.memory.rows)
    assert not torch.allclose(baseline.memory.rows, sequential.memory.rows)


def test_paper_variant_takes_the_hardest_slot_of_every_cluster(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(hard_memory="slots", slots=4), features, labels)
    similarity = torch.einsum("bd,ckd->bck", f, method.hard.slots)
    scores = torch.empty(len(f), CLUSTERS, dtype=f.dtype)
    for i, y in enumerate(batch.targets.tolist()):
        for c in range(CLUSTERS):
            scores[i, c] = similarity[i, c].min() if c == y else similarity[i, c].max()
    expected = 0.5 * F.cross_entropy(scores / TAU, batch.targets)
    torch.testing.assert_close(method.loss({"feature": f}, batch)["hard"], expected)


def test_paper_variant_with_one_slot_at_the_centroid_has_equal_terms(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(hard_memory="slots", slots=1), features, labels)
    method.hard = SlotMemory(method.mean.rows[:, None].clone())
    terms = method.loss({"feature": f}, batch)
    torch.testing.assert_close(terms["hard"], terms["mean"])


def test_paper_variant_overwrites_the_first_slots_with_the_batch_and_leaves_the_rest(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hhcl(hard_memory="slots", slots=4), features, labels)
    before = method.hard.slots.clone()
    method.after_step({"feature": f}, batch)
    for y in range(CLUSTERS):
        mine = f[batch.targets == y]
        assert torch.equal(method.hard.slots[y, : len(mine)], mine)
        assert torch.equal(method.hard.slots[y, len(mine) :], before[y, len(mine) :])


@pytest.mark.parametrize(
    "method",
    [hhcl(), hhcl(hard_memory="slots", slots=4), *(contrast(update=u) for u in ("sequential", "hardest", "mean"))],
)
def test_memory_rows_keep_unit_norm_through_many_updates(scene, method, generator: torch.Generator) -> None:
    features, labels, _, batch = scene
    method = filled(method, features, labels)
    for _ in range(50):
        method.after_step({"feature": unit(generator, len(batch.targets), DIM)}, batch)
    banks = [method.memory.rows] if isinstance(method, ClusterContrast) else [method.mean.rows]
    if isinstance(method, HHCL):
        banks.append(method.hard.slots if isinstance(method.hard, SlotMemory) else method.hard.rows)
    for bank in banks:
        torch.testing.assert_close(bank.norm(dim=-1), torch.ones_like(bank[..., 0]), rtol=0, atol=1e-5)


def test_sequential_update_applies_the_second_sample_to_the_result_of_the_first(scene) -> None:
    features, labels, _, _ = scene
    method = filled(contrast(), features, labels)
    entry = method.memory.rows[3].clone()
    first, second = unit(torch.Generator().manual_seed(9), 2, DIM)
    method.after_step({"feature": torch.stack([first, second])}, batch_of(torch.tensor([3, 3])))
    once = F.normalize(M * entry + (1 - M) * first, dim=0)
    torch.testing.assert_close(method.memory.rows[3], F.normalize(M * once + (1 - M) * second, dim=0))


@pytest.mark.parametrize("uses_camera", [True, False])
def test_batches_hold_no_outlier_and_prefer_other_cameras_only_when_told(uses_camera: bool) -> None:
    labels = np.repeat(np.arange(8), 10)
    labels[::7] = -1
    cameras = np.tile([0] * 8 + [1, 2], 8)

    class Data:
        def cameras(self, use: str) -> np.ndarray:
            assert uses_camera, "cameras were read although the sampler must not use them"
            return cameras

    config = Config(settings=HHCLSettings())
    sampler = dataclasses.replace(config.sampler, identities=4, instances=4, uses_camera=uses_camera)
    method = HHCL(dataclasses.replace(config, sampler=sampler), torch.nn.Identity(), 1)  # type: ignore[arg-type]
    assert ("sampler" in HHCL.needs(method.config).cameras) is uses_camera
    rng = np.random.default_rng(0)
    drawn = [rows for _ in range(5) for rows in method.batches(Labels(labels), Data(), rng)]  # type: ignore[arg-type]
    groups = [group for rows in drawn for group in rows.reshape(-1, 4)]
    assert all((labels[group] >= 0).all() for group in groups)
    assert all(len(set(labels[group])) == 1 for group in groups)
    other = [(cameras[group[1:]] != cameras[group[0]]).all() for group in groups]
    assert all(other) is uses_camera


def test_an_unknown_update_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="hardest"):
        CentroidMemory(torch.eye(3), 0.1, "average")
    with pytest.raises(ValueError, match="momentum or slots"):
        HHCLSettings(hard_memory="bank")
