"""PISL's spatial diffusion: schedule, sampling, noise, patches, the released loop.

docs/methods/pisl.md, "Diffusion of windows" and "Diffusion as coded".
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import parts
from core.config import Optimiser, Schedule
from core.distributed import ProcessGroup
from core.engine import build_optimiser, set_rate
from methods.pisl import losses, patches, released
from methods.pisl.diffusion import (
    Denoiser,
    cosine_betas,
    ddim_sample,
    ddim_step,
    image_keys,
    image_noise,
    implied_noise,
    predict_x0,
    q_sample,
    sampling_times,
    time_code,
)
from tests.methods.draws import normal
from tests.methods.pisl_small import PARTS, PPLR, RELEASED, SHARES, D, T, batch_of, pisl, started

pytestmark = pytest.mark.usefixtures("one_thread")


# Diffusion


def test_the_cosine_schedule_starts_clean_ends_as_noise_and_falls_strictly() -> None:
    betas = cosine_betas(T)
    assert SHARES[0] == 1
    assert SHARES[1] > 0.999
    assert SHARES[T] < 1e-4
    assert (SHARES.diff() < 0).all()
    assert betas.min() >= 0
    assert betas.max() == 0.999

    def f(t: int) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 1, 500, 998):  # before the clipped last beta, abar has a closed form
        assert SHARES[t + 1].item() == pytest.approx(f(t + 1) / f(0), rel=1e-9)


def test_noising_without_noise_scales_the_signal_and_noise_has_the_schedules_variance(
    generator: torch.Generator,
) -> None:
    x0 = normal(generator, 1, 18).clamp(-1, 1)
    for t in (0, 400, 999):
        share = SHARES[t + 1]
        assert torch.equal(q_sample(x0, torch.zeros_like(x0), share), share.sqrt() * x0)
        noised = q_sample(x0.expand(20000, -1), normal(generator, 20000, 18), share)
        variance = (noised - share.sqrt() * x0).square().mean()
        assert variance.item() == pytest.approx(1 - share.item(), rel=0.01)


def test_the_true_noise_gives_back_x0_and_the_exact_step_from_any_time(generator: torch.Generator) -> None:
    x0, noise = normal(generator, T, 18).clamp(-1, 1), normal(generator, T, 18)
    share, before = SHARES[1:, None], SHARES[:-1, None]
    x_t = q_sample(x0, noise, share)
    torch.testing.assert_close(predict_x0(x_t, noise, share), x0, rtol=0, atol=1e-8)
    torch.testing.assert_close(implied_noise(x_t, x0, share), noise)
    wanted, found = q_sample(x0, noise, before), ddim_step(x_t, noise, share, before)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    assert losses.theta_consistency(found, wanted, 0.1) < 1e-12
    torch.testing.assert_close(found[0], x0[0])  # the step from t = 0 ends at x0


@pytest.mark.parametrize("samples", [1, 2, 50, 1000])
def test_ddim_with_an_oracle_samples_x0(generator: torch.Generator, samples: int) -> None:
    x0 = normal(generator, 5, 18).clamp(-1, 1)

    def oracle(theta: Tensor, t: int) -> Tensor:
        share = SHARES[t + 1]
        return (theta - share.sqrt() * x0) / (1 - share).sqrt()

    torch.testing.assert_close(ddim_sample(oracle, normal(generator, 5, 18), SHARES, samples), x0, rtol=0, atol=1e-4)


def test_ddim_is_the_recurrence_written_out(generator: torch.Generator) -> None:
    """With any denoiser, over strided times: x0_hat, then back up to the next time with the same noise."""
    matrix, start = normal(generator, 18, 18) / 8, normal(generator, 4, 18)
    times = sampling_times(T, 4)
    assert times == [999, 666, 333, 0]
    theta = start
    for t, after in zip(times, [666, 333, 0, None], strict=True):
        noise = torch.tanh(theta @ matrix) * (1 + t / T)
        abar, abar_after = SHARES[t + 1], 1.0 if after is None else SHARES[after + 1].item()
        x0_hat = ((theta - math.sqrt(1 - abar) * noise) / math.sqrt(abar)).clamp(-1, 1)
        theta = math.sqrt(abar_after) * x0_hat + math.sqrt(1 - abar_after) * noise
    found = ddim_sample(lambda x, t: torch.tanh(x @ matrix) * (1 + t / T), start, SHARES, 4)
    torch.testing.assert_close(found, theta)


@pytest.mark.parametrize(("settings", "sees_theta"), [({}, True), (RELEASED, False)], ids=["paper", "released"])
def test_the_denoiser_depends_on_theta_and_the_released_one_does_not(
    generator: torch.Generator, settings: dict[str, object], sees_theta: bool
) -> None:
    """Of the method's own denoiser, whose last layer starts at 0."""
    net = pisl(**settings).sdm.denoiser
    nn.init.normal_(net.last.weight)
    theta, embedding, t = normal(generator, 4, 18), normal(generator, 4, D), torch.tensor([0, 10, 500, 999])
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, embedding, t).sum(0), theta)
    assert bool(jacobian.abs().sum() > 0) is sees_theta
    assert not torch.equal(net(theta, embedding, t)[0], net(theta, embedding, t + 1)[0])
    assert not torch.equal(net(theta, embedding, t)[0], net(theta, 2 * embedding, t)[0])


