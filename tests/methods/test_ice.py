"""ICE (docs/methods/ice.md): losses, teacher and views; the official code's numbers are in tests/golden/ice_*.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.augment import normalise
from core.backbones.net import build
from core.config import Backbone, Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.memory import ProxyMemory, cluster_means
from core.rng import Streams
from methods.ice.losses import hard_instance, soft_consistency
from methods.ice.method import ICE, Settings
from pipeline import train
from pipeline.settings import resolve_run
from tests.conftest import TinyWorld
from tests.methods.draws import normal, unit

CLUSTERS, CAMERAS, DIM = 5, 3, 16
TARGETS = torch.tensor([2, 0, 2, 4, 0, 4, 2, 1])
CAMERAS_OF = torch.tensor([0, 1, 1, 0, 2, 0, 2, 1])


def ice(generator: torch.Generator, **settings: object) -> ICE:
    """With centroids and proxies of drawn features, ten of a cluster."""
    config = Config(Settings(**{"negatives": 4, **settings}))  # type: ignore[arg-type]
    method = ICE(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]
    features, labels = unit(generator, 10 * CLUSTERS, DIM), torch.arange(CLUSTERS).repeat(10)
    cameras = torch.arange(CAMERAS).repeat_interleave(CLUSTERS).repeat(4)[: len(labels)]
    method.centroids = cluster_means(features, labels)
    method.fix_proxies(ProxyMemory(features, labels, cameras, momentum=1.0))
    return method


def batch_of(order: Tensor | None = None) -> Batch:
    rows = torch.arange(len(TARGETS))
    return Batch([], rows, TARGETS, CAMERAS_OF, {}, 0, order=rows if order is None else order)


def outputs(generator: torch.Generator) -> dict[str, Tensor]:
    return {name: 3 * normal(generator, len(TARGETS), DIM) for name in ("online", "momentum", "weak")}


def test_consistency_is_zero_and_so_is_its_gradient_where_both_distributions_are_equal(generator) -> None:
    f = unit(generator, 8, DIM)
    query = f.clone().requires_grad_()
    loss = soft_consistency(query, f, f, 0.4)
    (gradient,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert soft_consistency(f, unit(generator, 8, DIM), f, 0.4) > 0.01


@pytest.mark.parametrize("count", [1, 4])
def test_the_hard_instance_loss_of_one_label_is_zero(count: int, generator) -> None:
    query = unit(generator, count, DIM).requires_grad_()
    loss = hard_instance(query, unit(generator, count, DIM), torch.full((count,), 3), 0.1)
    assert float(loss) == 0
    (gradient,) = torch.autograd.grad(loss, query)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_hard_instance_loss_takes_the_least_similar_positive_and_every_negative_of_uneven_rows(generator) -> None:
    """Rows of different counts of negatives too, which the released reshape would mix or refuse."""
    q, k = unit(generator, 8, DIM), unit(generator, 8, DIM)
    hardest, easiest = [], []
    for i, y in enumerate(TARGETS.tolist()):
        scores = k @ q[i] / 0.1
        positives = [float(scores[j]) for j in range(8) if TARGETS[j] == y]
        negatives = scores[y != TARGETS]
        for chosen, losses in ((min(positives), hardest), (max(positives), easiest)):
            row = torch.cat([torch.tensor([chosen], dtype=scores.dtype), negatives])
            losses.append(float(row.logsumexp(0) - chosen))
    assert len({int((y != TARGETS).sum()) for y in TARGETS}) > 1
    assert float(hard_instance(q, k, TARGETS, 0.1)) == pytest.approx(np.mean(hardest))
    assert np.mean(hardest) > np.mean(easiest)


def test_the_length_of_the_online_feature_changes_the_centroid_loss_alone(generator) -> None:
    method, output = ice(generator), outputs(generator)
    plain = method.loss(output, batch_of())
    longer = method.loss({**output, "online": 2 * output["online"]}, batch_of())
    assert list(plain) == ["centroid", "proxy", "instance", "consistency"]
    for name in plain:
        assert torch.isclose(plain[name], longer[name]).item() is (name != "centroid")


def test_a_released_centroid_is_shorter_than_one_unless_its_members_are_equal(generator) -> None:
    features, labels = unit(generator, 9, DIM), torch.tensor([0, 1, 2]).repeat(3)
    features[labels == 1] = features[3].clone()
    norms = cluster_means(features, labels).norm(dim=1)
    assert norms[1] == pytest.approx(1)
    assert (norms[[0, 2]] < 0.99).all()


def test_scaling_the_dimensions_of_the_proxies_changes_the_cosine_camera_loss_alone(generator) -> None:
    scale = 0.5 + torch.rand(DIM, generator=generator, dtype=torch.float64)
    output, batch = outputs(generator), batch_of()
    for similarity in ("columns", "cosine"):
        method = ice(generator, proxy_similarity=similarity)
        plain = method.loss(output, batch)["proxy"]
        method.proxies.rows *= scale
        method.fix_proxies(method.proxies)
        assert torch.isclose(method.loss(output, batch)["proxy"], plain).item() is (similarity == "columns")


def test_both_similarities_agree_where_proxies_are_signed_axes(generator) -> None:
    axes = torch.eye(DIM, dtype=torch.float64)[torch.randperm(DIM, generator=generator)]
    axes *= torch.where(torch.rand(DIM, generator=generator) < 0.5, -1.0, 1.0)[:, None]
    labels, cameras = torch.arange(DIM) // 2, torch.arange(DIM) % 2
    found = []
    for similarity in ("columns", "cosine"):
        method = ice(generator, proxy_similarity=similarity)
        method.fix_proxies(ProxyMemory(axes, labels, cameras, momentum=1.0))
        found.append(method.bank)
    torch.testing.assert_close(found[0], found[1])


def test_with_too_few_negatives_the_released_positives_count_twice_and_the_papers_once(generator) -> None:
    output = outputs(generator)
    q = F.normalize(output["online"], dim=1)
    for few in ("refilled", "excluded"):
        method = ice(generator, proxy_similarity="cosine", negatives=1000, few_negatives=few)
        same = method.proxies.same_cluster(TARGETS)
        counted = torch.exp(q @ method.bank.T / 0.07) * torch.where(same & (few == "refilled"), 2, 1)
        log_p = q @ method.bank.T / 0.07 - counted.sum(dim=1, keepdim=True).log()
        each = -torch.stack([log_p[i][same[i]].mean() for i in range(len(q))])
        expected = 0.5 * sum(each[camera == CAMERAS_OF].mean() for camera in range(CAMERAS))
        torch.testing.assert_close(method.loss(output, batch_of())["proxy"], expected)


def test_the_teachers_shuffled_rows_are_put_back_before_the_losses_read_them(generator) -> None:
    method, output = ice(generator), outputs(generator)
    order = torch.randperm(len(TARGETS), generator=generator)
    shuffled = {name: value[order] if name != "online" else value for name, value in output.items()}
    plain, put_back = method.loss(output, batch_of()), method.loss(shuffled, batch_of(order))
    assert not torch.equal(order, torch.arange(len(order)))
    assert all(torch.equal(plain[name], put_back[name]) for name in plain)


def test_with_every_addition_off_the_loss_is_a_smoothed_cross_entropy_to_the_bit(generator) -> None:
    method = ice(generator, proxy_weight=0.0, instance_weight=0.0, consistency_weight=0.0)
    output = outputs(generator)
    terms = method.loss(output, batch_of())
    logits = output["online"] @ method.centroids.T / 0.5
    assert list(terms) == ["centroid"]
    assert torch.equal(terms["centroid"], F.cross_entropy(logits, TARGETS, label_smoothing=0.1))


def test_without_the_camera_loss_its_cameras_are_not_asked_for() -> None:
    def cameras(name: str) -> frozenset[str]:
        return ICE.needs(resolve_run(name, "market1501", "published").config).cameras

    assert cameras("ice") == cameras("ice-paper") == {"sampler", "loss"}
    assert cameras("ice-agnostic") == {"sampler"}
    assert cameras("ice-no_cam") == frozenset()


@pytest.fixture
def network(generator: torch.Generator) -> ICE:
    """On the small backbone, in float64."""
    config = Config(Settings(), backbone=Backbone("resnet18_half", bn_groups=2))
    embedder = build("resnet18_half", bn_groups=2, generator=generator)
    return ICE(config, embedder, 1).double().train()


def test_the_teacher_gets_no_gradient_and_its_statistics_are_those_of_its_three_views(network: ICE, generator) -> None:
    views = [normal(generator, 8, 3, 32, 16) for _ in range(4)]
    start = {name: value.clone() for name, value in network.embedder.named_buffers()}
    output = network(Batch(views, torch.arange(8), TARGETS, CAMERAS_OF, {}, 0, order=torch.arange(8)))
    output["online"].sum().backward()
    assert not output["momentum"].requires_grad
    assert not output["weak"].requires_grad
    assert all(parameter.grad is None for parameter in network.teacher.parameters())
    norm, running = network.teacher.network.backbone.bn1, torch.zeros(32, dtype=torch.float64)
    for view in views[1:]:  # chunk 0 of each, in the order view 1, view 2, plain
        means = network.teacher.network.backbone.conv1(view[:4]).mean(dim=(0, 2, 3)).detach()
        running = 0.9 * running + 0.1 * means
    torch.testing.assert_close(norm.running_mean, running)
    assert not torch.equal(network.embedder.backbone.bn1.running_mean, start["backbone.bn1.running_mean"])


def test_what_is_tested_is_the_teacher_after_its_step(network: ICE, generator) -> None:
    images = normal(generator, 4, 3, 32, 16)
    network.teacher.reset(network.embedder)
    network.eval()
    before = network.embed(images)["feature"]
    torch.testing.assert_close(before, network.embedder(images)["feature"])
    with torch.no_grad():
        for parameter in network.embedder.parameters():
            parameter.mul_(1.5)
    assert torch.equal(network.embed(images)["feature"], before)
    network.after_step({}, batch_of())
    assert not torch.equal(network.embed(images)["feature"], before)


class Store:
    """Stands in for decoded images: six of noise."""

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (6, 3, 24, 12), generator=drawn, dtype=torch.uint8)

    def batch(self, rows: Tensor) -> Tensor:
        return self.images[rows]


def test_shuffled_views_are_the_others_in_the_batchs_order_on_one_process_and_on_two() -> None:
    data = TrainingData(Store(), Needs(views=3), ProcessGroup(0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    run = resolve_run("ice", "market1501", "published").config
    method = ICE(run, torch.nn.Identity(), 1)  # type: ignore[arg-type]
    rows, order = torch.tensor([5, 0, 3, 1]), torch.tensor([2, 0, 3, 1])

    def views(part: slice) -> list[Tensor]:
        return method.make_views(Pixels(data, rows, order, part, Streams(3).torch, run.augment, torch.float32))

    first, shuffled, second, plain = views(slice(None))
    assert torch.equal(shuffled, first[order])
    assert not torch.equal(second, shuffled)
    torch.testing.assert_close(plain, normalise(data.images.batch(rows[order]), data.mean, data.std))
    halves = zip(views(slice(0, 2)), views(slice(2, 4)), strict=True)
    for whole, halved in zip((first, shuffled, second, plain), halves, strict=True):
        assert torch.equal(whole, torch.cat(halved))


def test_an_epoch_starts_with_plain_means_and_proxies_of_its_features(generator) -> None:
    class Data:
        def features(self) -> Tensor:
            return features

        def cameras(self, use: str) -> np.ndarray:
            assert use == "loss"
            return np.arange(30) % CAMERAS

    features, ids = unit(generator, 30, DIM), np.arange(30) % (CLUSTERS + 1) - 1
    for unit_centroids in (False, True):
        method = ice(generator, unit_centroids=unit_centroids)
        method.start_epoch(Labels(ids), Data(), generator)  # type: ignore[arg-type]
        for cluster in range(CLUSTERS):
            mean = features[torch.as_tensor(ids == cluster)].mean(dim=0)
            expected = F.normalize(mean, dim=0) if unit_centroids else mean
            torch.testing.assert_close(method.centroids[cluster], expected)
        torch.testing.assert_close(method.bank.norm(dim=0), torch.ones(DIM, dtype=torch.float64))


def test_a_run_in_two_parts_gives_the_teacher_of_one_in_one(world: TinyWorld, tmp_path: Path) -> None:
    """Its parameters and its buffers are in the checkpoint and in the weights."""
    whole, parts = (world.train_arguments("ice", tmp_path / name, "--seed", "5") for name in ("whole", "parts"))
    trained = Trainer._train

    def interrupted(self: Trainer, epoch: int, labels: Labels) -> dict[str, float]:
        if epoch == 1:
            raise KeyboardInterrupt
        return trained(self, epoch, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(parts)
    assert train.main(parts) == 0
    assert train.main(whole) == 0
    found = [torch.load(tmp_path / name / "weights/epoch_002.pt", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    start = torch.load(world.initial / "weights.pt", weights_only=True)
    for name in ("backbone.conv1.weight", "backbone.bn1.running_mean"):
        assert not torch.equal(found[0][f"teacher.network.{name}"], start[name])
        assert not torch.equal(found[0][f"teacher.network.{name}"], found[0][f"embedder.{name}"])
