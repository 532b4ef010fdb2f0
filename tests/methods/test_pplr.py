"""PPLR: docs/methods/pplr.md. Equality with the official code: tests/golden/pplr_*.npz."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core import part_losses, proxy_losses
from core.agreement import cross_agreement, list_overlap
from core.backbones.net import Embedder
from core.backbones.pooling import AveragePooling
from core.config import Backbone, Clustering, Config
from core.data import Labels
from core.losses import smoothed_cross_entropy, softmax_triplet
from methods.pisl.method import PISL
from methods.pplr.method import PPLR, Settings
from pipeline.settings import resolve_run
from tests.methods.draws import normal, unit
from tests.methods.pisl_small import CLUSTERS, D, Data, SmallBackbone, batch_of, pisl
from tests.methods.pisl_small import PPLR as PISL_AS_PPLR


def pplr(**settings: object) -> PPLR:
    config = Config(
        settings=Settings(**settings),  # type: ignore[arg-type]
        backbone=Backbone(bn_groups=1),
        clustering=Clustering(k1=5, k2=2, eps=0.9),
    )
    torch.manual_seed(0)
    return PPLR(config, Embedder(SmallBackbone(), AveragePooling(), D), capacity=48).double()


def started(method: PPLR | PISL) -> PPLR | PISL:
    labels = Labels(np.repeat(np.arange(CLUSTERS), 8))
    method.start_epoch(labels, Data(48, np.arange(48) % 4), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    return method.train()


@pytest.mark.parametrize("epoch", [4, 5])
def test_it_is_pisls_ablation_pplr_to_the_bit(epoch: int) -> None:
    ours = started(pplr(few_negatives="excluded"))
    theirs = started(pisl(**{**PISL_AS_PPLR, "camera_weight": 0.5}))
    batch = batch_of(epoch=epoch)
    terms = [method.loss(method(batch), batch) for method in (ours, theirs)]
    assert list(terms[0]) == list(terms[1]) == ["global", "part", "triplet", "camera"]
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
    for found in terms:
        torch.stack(list(found.values())).sum().backward()
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (other[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other[name].grad), name


def test_every_addition_off_is_cross_entropy_smoothed_part_cross_entropy_and_the_triplet() -> None:
    made = started(pplr(own_label_share=1.0, consistency_from=1000.0, camera_weight=0.0))
    batch = batch_of(epoch=40)
    output = made(batch)
    terms = made.loss(output, batch)
    parts = output["part_logits"].unbind(dim=1)
    expected = {
        "global": F.cross_entropy(output["logits"], batch.targets),
        "part": torch.stack([smoothed_cross_entropy(z, batch.targets, 0.1) for z in parts]).mean(),
        "triplet": softmax_triplet(output["embedding"], batch.targets),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-12, atol=1e-14)


def test_without_its_camera_weight_the_loss_is_the_rest_and_no_camera_is_declared() -> None:
    batch = batch_of()
    full, free = started(pplr()), started(pplr(camera_weight=0.0))
    with_cameras, without = full.loss(full(batch), batch), free.loss(free(batch), batch)
    assert with_cameras.keys() - without.keys() == {"camera"}
    assert all(torch.equal(with_cameras[name], without[name]) for name in without)
    assert "loss" not in free.needs(free.config).cameras


def test_columns_beyond_the_clusters_get_no_gradient() -> None:
    made, batch = started(pplr()), batch_of()
    torch.stack(list(made.loss(made(batch), batch).values())).sum().backward()
    assert made.classifiers.shape[1] > CLUSTERS
    assert made.classifiers.grad is not None
    assert (made.classifiers.grad[:, :CLUSTERS] != 0).any()
    assert not made.classifiers.grad[:, CLUSTERS:].any()


def test_the_refined_label_sends_no_gradient_to_the_parts(generator: torch.Generator) -> None:
    whole, parts = normal(generator, 4, 6).requires_grad_(), normal(generator, 4, 3, 6).requires_grad_()
    scores, targets = torch.full((4, 3), 0.4).double(), torch.arange(4)
    loss = part_losses.refined_cross_entropy(whole, parts, targets, scores, 0.5)
    gradients = torch.autograd.grad(loss, [whole, parts], allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None
    target = 0.5 * F.one_hot(targets, 6) + 0.5 * parts.softmax(dim=2).mean(dim=1)  # equal agreements: the plain mean
    torch.testing.assert_close(loss, -(target * whole.log_softmax(dim=1)).sum(dim=1).mean())


def test_agreement_is_1_for_equal_spaces_and_a_jaccard_index_elsewhere(generator: torch.Generator) -> None:
    features, other = unit(generator, 40, 8), unit(generator, 40, 8)
    found = cross_agreement(features, torch.stack([features, other], dim=1), 7)
    assert torch.equal(found[:, 0], torch.ones(40).to(found))
    possible = torch.tensor([c / (14 - c) for c in range(8)]).to(found)
    assert (found[:, 1:] - possible).abs().amin(dim=1).max() < 1e-6
    assert float(list_overlap(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]))) == 0


def test_the_own_proxy_is_in_neither_set_unless_few_negatives_are_refilled(generator: torch.Generator) -> None:
    """Clusters 0, 0, 1 by cameras 0, 1, 0; the image is of cluster 0 in camera 0."""
    rows, clusters, cameras = unit(generator, 3, 8), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    feature = normal(generator, 1, 8)
    own, elsewhere, other = (F.normalize(feature, dim=1) @ rows.T / 0.07)[0].exp().tolist()
    masks = clusters[None] == 0, cameras[None] == 0
    excluded, refilled = (
        float(proxy_losses.camera_contrast(feature, *masks, rows, 0.07, 50, r)) for r in (False, True)
    )
    assert excluded == pytest.approx(-math.log(elsewhere / (elsewhere + other)))
    assert refilled == pytest.approx(-math.log(elsewhere / (2 * elsewhere + other + own)))
    alone = proxy_losses.camera_contrast(feature, masks[0], torch.ones_like(masks[0]), rows, 0.07, 50, True)
    assert float(alone) == 0  # a cluster that one camera saw


@pytest.mark.parametrize(
    ("name", "dataset", "eps", "weight"),
    [("pplr", "market1501", 0.4, 0.5), ("pplr", "msmt17_v1", 0.6, 1.0), ("pplr-free", "msmt17_v1", 0.5, 0.0)],
)
def test_the_commands_of_the_readme_resolve(name: str, dataset: str, eps: float, weight: float) -> None:
    config = resolve_run(name, dataset, "published").config
    assert (config.clustering.eps, config.settings.camera_weight) == (eps, weight)
    assert dataclasses.astuple(config.input) == (384, 128)
