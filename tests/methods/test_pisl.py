"""PISL by its spec (pisl.md section 13): diffusion, patches, scores, losses, and PPLR as its reduction."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.backbones.pooling import AveragePooling
from core.config import Backbone, Clustering, Config, Sampler
from core.data import Batch, Labels
from core.distributed import World
from core.timing import PhaseTimer
from methods.pisl import consistency, losses, patches, released
from methods.pisl.diffusion import (
    Denoiser,
    cosine_betas,
    ddim_sample,
    ddim_step,
    image_keys,
    image_noise,
    predict_x0,
    q_sample,
    sampling_times,
    signal_shares,
    time_code,
)
from methods.pisl.method import PISL, Settings

T, D, CLUSTERS, PARTS = 1000, 16, 6, 3
SHARES = signal_shares(T)
PPLR = {"sdm": "stripes", "score": "jaccard", "scd_weight": 0.0, "camera_weight": 0.0}
RELEASED = {"diffusion": "released", "score": "released", "shared_neck": True, "sampling_steps": 1000}


class SmallBackbone(nn.Module):
    """Images (b, 3, 64, 32) to a map (b, D, 8, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 8, stride=8)

    def forward(self, images: Tensor, after: object = None) -> Tensor:
        return torch.relu(self.conv(images))


class Data:
    """Stands in for the training data: eval-mode outputs and cameras, on one of ``size`` processes."""

    def __init__(self, count: int, cameras: np.ndarray | None = None, rank: int = 0, size: int = 1) -> None:
        generator = torch.Generator().manual_seed(5)
        self.outputs = {
            "feature": F.normalize(torch.randn(count, D, generator=generator), dim=1),
            "parts": F.normalize(torch.randn(count, PARTS, D, generator=generator), dim=2),
        }
        self.world = World(rank, size, torch.device("cpu"))
        self.timer = PhaseTimer()
        self._cameras = cameras

    def __len__(self) -> int:
        return len(self.outputs["feature"])

    def features(self) -> Tensor:
        return self.outputs["feature"]

    def embedded(self, key: str) -> Tensor:
        return self.outputs[key]

    def cameras(self, use: str) -> np.ndarray:
        assert use == "loss"
        assert self._cameras is not None, "cameras were read although nothing declares them"
        return self._cameras


def pisl(bn_groups: int = 1, **settings: object) -> PISL:
    config = Config(
        settings=Settings(**settings),  # type: ignore[arg-type]
        backbone=Backbone(bn_groups=bn_groups),
        clustering=Clustering(k1=5, k2=2, eps=0.9),
    )
    torch.manual_seed(0)
    return PISL(config, Embedder(SmallBackbone(), AveragePooling(), D), capacity=48).double()


