"""Shared losses against literal loops, and in reduced precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import losses


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def literal_cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """targets (B, C): probabilities."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        partition = sum(math.exp(z) for z in row)
        total -= sum(q * (z - math.log(partition)) for z, q in zip(row, target, strict=True))
    return total / len(logits)


def literal_hardest_distances(features: Tensor, labels: Tensor) -> list[tuple[float, float]]:
    """(farthest positive, nearest negative) of every anchor."""
    pairs = []
    for i in range(len(labels)):
        distance = [float((features[i] - other).norm()) for other in features]
        positives = [d for j, d in enumerate(distance) if labels[j] == labels[i]]
        negatives = [d for j, d in enumerate(distance) if labels[j] != labels[i]]
        pairs.append((max(positives), min(negatives)))
    return pairs


# P x K, uneven classes, classes of one image.
LABELS = [[0, 0, 1, 1, 2, 2], [4, 0, 4, 4, 0, 9, 0, 4], [0, 1, 2]]


@pytest.mark.parametrize(("batch", "clusters"), [(1, 3), (7, 2), (12, 30)])
def test_cluster_nll_is_the_mean_cross_entropy_of_scaled_similarities(batch: int, clusters: int) -> None:
    features = F.normalize(random(batch, 8, seed=1), dim=1).requires_grad_()
    bank = F.normalize(random(clusters, 8, seed=2), dim=1).requires_grad_()
    targets = torch.arange(batch) % clusters
    loss = losses.cluster_nll(features, bank, targets, 0.05)
    expected = literal_cross_entropy(features @ bank.T / 0.05, F.one_hot(targets, clusters))
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert features.grad is not None
    assert bank.grad is None


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_smoothing_spreads_epsilon_over_all_classes(epsilon: float) -> None:
    logits, targets = random(6, 5), torch.tensor([0, 1, 4, 4, 2, 3])
    mixed = (1 - epsilon) * F.one_hot(targets, 5).double() + epsilon / 5
    expected = literal_cross_entropy(logits, mixed)
    actual = losses.smoothed_cross_entropy(logits, targets, epsilon)
    assert float(actual) == pytest.approx(expected, rel=1e-10)


def test_soft_cross_entropy_follows_its_targets_and_gives_them_no_gradient() -> None:
    logits = random(6, 5).requires_grad_()
    scores = random(6, 5, seed=1).requires_grad_()
    targets = scores.softmax(dim=1)
    loss = losses.soft_cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(literal_cross_entropy(logits, targets), rel=1e-10)
    loss.backward()
    assert logits.grad is not None
    assert scores.grad is None
    classes = torch.arange(6) % 5
    hard = losses.soft_cross_entropy(logits, F.one_hot(classes, 5))
    torch.testing.assert_close(hard, F.cross_entropy(logits, classes))


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_batch_hard_triplet_equals_the_loop_over_anchors(labels: list[int], margin: float) -> None:
    features = random(len(labels), 5)
    pairs = literal_hardest_distances(features, torch.tensor(labels))
    expected = sum(max(0.0, margin + p - n) for p, n in pairs) / len(pairs)
    actual = losses.batch_hard_triplet(features, torch.tensor(labels), margin)
    assert float(actual) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_softmax_triplet_equals_the_loop_over_anchors(labels: list[int]) -> None:
    features = random(len(labels), 5)
    pairs = literal_hardest_distances(features, torch.tensor(labels))
    expected = sum(-math.log(math.exp(n) / (math.exp(n) + math.exp(p))) for p, n in pairs)
    actual = losses.softmax_triplet(features, torch.tensor(labels))
    assert float(actual) == pytest.approx(expected / len(pairs), rel=1e-9)


@pytest.mark.parametrize("loss", [losses.batch_hard_triplet, losses.softmax_triplet])
def test_a_triplet_batch_of_one_class_or_of_copies_gives_a_finite_gradient(loss) -> None:
    for features, labels in [
        (random(4, 5), torch.zeros(4)),
        (torch.ones(4, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1])),
    ]:
        features.requires_grad_()
        loss(features, labels).backward()
        assert torch.isfinite(features.grad).all()
    assert float(loss(random(4, 5), torch.zeros(4))) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_compute_in_float32_or_wider_with_and_without_autocast(dtype: torch.dtype) -> None:
    features = F.normalize(random(8, 16), dim=1).to(dtype)
    bank = F.normalize(random(4, 16, seed=1), dim=1).to(dtype)
    targets = torch.arange(8) % 4
    logits = random(8, 4, seed=2).to(dtype)
    soft = random(8, 4, seed=3).softmax(dim=1).to(dtype)
    terms = [
        lambda x: losses.cluster_nll(x(features), x(bank), targets, 0.05),
        lambda x: losses.smoothed_cross_entropy(x(logits), targets),
        lambda x: losses.soft_cross_entropy(x(logits), x(soft)),
        lambda x: losses.batch_hard_triplet(x(features), targets),
        lambda x: losses.softmax_triplet(x(features), targets),
    ]
    for term, enabled in itertools.product(terms, (True, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            actual = term(lambda tensor: tensor)
        expected = term(Tensor.double)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
