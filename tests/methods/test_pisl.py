"""PISL: the method as a whole, and PPLR as its reduction."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import proxy_losses
from core.config import Config, Optimiser, Sampler
from core.data import Batch, Labels
from core.engine import build_optimiser
from methods.pisl import consistency, losses, patches
from methods.pisl.method import PISL, Settings
from pipeline.settings import resolve_run
from tests.methods.pisl_small import CLUSTERS, PARTS, PPLR, RELEASED, SHARES, D, Data, batch_of, pisl, started

pytestmark = pytest.mark.usefixtures("one_thread")


def pplr_loss(output: dict[str, Tensor], batch: Batch, epoch: int) -> Tensor:
    """PPLR without cameras, image by image and part by part."""
    logits, part_logits, f, y = output["logits"], output["part_logits"], output["embedding"], batch.targets
    scores, count, classes = batch.extra["consistency"].double(), len(batch.targets), output["logits"].shape[1]
    whole = part = triplet = f.new_zeros(())
    for i in range(count):
        weights = torch.exp(scores[i]) / torch.exp(scores[i]).sum()
        label = 0.5 * F.one_hot(y[i], classes).double()
        for p in range(PARTS):
            probability = part_logits[i, p].softmax(0)
            label = label + 0.5 * weights[p] * probability.detach()
            if epoch >= 5:
                kl = (torch.full_like(probability, 1 / classes) * torch.log(1 / classes / probability)).sum()
                part = part - scores[i, p] * torch.log(probability[y[i]]) + (1 - scores[i, p]) * kl
            else:
                smooth = 0.9 * F.one_hot(y[i], classes) + 0.1 / classes
                part = part - (smooth * torch.log(probability)).sum()
        whole = whole - (label * torch.log_softmax(logits[i], 0)).sum()
        distance = (f[i] - f).norm(dim=1)
        positive = max((distance[j] for j in range(count) if y[j] == y[i] and j != i), default=torch.tensor(0.0))
        negative = min(distance[j] for j in range(count) if y[j] != y[i])
        triplet = triplet + torch.log(1 + torch.exp(positive - negative))
    return whole / count + part / (count * PARTS) + triplet / count


@pytest.mark.parametrize("epoch", [4, 5])
def test_with_stripes_and_jaccard_scores_and_no_other_term_it_is_pplr(epoch: int) -> None:
    method, batch = started(pisl(**PPLR)), batch_of(epoch=epoch)
    output = method.forward(batch)
    terms = method.loss(output, batch)
    assert list(terms) == ["global", "part", "triplet"]
    torch.testing.assert_close(sum(terms.values()), pplr_loss(output, batch, epoch))
    pooled = F.adaptive_avg_pool2d(method.embedder.map(batch.images[0]), (PARTS, 1)).squeeze(3)
    for p in range(PARTS):
        torch.testing.assert_close(output["parts"][:, p], F.batch_norm(pooled[:, :, p], None, None, training=True))
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {
        "embedder",
        "part_necks",
        "classifiers",
    }


def test_additions_switched_off_leave_the_terms_of_pplr_bit_for_bit() -> None:
    """The camera and SCD terms are added to PPLR's, which they do not change."""
    batch = batch_of()
    method = started(pisl(**PPLR))
    output = method.forward(batch)
    reduced = method.loss(output, batch)
    method.config = dataclasses.replace(method.config, settings=Settings(sdm="stripes"))
    full = started(method).loss(output, batch)
    assert set(full) - set(reduced) == {"camera", "scd_contrast"}
    assert all(torch.equal(full[name], reduced[name]) for name in reduced)


def test_the_scd_loss_is_the_sum_of_its_terms() -> None:
    method, batch = started(pisl()), batch_of()
    output = method.forward(batch)
    terms = method.loss(output, batch)
    noise = (output["predicted_noise"] - output["noise"]).square().mean()
    wanted, found = output["theta_before"], output["predicted_theta_before"]
    cosine = ((wanted * found).sum(1) / wanted.norm(dim=1) / found.norm(dim=1)).mean()
    step = (wanted - found).square().mean() + 0.1 * (1 - cosine)
    contrast = losses.part_contrast(output["parts"], batch.targets, 0.07)
    torch.testing.assert_close(terms["scd_noise"], 0.1 * noise)
    torch.testing.assert_close(terms["scd_theta"], 0.1 * 0.5 * step)
    torch.testing.assert_close(terms["scd_contrast"], 0.1 * 0.3 * contrast)