def test_the_denoisers_first_layer_is_one_layer_over_all_three_inputs(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = Denoiser(18, D).double()
    theta, embedding, t = normal(generator, 4, 18), normal(generator, 4, D), torch.tensor([0.0, 10, 500, 999])
    weight = torch.cat([net.of_theta.weight, net.of_image.weight, net.of_time.weight], dim=1)  # type: ignore[union-attr]
    inputs = torch.cat([theta, embedding, time_code(t.double())], dim=1)
    hidden = torch.relu(inputs @ weight.T + net.of_image.bias)
    expected = net.last(torch.relu(net.middle(hidden)))
    torch.testing.assert_close(net(theta, embedding, t), expected)


def test_a_denoiser_that_sees_theta_learns_and_a_blind_one_cannot() -> None:
    """Blind, the best mean squared error is 1."""
    x0 = patches.stripe_thetas(PARTS).flatten()
    reached = {}
    for sees_theta in (True, False):
        torch.manual_seed(0)
        net, draws = Denoiser(18, D, sees_theta, hidden=(128, 64)), torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        last = []
        for _ in range(150):
            t, noise = torch.randint(T, (64,), generator=draws), torch.randn(64, 18, generator=draws)
            x_t = q_sample(x0, noise, SHARES[t + 1, None].float())
            loss = F.mse_loss(net(x_t, torch.ones(64, D), t), noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            last.append(loss.item())
        reached[sees_theta] = np.mean(last[-20:])
    assert reached[True] < 0.3
    assert 0.9 < reached[False] < 1.1


# Noise that belongs to an image


def test_noise_is_a_function_of_the_image_and_the_seed_alone(generator: torch.Generator) -> None:
    images = torch.randn(6, 3, 64, 32, generator=generator)
    keys = image_keys(images)
    assert len(set(keys.tolist())) == 6
    assert torch.equal(image_keys(images.contiguous(memory_format=torch.channels_last)), keys)
    assert torch.equal(image_keys(images[2:3]), keys[2:3])
    noise = image_noise(keys, 7, (18,))
    assert torch.equal(image_noise(keys[[4, 1]], 7, (18,)), noise[[4, 1]])
    assert not torch.equal(image_noise(keys, 8, (18,)), noise)
    many = image_noise(torch.arange(2000), 7, (18,))
    assert many.mean().abs() < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_noise_does_not_touch_the_global_stream(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    image_noise(torch.arange(3), 7, (18,))
    assert torch.equal(before, torch.get_rng_state())


def test_extraction_repeats_itself_and_mixes_no_rows(generator: torch.Generator) -> None:
    method = pisl().eval()
    nn.init.normal_(method.sdm.denoiser.last.weight, std=0.05, generator=generator)
    images = normal(generator, 7, 3, 64, 32)
    with torch.no_grad():
        first, second = method.embed(images), method.embed(images)
        order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
        permuted = method.embed(images[order])
        split = [method.embed(images[:2]), method.embed(images[2:])]
    for name in ("feature", "parts"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(permuted[name], first[name][order])
        torch.testing.assert_close(torch.cat([half[name] for half in split]), first[name])


def test_the_test_feature_is_the_same_with_any_sdm_and_any_noise(generator: torch.Generator) -> None:
    images = normal(generator, 5, 3, 64, 32)
    reference = pisl().eval()
    nn.init.normal_(reference.sdm.denoiser.last.weight, std=0.05, generator=generator)
    state = {k: v for k, v in reference.state_dict().items() if k.startswith("embedder.")}
    variants = [PPLR, {"sdm": "stn"}, {"sampling_steps": 3}, {"sampling_steps": 20, **RELEASED}]
    with torch.no_grad():
        expected = reference.embed(images)
        reference.sdm.seed += 1
        assert torch.equal(reference.embed(images)["feature"], expected["feature"])
        assert not torch.equal(reference.embed(images)["parts"], expected["parts"])
        for settings in variants:
            method = pisl(**settings).eval()
            method.load_state_dict(state, strict=False)
            assert torch.equal(method.embed(images)["feature"], expected["feature"])


def test_training_noise_is_drawn_for_the_full_batch_and_each_process_takes_its_part() -> None:
    whole = started(pisl()).forward(batch_of())
    for rank in (0, 1):
        batch = batch_of()
        mine = ProcessGroup(rank, 2, torch.device("cpu")).part(8)
        local = started(pisl()).forward(dataclasses.replace(batch, images=[batch.images[0][mine]], part=mine))
        assert torch.equal(local["noise"], whole["noise"][mine])


# Patches


def test_affine_weights_are_grid_sampling_and_average_pooling_with_the_same_gradient(
    generator: torch.Generator,
) -> None:
    feature_map = normal(generator, 4, 5, 8, 4)
    for theta in (normal(generator, 4, PARTS, 2, 3), patches.stripe_thetas(PARTS).double().expand(4, -1, -1, -1)):
        ours, theirs = theta.clone().requires_grad_(), theta.clone().requires_grad_()
        cut = parts.cut(feature_map, patches.affine_weights(ours, 8, 4))
        sampled = [
            F.grid_sample(
                feature_map,
                F.affine_grid(theirs[:, p], [4, 5, 8, 4], align_corners=False),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            ).mean((2, 3))
            for p in range(PARTS)
        ]
        expected = torch.stack(sampled, dim=1)
        torch.testing.assert_close(cut, expected)
        gradients = [torch.autograd.grad(x.square().sum(), y)[0] for x, y in ((cut, ours), (expected, theirs))]
        if theta.stride(0):  # at grid points the bilinear kernel has a kink, where either side's slope will do
            torch.testing.assert_close(*gradients)
        assert all((g.abs().sum((0, 1)) > 0).all() for g in gradients)


def test_stripes_are_those_of_adaptive_average_pooling(generator: torch.Generator) -> None:
    for height, width, count in ((24, 8, 3), (8, 4, 3), (4, 2, 3), (7, 3, 2)):
        feature_map = normal(generator, 2, 5, height, width)
        expected = F.adaptive_avg_pool2d(feature_map, (count, 1)).squeeze(3).transpose(1, 2)
        torch.testing.assert_close(parts.cut(feature_map, parts.stripe_weights(count, height, width)), expected)


def test_the_localisation_net_starts_with_three_disjoint_horizontal_thirds(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = patches.LocalisationNet(D, patches.stripe_thetas(PARTS))
    feature_map = torch.randn(2, D, 24, 8, generator=generator)
    weights = patches.affine_weights(net(feature_map), 24, 8)
    stripes = parts.stripe_weights(PARTS, 24, 8)
    assert (weights - stripes).abs().max() < 0.5 / (8 * 8)  # of a cell, at the borders, where sampling interpolates
    rows = weights.sum(dim=3)
    assert ((rows > 1e-6).sum(dim=1) <= 2).all()
    for part in range(PARTS):
        assert rows[:, part, 8 * part : 8 * part + 8].sum(dim=1).min() > 0.94
    wrong = released.released_localisation(D, 0)(feature_map)
    assert torch.equal(wrong[0, 0], wrong[0, 2])
    assert torch.linalg.matrix_rank(wrong[0, 0, :, :2]) == 1


def test_a_window_is_never_larger_than_the_map_and_a_step_back_inside_has_a_gradient() -> None:
    start = torch.tensor([1.0, -2.44, 2.44, -1.0, 0.4, -0.4]).view(1, 2, 3)
    net = patches.LocalisationNet(D, start)
    theta = net(torch.rand(4, D, 8, 4))
    torch.testing.assert_close(theta[0].flatten(), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.4, -0.4]))
    for sign, passing in ((1.0, [1, 0, 1, 0, 1, 1]), (-1.0, [0, 1, 0, 1, 1, 1])):
        (gradient,) = torch.autograd.grad(sign * theta.sum(), net.last.bias, retain_graph=True)
        torch.testing.assert_close(gradient, 4 * sign * torch.tensor(passing).float())
    assert torch.equal(patches.LocalisationNet(D, start, bounded=False)(torch.rand(4, D, 8, 4))[0], start)


def test_the_diffusion_learns_the_very_windows_that_training_cuts_with(generator: torch.Generator) -> None:
    """At t = 0 the step before is theta0 itself; the localisation net would leave the map if it could."""
    sdm = pisl().sdm
    nn.init.normal_(sdm.localisation.last.weight, std=1.0, generator=generator)
    drawn = {"t": torch.zeros(6, dtype=torch.long), "noise": normal(generator, 6, 18)}
    found = sdm(normal(generator, 6, D, 8, 4).abs(), normal(generator, 6, D), drawn)
    theta0 = found["theta_before"]
    assert ((theta0.abs() == 1).sum() > 6).item(), "some windows must touch the bound"
    torch.testing.assert_close(found["weights"], patches.affine_weights(theta0.view(6, PARTS, 2, 3), 8, 4))


def test_extraction_finds_the_windows_of_training_with_less_noise_than_they_differ_between_images() -> None:
    """40 steps of the whole loss at the method's own rates; the localisation net at the full rate runs away."""
    method, batch = started(pisl(sampling_steps=20).float()), batch_of(size=16)
    batch.images[0] = batch.images[0].float()
    optimiser = build_optimiser(method, Optimiser())
    set_rate(optimiser, 3.5e-4, Schedule(), place=0)
    for _ in range(40):
        optimiser.zero_grad()
        torch.stack(list(method.loss(method.forward(batch), batch).values())).sum().backward()
        optimiser.step()
    method.eval()
    with torch.no_grad():
        feature_map = method.embedder.map(batch.images[0])
        embedding = method.embedder.neck(method.embedder.pool(feature_map))
        wanted = method.sdm.localisation(feature_map).flatten(1)
        first, second = (method.sdm.sample(embedding, torch.arange(16) + 1000 * draw) for draw in (0, 1))
    signal = wanted.var(dim=0).mean().sqrt()
    noise = (first - second).square().mean().div(2).sqrt()
    assert noise < signal / 10
    assert (first - wanted).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("padding", [0, 1])
def test_a_map_too_narrow_for_the_convolution_is_padded(padding: int) -> None:
    net = patches.LocalisationNet(D, patches.stripe_thetas(PARTS), padding).eval()
    assert net(torch.rand(2, D, 8, 4)).shape == (2, PARTS, 2, 3)
    if padding:
        assert net(torch.rand(2, D, 4, 2)).shape == (2, PARTS, 2, 3)


# The released diffusion


def literal_released_sampler(net, embedding: Tensor, start: Tensor, noises: Tensor, renewals: Tensor) -> Tensor:
    """An account of the official loop, step by step and row by row."""
    theta, snapshots = start, []
    unit_embedding = F.normalize(embedding, dim=1)
    for step, t in enumerate(range(T - 1, -1, -1)):
        predicted = net(theta, unit_embedding, torch.full((len(theta),), t))
        abar, before = SHARES[t + 1], SHARES[t]
        sigma = torch.sqrt((1 - abar / before) * (1 - before) / (1 - abar))
        theta = before.sqrt() * theta + (1 - before - sigma**2).clamp(min=0).sqrt() * predicted
        theta = theta + sigma * noises[:, step]
        if t > 0:
            kept = [theta[i] for i in range(len(theta)) if torch.sigmoid(predicted[i].mean()) > 0.5]
            theta = torch.stack([*kept, *(renewals[i, step] for i in range(len(kept), len(theta)))])
        if t % 100 == 0:
            snapshots.append(theta)
    assert len(snapshots) == 10
    return torch.stack(snapshots).mean(0)


def test_the_released_sampler_is_the_released_loop_rows_mixed_and_all(generator: torch.Generator) -> None:
    method = pisl(**RELEASED)
    sdm = method.sdm
    nn.init.normal_(sdm.denoiser.last.weight, std=0.5, generator=generator)
    nn.init.normal_(sdm.denoiser.of_image.weight, std=3, generator=generator)
    nn.init.constant_(sdm.denoiser.last.bias, -2.7)
    embedding, keys = normal(generator, 5, D), torch.arange(5)
    tables = image_noise(keys, int(sdm.seed), (2 * T + 1, 18)).double()
    with torch.no_grad():
        predicted = sdm.denoiser(torch.zeros(5, 18).double(), F.normalize(embedding, dim=1), torch.full((5,), 500))
        assert 0 < (predicted.mean(dim=1) > 0).sum() < 5, "some rows must be renewed and some kept"
        expected = literal_released_sampler(
            sdm.denoiser, embedding, tables[:, 0], tables[:, 1 : T + 1], tables[:, T + 1 :]
        )
        torch.testing.assert_close(sdm.sample(embedding, keys), expected, rtol=1e-6, atol=1e-8)


def test_the_released_sampler_starts_where_the_official_one_was_measured_to(generator: torch.Generator) -> None:
    with torch.no_grad():
        theta = pisl(**RELEASED).float().sdm.sample(normal(generator, 20, D).float(), torch.arange(20)).mean(0)
    torch.testing.assert_close(theta[:6], torch.tensor([4.25, 4.25, 0, 4.25, 4.25, -0.43]), rtol=0, atol=0.15)


def test_released_training_cuts_with_noised_parameters_and_one_time_per_replica() -> None:
    method = started(pisl(bn_groups=2, **RELEASED))
    drawn = method.sdm.draw(9, torch.Generator().manual_seed(4))
    assert drawn["t"][:5].unique().numel() == 1
    assert drawn["t"][5:].unique().numel() == 1
    assert drawn["t"].unique().numel() == 2
    output = method.forward(batch_of())
    noised = output["predicted_theta_before"]
    assert noised.min() >= 0
    assert noised.max() <= 1
    assert noised.requires_grad
    torch.testing.assert_close(output["theta_before"][0, :3].float(), torch.tensor([1, 1 / 3, 1 / 3]))