def started(method: PISL, rank: int = 0, size: int = 1) -> PISL:
    """The method at the start of an epoch with 48 images, 8 of each cluster, from 4 cameras."""
    data = Data(48, np.arange(48) % 4, rank, size)
    ids = np.repeat(np.arange(CLUSTERS), 8)
    method.start_epoch(Labels(ids), data, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    return method.train()


def batch_of(size: int = 8, epoch: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randperm(48, generator=generator)[:size]
    return Batch(
        images=[torch.randn(size, 3, 64, 32, generator=generator, dtype=torch.float64)],
        indices=rows,
        targets=rows // 8,
        cameras=rows % 4,
        extra={"consistency": torch.rand(size, PARTS, generator=generator)},
        epoch=epoch,
    )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors are small here, and samplers take many steps: a second thread only waits for the first."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(normal(generator, *shape), dim=-1)


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


@pytest.mark.parametrize("sees_theta", [True, False])
def test_the_denoiser_depends_on_theta_and_the_released_one_does_not(
    generator: torch.Generator, sees_theta: bool
) -> None:
    torch.manual_seed(0)
    net = Denoiser(18, D, sees_theta).double()
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
    """Spec 5.1: blind, the best mean squared error is 1."""
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
        mine = World(rank, 2, torch.device("cpu")).part(8)
        local = started(pisl(), rank, 2).forward(dataclasses.replace(batch, images=[batch.images[0][mine]]))
        assert torch.equal(local["noise"], whole["noise"][mine])


# Patches


def test_affine_weights_are_grid_sampling_and_average_pooling_with_the_same_gradient(
    generator: torch.Generator,
) -> None:
    feature_map = normal(generator, 4, 5, 8, 4)
    for theta in (normal(generator, 4, PARTS, 2, 3), patches.stripe_thetas(PARTS).double().expand(4, -1, -1, -1)):
        ours, theirs = theta.clone().requires_grad_(), theta.clone().requires_grad_()
        cut = patches.cut(feature_map, patches.affine_weights(ours, 8, 4))
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
    for height, width, parts in ((24, 8, 3), (8, 4, 3), (4, 2, 3), (7, 3, 2)):
        feature_map = normal(generator, 2, 5, height, width)
        expected = F.adaptive_avg_pool2d(feature_map, (parts, 1)).squeeze(3).transpose(1, 2)
        torch.testing.assert_close(patches.cut(feature_map, patches.stripe_weights(parts, height, width)), expected)


def test_the_localisation_net_starts_with_three_disjoint_horizontal_thirds(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = patches.LocalisationNet(D, patches.stripe_thetas(PARTS))
    feature_map = torch.randn(2, D, 24, 8, generator=generator)
    weights = patches.affine_weights(net(feature_map), 24, 8)
    stripes = patches.stripe_weights(PARTS, 24, 8)
    assert (weights - stripes).abs().max() < 0.5 / (8 * 8)  # of a cell, at the borders, where sampling interpolates
    rows = weights.sum(dim=3)
    assert ((rows > 1e-6).sum(dim=1) <= 2).all()
    for part in range(PARTS):
        assert rows[:, part, 8 * part : 8 * part + 8].sum(dim=1).min() > 0.94
    wrong = released.released_localisation(D, 0)(feature_map)
    assert torch.equal(wrong[0, 0], wrong[0, 2])
    assert torch.linalg.matrix_rank(wrong[0, 0, :, :2]) == 1


@pytest.mark.parametrize("padding", [0, 1])
def test_a_map_too_narrow_for_the_convolution_is_padded(padding: int) -> None:
    net = patches.LocalisationNet(D, patches.stripe_thetas(PARTS), padding).eval()
    assert net(torch.rand(2, D, 8, 4)).shape == (2, PARTS, 2, 3)
    if padding:
        assert net(torch.rand(2, D, 4, 2)).shape == (2, PARTS, 2, 3)


# The released diffusion


def literal_released_sampler(net, embedding: Tensor, start: Tensor, noises: Tensor, renewals: Tensor) -> Tensor:
    """The spec's account of it (5.1), step by step and row by row."""
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


def test_the_released_sampler_starts_where_the_spec_measured_it(generator: torch.Generator) -> None:
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
    for d2, expected in ((0.01, 0.22), (5.0, 0.40)):  # the spec's measured range at k = 20
        other = whole + math.sqrt(d2 / 400)
        score = consistency.released_score(whole, other)
        assert score[0].item() == pytest.approx(expected, abs=0.03)
        assert (score > before).all()
        before = score


# Losses


def test_the_part_loss_is_cross_entropy_at_one_and_distance_to_uniform_at_zero(generator: torch.Generator) -> None:
    logits, targets = normal(generator, 5, PARTS, 7), torch.tensor([0, 3, 6, 2, 2])
    loss = losses.consistency_smoothed_cross_entropy
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
    whole = losses.refined_cross_entropy(logits, part_logits, targets, scores, 1.0)
    torch.testing.assert_close(whole, F.cross_entropy(logits, targets))
    refined = losses.refined_cross_entropy(logits, part_logits, targets, scores, 0.5)
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
    found = losses.camera_contrast(
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


# The method


def pplr_loss(output: dict[str, Tensor], batch: Batch, epoch: int) -> Tensor:
    """PPLR without cameras (spec baselines, section 5), image by image and part by part."""
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


def test_the_scd_loss_is_the_sum_of_the_specs_terms() -> None:
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
    predicted = method.sdm.denoiser(theta_t, F.batch_norm(pooled, None, None, training=True), t)
    torch.testing.assert_close(output["predicted_noise"], predicted, rtol=1e-4, atol=1e-4)


def test_scd_teaches_the_denoiser_and_neither_the_localisation_net_nor_the_backbone() -> None:
    method, batch = started(pisl()), batch_of()
    terms = method.loss(method.forward(batch), batch)
    (terms["scd_noise"] + terms["scd_theta"]).backward()
    reached = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"denoiser"}


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
        return losses.camera_contrast(features, *same, memory.rows, 0.07, 50)

    parts = [term(output["parts"][:, p], method.part_cameras[p]) for p in range(PARTS)]
    expected = 0.5 * (term(output["embedding"], method.cameras) + sum(parts) / PARTS)
    torch.testing.assert_close(method.loss(output, batch)["camera"], expected)
    rows = method.cameras.rows.clone()
    method.after_step(output, batch)
    assert torch.equal(method.cameras.rows, rows), "proxies stay for the epoch"


def test_the_epoch_of_the_score_scales_with_the_run() -> None:
    from pipeline.settings import resolve_run

    published = resolve_run("pisl", "market1501", {"profile": "published"}).config
    assert published.settings.consistency_from == 5
    assert published.clustering.eps == 0.4
    short = resolve_run("pisl", "rendered", {"profile": "controlled"}).config
    assert short.settings.consistency_from == round(5 * short.schedule.epochs / 50)
    blind = resolve_run("pisl-no_cam", "msmt17_v2", {"profile": "published"}).config
    assert PISL.needs(blind).cameras == frozenset()
    assert blind.clustering.eps == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sdm": "grid"}, "stripes, stn, diffusion"),
        ({"score": "cosine"}, "mmd, jaccard, released"),
        ({"sampling_steps": 1001}, "1 to timesteps 1000"),
        ({"own_label_share": 1.5}, r"share in \[0, 1\]"),
        ({"scd_weight": 0.0}, "nothing else trains the denoiser"),
        ({"diffusion": "released", "parts": 4}, "3 parts"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]