def test_training_hands_scd_one_exact_and_one_predicted_step_of_the_same_noise() -> None:
    method, batch = started(pisl()), batch_of()
    torch.nn.init.normal_(method.sdm.denoiser.last.weight, std=0.1)
    output = method.forward(batch)
    drawn = method.sdm.draw(8, torch.Generator().manual_seed(1))
    t, noise = drawn["t"], drawn["noise"].double()
    assert t.unique().numel() > 1, "one time per image"
    x0 = patches.stripe_thetas(PARTS).flatten().double()  # what the localisation net says at the start
    abar, before = SHARES[t + 1, None], SHARES[t, None]
    theta_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    x0_hat = ((theta_t - (1 - abar).sqrt() * output["predicted_noise"]) / abar.sqrt()).clamp(-1, 1)
    torch.testing.assert_close(output["theta_before"], before.sqrt() * x0 + (1 - before).sqrt() * noise)
    step = before.sqrt() * x0_hat + (1 - before).sqrt() * output["predicted_noise"]
    torch.testing.assert_close(output["predicted_theta_before"], step)
    pooled = method.embedder.pool(method.embedder.map(batch.images[0]))
    estimate = method.sdm.denoiser(theta_t, F.batch_norm(pooled, None, None, training=True), t)
    predicted = (theta_t - abar.sqrt() * estimate) / (1 - abar).sqrt()
    torch.testing.assert_close(output["predicted_noise"], predicted, rtol=1e-4, atol=1e-4)


def test_scd_teaches_the_denoiser_and_neither_the_localisation_net_nor_the_backbone() -> None:
    method, batch = started(pisl()), batch_of()
    terms = method.loss(method.forward(batch), batch)
    (terms["scd_noise"] + terms["scd_theta"]).backward()
    reached = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"denoiser"}


@pytest.mark.parametrize("settings", [{}, {"train_patches": "x0_hat"}, {"sdm": "stn"}], ids=["paper", "x0_hat", "stn"])
def test_logits_and_windows_are_float32_under_autocast(settings: dict[str, object]) -> None:
    """A bfloat16 logit of 20 is exact to 0.06 only, a window's place to 1/256 of the map."""
    method, batch = started(pisl(**settings).float()), batch_of()
    batch.images[0] = batch.images[0].float()
    computed: set[torch.dtype] = set()
    for layer in method.sdm.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, found: computed.add(found.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = method.forward(batch)
    assert {name: value.dtype for name, value in output.items() if value.dtype != torch.float32} == {}
    torch.testing.assert_close(output["logits"], output["embedding"] @ method.classifiers[0, :CLUSTERS].T)
    for p in range(PARTS):
        own = output["parts"][:, p] @ method.classifiers[1 + p, :CLUSTERS].T
        torch.testing.assert_close(output["part_logits"][:, p], own)
    assert computed == {torch.float32}


def test_the_localisation_net_alone_learns_at_a_rate_of_its_own() -> None:
    """A tenth of the optimiser's; the released code has one rate, and stripes have no such net."""
    method = pisl()
    others, own = build_optimiser(method, Optimiser(lr=1.0)).param_groups
    assert (others["lr_scale"], own["lr_scale"]) == (1.0, 0.1)
    localisation = {id(p) for p in method.sdm.localisation.parameters()}
    assert {id(p) for p in own["params"]} == localisation
    everything = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for p in others["params"]} == everything - localisation
    assert [group["lr_scale"] for group in build_optimiser(pisl(**PPLR), Optimiser()).param_groups] == [1.0]
    assert resolve_run("pisl-released", "market1501", "published").config.settings == Settings(**RELEASED)


