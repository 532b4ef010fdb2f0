"""The diffusion as the official repository has it, for the reproduction column only.

docs/methods/pisl.md, "Diffusion as coded".
The denoiser does not see theta_t, patches are cut with noised parameters, and sampling is no DDIM. Kept apart from
``sdm.py`` so that the method reads as the paper describes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.backbones.batchnorm import chunk_sizes
from core.rng import normal
from methods.pisl.diffusion import Denoiser, image_noise, q_sample, sampling_times
from methods.pisl.patches import LocalisationNet, affine_weights, start_at
from methods.pisl.sdm import Outputs, SpatialDiffusion

RELEASED_THETA = (1.0, 1 / 3, 1 / 3, 1.0, 1 / 3, 1 / 3)  # of every patch: its 2 x 2 part has rank 1
SNAPSHOTS = 10  # of the sampled parameters, averaged: those at t = 900, 800, ..., 0
SHIFTS = (-0.1, 0.0, 0.1)  # vertical, of the three patches, in the last bias of the denoiser


def released_localisation(dim: int, padding: int) -> LocalisationNet:
    """Three equal patches whose grid is the map's diagonal; no bound on what is learned."""
    start = torch.tensor(RELEASED_THETA).view(2, 3).repeat(len(SHIFTS), 1, 1)
    return LocalisationNet(dim, start, padding, bounded=False)


def released_denoiser(dim: int) -> Denoiser:
    """Blind to theta_t; at the start a constant, the map itself shifted a little for each patch."""
    denoiser = Denoiser(6 * len(SHIFTS), dim, sees_theta=False)
    start_at(denoiser.last, torch.tensor([value for shift in SHIFTS for value in (1, 1, 0, 1, 1, shift)]))
    return denoiser


class ReleasedDiffusion(SpatialDiffusion):
    """Three patches and a blind denoiser; ``replicas``: GPUs the batch is spread over, each with a time of its own."""

    def __init__(self, dim: int, padding: int, timesteps: int, samples: int, replicas: int) -> None:
        localisation, denoiser = released_localisation(dim, padding), released_denoiser(dim)
        super().__init__(len(SHIFTS), localisation, denoiser, timesteps, samples)
        self.replicas = replicas

    def draw(self, batch: int, generator: torch.Generator) -> Outputs:
        """One time per replica, repeated over its images (B,), and noise (B, 18)."""
        sizes = torch.tensor(chunk_sizes(batch, self.replicas))
        times = torch.randint(len(self.shares) - 1, (len(sizes),), generator=generator)
        noise = normal((batch, 6 * self.parts), generator)
        return {"t": times.repeat_interleave(sizes), "noise": noise}

    def forward(self, feature_map: Tensor, embedding: Tensor, drawn: Outputs) -> Outputs:
        """Patches are cut with theta~, the noised parameters taken from [-1, 1] to [0, 1]; nothing is detached.

        SCD's middle term then compares theta~ with theta0.
        """
        theta0 = self.localisation(feature_map).flatten(1)
        t, noise = drawn["t"], drawn["noise"].to(theta0.dtype)
        noised = (q_sample(2 * theta0 - 1, noise, self.shares[t + 1, None]).clamp(-1, 1) + 1) / 2
        return {
            "weights": affine_weights(noised.view(-1, self.parts, 2, 3), *feature_map.shape[2:]),
            "noise": noise,
            "predicted_noise": self.denoiser(noised, embedding, t),
            "theta_before": theta0,
            "predicted_theta_before": noised,
        }

    def sample(self, embedding: Tensor, keys: Tensor) -> Tensor:
        """theta (b, 18) by the released update rule, with f_g (b, D) of unit length, unlike in training.

        Rows of a batch are mixed (see ``renew``), so this alone depends on ``extraction_batch``.
        """
        steps = self.samples
        tables = image_noise(keys, int(self.seed), (2 * steps + 1, 6 * self.parts)).to(embedding.dtype)
        theta, step_noise, renewals = tables[:, 0], tables[:, 1 : steps + 1], tables[:, steps + 1 :]
        context = self.denoiser.context(F.normalize(embedding, dim=1))
        times = sampling_times(len(self.shares) - 1, steps)
        snapshots = []
        for step, (t, before) in enumerate(zip(times, [*times[1:], -1], strict=True)):
            predicted = self.denoiser.predict(theta, torch.tensor([t], device=theta.device), context)
            theta = released_step(theta, predicted, step_noise[:, step], self.shares[t + 1], self.shares[before + 1])
            if t > 0:
                theta = renew(theta, predicted.mean(dim=1) > 0, renewals[:, step])
            if (steps - 1 - step) % max(1, steps // SNAPSHOTS) == 0:
                snapshots.append(theta)
        return torch.stack(snapshots).mean(dim=0)


def released_step(theta: Tensor, predicted: Tensor, noise: Tensor, share: Tensor, share_before: Tensor) -> Tensor:
    """sqrt(abar') theta + sqrt(1 - abar' - sigma^2) eps_hat + sigma noise with eta = 1: theta stands where DDIM has
    its estimate of x0. At the clean end, abar' = 1, sigma is 0 and theta stays."""
    sigma = ((1 - share / share_before) * (1 - share_before) / (1 - share)).sqrt()
    direction = (1 - share_before - sigma.square()).clamp(min=0).sqrt()
    return share_before.sqrt() * theta + direction * predicted + sigma * noise


def renew(theta: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
    """The "renewal": kept (b,) rows of theta (b, n) move to the front, the rest become noise (b, n).

    Row i is then another image's, as coded. A row is kept where sigmoid(mean of the net's output) > 0.5.
    """
    to_front = torch.sort(~kept, stable=True).indices
    place = torch.arange(len(theta), device=theta.device)
    return torch.where((place < kept.sum())[:, None], theta[to_front], noise)
