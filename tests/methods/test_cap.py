"""CAP: docs/methods/cap.md. Equality with the official code: tests/golden/cap_*.npz."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from core import proxy_losses
from core.backbones.net import build
from core.config import Config, Sampler
from core.data import Labels
from methods.cap.method import CAP, Settings
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from tests.methods.proxies_small import TAU, Data, Scene, filled, make_scene

OFF = {"by_camera": False, "w_inter": 0.0, "sampling": "identities", "temperature": 0.05, "momentum": 0.1}


@pytest.fixture
def scene() -> Scene:
    return make_scene()


def cap(**settings: object) -> CAP:
    return CAP(Config(settings=Settings(**settings)), torch.nn.Identity(), 1)  # type: ignore[arg-type]


def total(method: CAP, scene: Scene, epoch: float = 9) -> Tensor:
    terms = method.loss({"feature": scene.queries}, dataclasses.replace(scene.batch(), epoch=epoch))
    return torch.stack(list(terms.values())).sum()


def test_every_addition_off_is_cluster_contrast_its_loss_update_and_batches(scene: Scene) -> None:
    sampler = Sampler(identities=3, instances=2)
    configs = (
        Config(settings=Settings(**OFF), sampler=sampler),
        Config(settings=ClusterContrastSettings(), sampler=sampler),
    )
    off = filled(CAP(configs[0], torch.nn.Identity(), 1), scene)
    base = filled(ClusterContrast(configs[1], torch.nn.Identity(), 1), scene)
    output, batch = {"feature": scene.queries.clone().requires_grad_()}, scene.batch()
    losses = [torch.stack(list(made.loss(output, batch).values())).sum() for made in (off, base)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, output["feature"])[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    for made in (off, base):
        made.after_step({"feature": scene.queries}, batch)
    assert torch.equal(off.proxies.rows, base.memory.rows)
    data = Data(scene.features, scene.cameras, frozenset({"sampler"}))
    drawn = [list(m.batches(Labels(scene.labels.numpy()), data, np.random.default_rng(0))) for m in (off, base)]
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))
    assert "loss" not in CAP.needs(configs[0]).cameras


def test_the_inter_camera_term_begins_at_its_epoch_with_its_weight(scene: Scene) -> None:
    made = filled(cap(inter_start=5.0), scene)
    intra = made.loss({"feature": scene.queries}, dataclasses.replace(scene.batch(), epoch=4.9))
    both = made.loss({"feature": scene.queries}, dataclasses.replace(scene.batch(), epoch=5.0))
    assert list(intra) == ["intra"]
    assert torch.equal(intra["intra"], both["intra"])
    double = filled(cap(inter_start=5.0, w_inter=1.0), scene).loss({"feature": scene.queries}, scene.batch())
    torch.testing.assert_close(2 * both["inter"], double["inter"])


def test_all_images_of_a_camera_twice_leave_the_loss_and_not_the_proxies(scene: Scene) -> None:
    twice = torch.cat([torch.arange(len(scene.rows)), torch.nonzero(scene.cameras[scene.rows] == 0).flatten()])
    doubled = dataclasses.replace(scene, rows=scene.rows[twice], queries=scene.queries[twice])
    first, second = filled(cap(), scene), filled(cap(), scene)
    torch.testing.assert_close(total(first, scene), total(second, doubled))
    first.after_step({"feature": scene.queries}, scene.batch())
    second.after_step({"feature": doubled.queries}, doubled.batch())
    assert not torch.allclose(first.proxies.rows, second.proxies.rows)


def test_names_of_cameras_and_clusters_do_not_matter(scene: Scene) -> None:
    generator = torch.Generator().manual_seed(0)
    cameras = torch.randperm(4, generator=generator)[scene.cameras]
    order = torch.cat([torch.randperm(7, generator=generator), torch.tensor([-1])])
    renamed = dataclasses.replace(scene, cameras=cameras, labels=order[scene.labels])
    torch.testing.assert_close(total(filled(cap(), scene), scene), total(filled(cap(), renamed), renamed))


def test_only_proxies_of_the_batch_change_and_stay_unit(scene: Scene) -> None:
    made = filled(cap(), scene)
    before, touched = made.proxies.rows.clone(), torch.unique(made.proxies.of_image[scene.rows])
    made.after_step({"feature": scene.queries}, scene.batch())
    changed = (made.proxies.rows != before).any(dim=1).nonzero().flatten()
    assert torch.equal(changed, touched)
    torch.testing.assert_close(made.proxies.rows.norm(dim=1), torch.ones(len(before)).to(before))


def test_where_negatives_are_few_positives_count_twice_as_released_and_once_where_excluded(scene: Scene) -> None:
    made = filled(cap(), scene)
    logits, same = made.proxies.logits(scene.queries, TAU), made.proxies.same_cluster(scene.labels[scene.rows])
    for refill, times in ((True, 2), (False, 1)):
        found = proxy_losses.inter_camera(logits, same, 1000, refill)
        for i, row in enumerate(logits.tolist()):
            positives = [z for z, mine in zip(row, same[i], strict=True) if mine]
            others = [z for z, mine in zip(row, same[i], strict=True) if not mine]
            denominator = times * sum(map(math.exp, positives)) + sum(map(math.exp, others))
            expected = math.log(denominator) - sum(positives) / len(positives)
            assert float(found[i]) == pytest.approx(expected)
    assert total(made, scene) > total(filled(cap(few_negatives="excluded"), scene), scene)


def test_a_list_that_is_full_is_the_same_under_both_rules(scene: Scene) -> None:
    released, excluded = (filled(cap(negatives=3, few_negatives=rule), scene) for rule in ("refilled", "excluded"))
    assert torch.equal(total(released, scene), total(excluded, scene))


def test_an_epoch_has_as_many_batches_as_clustered_images_fill_whatever_the_number_of_proxies() -> None:
    labels = np.array([0] * 40 + [1] * 40 + [-1] * 9)
    for cameras in (np.arange(89) % 2, np.arange(89) % 7):
        data = Data(torch.empty(89, 2), torch.as_tensor(cameras), frozenset({"sampler"}))
        made = CAP(Config(settings=Settings(), sampler=Sampler(identities=2, instances=4)), torch.nn.Identity(), 1)
        batches = list(made.batches(Labels(labels), data, np.random.default_rng(0)))
        assert len(batches) == 80 // 8
        for batch in batches:
            assert (labels[batch] >= 0).all()
            pairs = labels[batch] * 100 + cameras[batch]
            assert sorted(np.unique(pairs, return_counts=True)[1]) in ([4, 4], [8])
        for batch in islice(batches, len(np.unique(labels[:80] * 100 + cameras[:80])) // 2):
            assert len(np.unique(labels[batch] * 100 + cameras[batch])) == 2  # of one pass: distinct proxies


def test_the_released_network_has_no_relu_after_its_first_layer() -> None:
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for stem_relu in (False, True):
        network = build("resnet18_half", "avg", 1, generator=torch.Generator().manual_seed(0))
        made = CAP(Config(settings=Settings(stem_relu=stem_relu)), network, 10).eval()
        outputs.append(made.embed(images)["feature"])
    assert not torch.allclose(*outputs)