def test_the_released_diffusion_cuts_and_compares_noised_parameters_and_detaches_nothing() -> None:
    """x0 = 2 theta0 - 1, theta~ = (clamp(x_t) + 1) / 2, and gradients through all of it."""
    sdm = pisl(**RELEASED).sdm
    feature_map = torch.rand(4, D, 8, 4, dtype=torch.float64, requires_grad=True)
    embedding = torch.rand(4, D, dtype=torch.float64, requires_grad=True)
    for last in (sdm.denoiser.last, sdm.localisation.last):  # at 0 nothing could pass through them
        torch.nn.init.normal_(last.weight, std=0.1)
    drawn = {"t": torch.tensor([3, 3, 400, 400]), "noise": torch.randn(4, 18, dtype=torch.float64) / 3}
    found = sdm(feature_map, embedding, drawn)
    theta0 = sdm.localisation(feature_map).flatten(1)
    share = SHARES[drawn["t"] + 1, None]
    x_t = share.sqrt() * (2 * theta0 - 1) + (1 - share).sqrt() * drawn["noise"]
    noised = (x_t.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(found["predicted_theta_before"], noised)
    torch.testing.assert_close(found["theta_before"], theta0)
    torch.testing.assert_close(found["weights"], patches.affine_weights(noised.view(4, PARTS, 2, 3), 8, 4))
    for output, source in [("theta_before", feature_map), ("weights", feature_map), ("predicted_noise", embedding)]:
        (gradient,) = torch.autograd.grad(found[output].square().sum(), source, retain_graph=True)
        assert gradient.abs().sum() > 0, output


def test_the_released_parts_pass_the_shared_neck_in_training_only() -> None:
    """Train GAP -> bnneck -> bnneck_i, extraction GAP -> bnneck_i."""
    method = pisl(**RELEASED)
    for place, neck in enumerate([method.embedder.bnneck, *method.part_necks]):
        torch.nn.init.constant_(neck.weight, 2.0 + place)
        torch.nn.init.constant_(neck.running_var, 4.0)
    pooled = torch.randn(6, PARTS, D, dtype=torch.float64)

    def batch_norm(values: Tensor, scale: float) -> Tensor:
        return scale * (values - values.mean(0)) / (values.var(0, correction=0) + 1e-5).sqrt()

    extracted = torch.stack([(3.0 + p) * pooled[:, p] / math.sqrt(4 + 1e-5) for p in range(PARTS)], dim=1)
    torch.testing.assert_close(method.eval().part_features(pooled), extracted)
    trained = torch.stack([batch_norm(batch_norm(pooled[:, p], 2.0), 3.0 + p) for p in range(PARTS)], dim=1)
    torch.testing.assert_close(method.train().part_features(pooled), trained)
    own_necks = torch.stack([batch_norm(pooled[:, p], 1.0) for p in range(PARTS)], dim=1)
    torch.testing.assert_close(pisl().train().part_features(pooled), own_necks)


@pytest.mark.parametrize(("settings", "frozen"), [({}, True), (RELEASED, False)], ids=["paper", "released"])
def test_the_weights_of_the_part_contrast_have_a_gradient_as_released_only(
    settings: dict[str, object], frozen: bool
) -> None:
    method, batch = started(pisl(**settings)), batch_of()
    parts = torch.randn(8, PARTS, D, dtype=torch.float64, requires_grad=True)
    output = {**method.forward(batch), "parts": parts}
    (found,) = torch.autograd.grad(method._scd_loss(output, batch.targets)["contrast"], parts)
    expected = 0.3 * losses.part_contrast(parts, batch.targets, 0.07, frozen_weights=frozen)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parts)[0])


