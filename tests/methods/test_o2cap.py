"""O2CAP: docs/methods/o2cap.md. Equality with the official code: tests/golden/o2cap_*.npz."""

from __future__ import annotations

import math

import pytest
import torch

from core import proxy_losses
from core.config import Config, Sampler
from methods.cap.method import CAP
from methods.cap.method import Settings as CAPSettings
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.o2cap.method import O2CAP, Settings
from tests.methods.proxies_small import TAU, Scene, filled, make_scene


@pytest.fixture
def scene() -> Scene:
    return make_scene()


def o2cap(**settings: object) -> O2CAP:
    return O2CAP(Config(settings=Settings(**settings)), torch.nn.Identity(), 1)  # type: ignore[arg-type]


def test_every_addition_off_is_cluster_contrast_its_loss_and_update(scene: Scene) -> None:
    off = {"by_camera": False, "w_online": 0.0, "negatives": 10**6, "sampling": "identities", "temperature": 0.05}
    config = Config(settings=Settings(**off, momentum=0.1), sampler=Sampler(3, 2))  # type: ignore[arg-type]
    base = ClusterContrast(Config(settings=ClusterContrastSettings(), sampler=Sampler(3, 2)), torch.nn.Identity(), 1)
    made = [filled(O2CAP(config, torch.nn.Identity(), 1), scene), filled(base, scene)]
    features = scene.queries.clone().requires_grad_()
    losses = [torch.stack(list(m.loss({"feature": features}, scene.batch()).values())).sum() for m in made]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, features)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    for each in made:
        each.after_step({"feature": scene.queries}, scene.batch())
    assert torch.equal(made[0].proxies.rows, made[1].memory.rows)
    assert O2CAP.needs(config).cameras == frozenset({"sampler"})


def test_without_its_online_term_it_is_caps_inter_camera_term_at_weight_1(scene: Scene) -> None:
    offline = filled(o2cap(w_online=0.0, negatives=5), scene).loss({"feature": scene.queries}, scene.batch())
    settings = CAPSettings(w_inter=1.0, negatives=5)
    cap = filled(CAP(Config(settings=settings), torch.nn.Identity(), 1), scene)
    assert list(offline) == ["offline"]
    assert torch.equal(offline["offline"], cap.loss({"feature": scene.queries}, scene.batch())["inter"])


def test_the_association_weight_moves_the_choice_and_never_the_logits(scene: Scene) -> None:
    """With w 0 the choice does not see the image: all images of a proxy have the same positives."""
    losses = {}
    for weight in (0.0, 0.15, 1.0):
        made = filled(o2cap(association_weight=weight, negatives=4), scene)
        losses[weight] = made.loss({"feature": scene.queries}, scene.batch())["online"]
    assert len({float(loss) for loss in losses.values()}) == 3
    made = filled(o2cap(), scene)
    logits, own = made.proxies.logits(scene.queries, TAU), made.own_proxies(scene.batch())
    blind, other = (proxy_losses.associations(x, made.proxies.rows, own, 0.0) for x in (logits, -logits))
    assert torch.equal(blind, other)
    every = made.proxies.rows.shape[0]  # all are in the softmax, whatever w: only the targets differ
    total = logits.logsumexp(dim=1)
    for weight in (0.0, 1.0):
        association = proxy_losses.associations(logits * TAU, made.proxies.rows, own, weight)
        found = proxy_losses.online(logits, association, made.proxies.cameras, 1, every)
        assert ((total - found)[:, None] - logits).abs().amin(dim=1).max() < 1e-9


def test_with_no_others_the_online_term_is_at_least_the_entropy_of_its_targets() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = proxy_losses.online(logits, logits, torch.arange(3), 3, 50)
    torch.testing.assert_close(found, logits.logsumexp(dim=1) - logits.mean(dim=1))
    assert (found >= math.log(3)).all()


def test_fewer_cameras_than_positives_give_one_positive_per_camera() -> None:
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cameras = torch.arange(8) % 2
    expected = proxy_losses.online(logits, logits, cameras, 2, 3)
    few = proxy_losses.online(logits, logits, cameras, 5, 3)
    assert torch.equal(few, expected)


def test_the_loss_is_the_sum_over_cameras_of_means(scene: Scene) -> None:
    made = filled(o2cap(), scene)
    whole = made.loss({"feature": scene.queries}, scene.batch())
    parts = dict.fromkeys(whole, 0.0)
    for camera in torch.unique(scene.cameras[scene.rows]):
        here = scene.cameras[scene.rows] == camera
        alone = Scene(scene.features, scene.labels, scene.cameras, scene.rows[here], scene.queries[here])
        for name, term in made.loss({"feature": alone.queries}, alone.batch()).items():
            parts[name] += float(term)
    assert {name: pytest.approx(value) for name, value in parts.items()} == {n: float(t) for n, t in whole.items()}
