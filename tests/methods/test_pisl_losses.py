"""PISL's consistency scores and losses, against literal loops: docs/methods/pisl.md, "Score" and "Refined labels"."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import part_losses, proxy_losses
from methods.pisl import consistency, losses
from tests.methods.draws import normal, unit
from tests.methods.pisl_small import PARTS, D

pytestmark = pytest.mark.usefixtures("one_thread")


# Scores


def literal_mmd_score(whole: Tensor, part: Tensor) -> float:
    """exp(-MMD^2) of the distances above the diagonal, pair by pair."""
    k = len(whole)
    x = [float(whole[i, j]) for i in range(k) for j in range(i + 1, k)]
    y = [float(part[i, j]) for i in range(k) for j in range(i + 1, k)]

    def mean_kernel(a: list[float], b: list[float]) -> float:
        sigmas = (0.01, 0.1, 1, 5, 10)
        return float(np.mean([math.exp(-((p - q) ** 2) / (2 * s)) for p in a for q in b for s in sigmas]))

    return math.exp(-(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)))


def test_scores_are_those_of_the_definition_image_by_image(generator: torch.Generator) -> None:
    features, parts, k = unit(generator, 12, D).float(), unit(generator, 12, 2, D).float(), 5
    raw = torch.zeros(12, 2)
    jaccard, distance = torch.zeros(12, 2), torch.zeros(12, 2)
    for n in range(12):
        for p in range(2):
            sides, near = [], []
            for space in (features, parts[:, p]):
                far = (space - space[n]).norm(dim=1)
                order = [i for i in far.argsort().tolist() if i != n][:k]
                matrix = torch.tensor([[float((space[i] - space[j]).norm()) for j in order] for i in order])
                sides.append(matrix / matrix.max())
                near.append(set(order))
            raw[n, p] = literal_mmd_score(*sides)
            jaccard[n, p] = len(near[0] & near[1]) / len(near[0] | near[1])
            d2 = float((sides[0] - sides[1]).square().sum())
            released_kernels = sum(math.exp(-d2 / (2 * s)) for s in consistency.RELEASED_BANDWIDTHS)
            distance[n, p] = min(1.0, (19 - released_kernels) / k)
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    found = {s: consistency.consistency_scores(features, parts, k, s) for s in ("mmd", "jaccard", "released")}
    torch.testing.assert_close(found["mmd"], expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(found["jaccard"], jaccard)
    torch.testing.assert_close(found["released"], distance, rtol=0, atol=1e-4)


def test_a_part_with_the_geometry_of_the_whole_scores_one_and_perturbing_it_lowers_the_score(
    generator: torch.Generator,
) -> None:
    features = unit(generator, 40, D)
    lists = torch.stack([torch.randperm(40, generator=generator)[:20] for _ in range(40)])
    whole = consistency.neighbour_distances(features, lists)
    assert torch.equal(consistency.mmd_score(whole, whole), torch.ones(40).double())
    before = torch.ones(40).double()
    for power in (1.5, 3.0, 6.0):
        score = consistency.mmd_score(whole, whole**power)
        assert (score < before).all()
        before = score
    rotation = torch.linalg.qr(normal(generator, D, D)).Q
    parts = torch.stack([features @ rotation, unit(generator, 40, D)], dim=1)
    scores = consistency.consistency_scores(features, parts, 20, "mmd")
    assert (scores[:, 0] > scores[:, 1]).all()
    assert scores.min() == 0
    assert scores.max() == 1
    assert torch.equal(consistency.stretch(torch.full((4, 2), 0.7)), torch.ones(4, 2))


def test_the_released_score_is_zero_for_equal_geometry_and_grows_with_disagreement() -> None:
    whole = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(consistency.released_score(whole, whole), torch.zeros(3).double())
    assert len(consistency.RELEASED_BANDWIDTHS) == 19
    before = torch.zeros(3).double()
    for d2, expected in ((0.01, 0.22), (5.0, 0.40)):  # measured on the official function at k = 20
        other = whole + math.sqrt(d2 / 400)
        score = consistency.released_score(whole, other)
        assert score[0].item() == pytest.approx(expected, abs=0.03)
        assert (score > before).all()
        before = score


# Losses


def test_the_part_loss_is_cross_entropy_at_one_and_distance_to_uniform_at_zero(generator: torch.Generator) -> None:
    logits, targets = normal(generator, 5, PARTS, 7), torch.tensor([0, 3, 6, 2, 2])
    loss = part_losses.consistency_smoothed_cross_entropy
    ones, zeros = torch.ones(5, PARTS), torch.zeros(5, PARTS)
    expected = torch.stack([F.cross_entropy(logits[:, p], targets) for p in range(PARTS)]).mean()
    torch.testing.assert_close(loss(logits, targets, ones), expected)
    p = logits.softmax(dim=2)
    kl = (torch.log(torch.tensor(1 / 7)) - p.log()).sum(dim=2).mean() / 7
    torch.testing.assert_close(loss(logits, targets, zeros), kl)
    assert kl > 0
    assert loss(torch.zeros(5, PARTS, 7), targets, zeros).abs() < 1e-6


def test_with_all_weight_on_its_own_label_the_global_loss_is_cross_entropy_and_parts_get_no_gradient(
    generator: torch.Generator,
) -> None:
    logits = normal(generator, 5, 7).requires_grad_()
    part_logits = normal(generator, 5, PARTS, 7).requires_grad_()
    targets, scores = torch.tensor([0, 3, 6, 2, 2]), torch.rand(5, PARTS)
    whole = part_losses.refined_cross_entropy(logits, part_logits, targets, scores, 1.0)
    torch.testing.assert_close(whole, F.cross_entropy(logits, targets))
    refined = part_losses.refined_cross_entropy(logits, part_logits, targets, scores, 0.5)
    assert refined != whole
    refined.backward()
    assert part_logits.grad is None


@pytest.mark.parametrize("frozen", [True, False])
def test_the_part_contrast_weights_the_easier_part_more_and_counts_the_image_itself(
    generator: torch.Generator, frozen: bool
) -> None:
    parts, targets = normal(generator, 6, PARTS, D), torch.tensor([0, 1, 0, 2, 1, 0])
    parts.requires_grad_()
    part_losses = []
    for p in range(PARTS):
        f = F.normalize(parts[:, p], dim=1)
        per_image = []
        for i in range(6):
            scores = torch.exp(f[i] @ f.T / 0.07)
            positives = [j for j in range(6) if targets[j] == targets[i]]
            per_image.append(-torch.stack([torch.log(scores[j] / scores.sum()) for j in positives]).mean())
        part_losses.append(torch.stack(per_image).mean())
    stacked = torch.stack(part_losses)
    weights = torch.exp(-stacked) / torch.exp(-stacked).sum()
    expected = ((weights.detach() if frozen else weights) * stacked).sum()
    found = losses.part_contrast(parts, targets, 0.07, frozen)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, parts), torch.autograd.grad(expected, parts))


@pytest.mark.parametrize("negatives", [3, 50])
def test_the_camera_loss_is_the_definition_image_by_image_even_with_few_negatives(
    generator: torch.Generator, negatives: int
) -> None:
    features, proxies = normal(generator, 9, D).requires_grad_(), unit(generator, 8, D)
    clusters, cameras = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]), torch.tensor([0, 1, 2, 0, 1, 0, 2, 0])
    targets, seen_by = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0]), torch.tensor([0, 2, 0, 1, 0, 1, 0, 3, 1])
    expected = features.new_zeros(())
    for i in range(9):
        logits = F.normalize(features[i], dim=0) @ proxies.T / 0.07
        positive = [u for u in range(8) if clusters[u] == targets[i] and cameras[u] != seen_by[i]]
        others = sorted((u for u in range(8) if clusters[u] != targets[i]), key=lambda u: -logits[u].item())
        if positive:
            log_p = F.log_softmax(logits[positive + others[:negatives]], dim=0)
            expected = expected - log_p[: len(positive)].mean()
    found = proxy_losses.camera_contrast(
        features,
        targets[:, None] == clusters,
        seen_by[:, None] == cameras,
        proxies,
        0.07,
        negatives,
    )
    torch.testing.assert_close(found, expected / 9)
    gradient, wanted = (torch.autograd.grad(x, features)[0] for x in (found, expected / 9))
    torch.testing.assert_close(gradient, wanted)
    assert torch.equal(gradient[6], torch.zeros(D).double()), "cluster 3 has one camera, that of image 6"