@pytest.mark.parametrize(
    "settings",
    [{}, {"train_patches": "x0_hat"}, {"sdm": "stn"}, {"sdm": "stripes"}, PPLR, RELEASED, {"shared_neck": True}],
    ids=["paper", "x0_hat", "stn", "stripes", "pplr", "released", "shared_neck"],
)
def test_every_parameter_that_is_built_is_trained(settings: dict[str, object]) -> None:
    """A parameter without a gradient would stop training on several processes."""
    method, batch = started(pisl(**settings)), batch_of()
    torch.stack(list(method.loss(method.forward(batch), batch).values())).sum().backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_classifier_rows_become_the_clusters_mean_features() -> None:
    method, data = started(pisl()), Data(48)
    for space, features in enumerate([data.features(), *data.embedded("parts").unbind(dim=1)]):
        for cluster in range(CLUSTERS):
            mean = F.normalize(features[8 * cluster : 8 * cluster + 8].mean(0), dim=0)
            torch.testing.assert_close(method.classifiers[space, cluster].float(), mean)
    assert method.forward(batch_of())["part_logits"].shape == (8, PARTS, CLUSTERS)


def test_more_clusters_than_classifier_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="min_samples"):
        pisl().start_epoch(Labels(np.arange(48) % 13), Data(48), torch.Generator())  # type: ignore[arg-type]


def test_labels_carry_the_scores_of_every_image() -> None:
    data = Data(48)
    labels = pisl(neighbours=7).label(0, data)  # type: ignore[arg-type]
    expected = consistency.consistency_scores(data.features(), data.embedded("parts"), 7, "mmd")
    assert torch.equal(labels.extra["consistency"], expected)
    assert expected.shape == (48, PARTS)


def test_cameras_are_declared_where_they_are_used_and_the_loss_reads_none_without_them() -> None:
    def used(camera_weight: float, sampler: bool) -> frozenset[str]:
        config = Config(settings=Settings(camera_weight=camera_weight), sampler=Sampler(uses_camera=sampler))
        return PISL.needs(config).cameras

    assert used(0.5, True) == {"sampler", "loss"}
    assert used(0.5, False) == {"loss"}
    assert used(0.0, True) == {"sampler"}
    assert used(0.0, False) == frozenset()
    method = pisl(camera_weight=0.0)
    ids = np.repeat(np.arange(CLUSTERS), 8)
    method.start_epoch(Labels(ids), Data(48, None), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    batch = dataclasses.replace(batch_of(), cameras=None)
    assert "camera" not in method.train().loss(method.forward(batch), batch)


def test_the_camera_term_is_that_of_the_whole_plus_the_mean_of_the_parts() -> None:
    method, batch = started(pisl()), batch_of()
    output = method.forward(batch)

    def term(features: Tensor, memory) -> Tensor:
        same = memory.same_cluster(batch.targets), memory.same_camera(batch.cameras)
        return proxy_losses.camera_contrast(features, *same, memory.rows, 0.07, 50)

    parts = [term(output["parts"][:, p], method.part_cameras[p]) for p in range(PARTS)]
    expected = 0.5 * (term(output["embedding"], method.cameras) + sum(parts) / PARTS)
    torch.testing.assert_close(method.loss(output, batch)["camera"], expected)
    rows = method.cameras.rows.clone()
    method.after_step(output, batch)
    assert torch.equal(method.cameras.rows, rows), "proxies stay for the epoch"


def test_the_epoch_of_the_score_scales_with_the_run() -> None:
    published = resolve_run("pisl", "market1501", "published").config
    assert published.settings.consistency_from == 5
    assert published.clustering.eps == 0.4
    short = resolve_run("pisl", "rendered", "controlled").config
    assert short.settings.consistency_from == round(5 * short.schedule.epochs / 50)
    blind = resolve_run("pisl-no_cam", "msmt17_v2", "published").config
    assert PISL.needs(blind).cameras == frozenset()
    assert blind.clustering.eps == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sdm": "grid"}, "stripes, stn, diffusion"),
        ({"score": "cosine"}, "mmd, jaccard, released"),
        ({"sampling_steps": 1001}, "1 to timesteps 1000"),
        ({"localisation_lr_scale": -0.1}, "share of optimiser.lr"),
        ({"own_label_share": 1.5}, r"share in \[0, 1\]"),
        ({"scd_weight": 0.0}, "nothing else trains the denoiser"),
        ({"diffusion": "released", "parts": 4}, "3 parts"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]
