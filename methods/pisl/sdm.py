"""The four ways to place the parts: stripes, a spatial transformer, the diffusion, and the diffusion as released.

Each has ``draw`` (this step's random numbers of the full batch), ``forward`` (training: ``weights`` of the parts on
the map and what its loss reads), ``locate`` (extraction: the weights alone) and ``theta_loss`` (SCD's first terms).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.parts import stripe_weights
from core.rng import normal
from methods.pisl.diffusion import (
    Denoiser,
    ddim_sample,
    ddim_step,
    image_noise,
    implied_noise,
    predict_x0,
    q_sample,
    signal_shares,
)
from methods.pisl.losses import theta_consistency
from methods.pisl.patches import LocalisationNet, affine_weights

Outputs = dict[str, Tensor]


class Stripes(nn.Module):
    """P equal horizontal stripes, as in PPLR; nothing to learn."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def draw(self, batch: int, generator: torch.Generator) -> Outputs:
        """No random numbers."""
        return {}

    def forward(self, feature_map: Tensor, embedding: Tensor, drawn: Outputs) -> Outputs:
        """``weights`` (b, P, h, w)."""
        weights = stripe_weights(self.parts, *feature_map.shape[2:]).to(feature_map.device)
        return {"weights": weights.expand(len(feature_map), -1, -1, -1)}

    def locate(self, feature_map: Tensor, embedding: Tensor, keys: Tensor) -> Tensor:
        """As in training."""
        return self(feature_map, embedding, {})["weights"]

    def theta_loss(self, output: Outputs, theta_weight: float, cosine_weight: float) -> Outputs:
        """No parameters, no loss."""
        return {}


class SpatialTransformer(Stripes):
    """Affine windows theta0 that the localisation net proposes; without diffusion."""

    def __init__(self, parts: int, localisation: LocalisationNet) -> None:
        super().__init__(parts)
        self.localisation = localisation

    def forward(self, feature_map: Tensor, embedding: Tensor, drawn: Outputs) -> Outputs:
        return {"weights": affine_weights(self.localisation(feature_map), *feature_map.shape[2:])}


class SpatialDiffusion(SpatialTransformer):
    """SDM: training learns to denoise theta0 given f_g; extraction samples theta from noise by DDIM.

    Patches are cut with theta0 in training, or with the one-step estimate of it (``train_patches`` x0_hat). The
    denoiser's output is an estimate of theta0, from which its noise follows: a net that gives the noise itself passes
    its error on to theta at every step.
    """

    shares: Tensor
    seed: Tensor

    def __init__(
        self,
        parts: int,
        localisation: LocalisationNet,
        denoiser: Denoiser,
        timesteps: int,
        samples: int,
        train_patches: str = "theta0",
    ) -> None:
        super().__init__(parts, localisation)
        self.denoiser = denoiser
        self.samples, self.train_patches = samples, train_patches
        self.register_buffer("shares", signal_shares(timesteps), persistent=False)
        self.register_buffer("seed", torch.randint(2**62, ()))

    def draw(self, batch: int, generator: torch.Generator) -> Outputs:
        """A time t (B,) and noise (B, 6P) for each image."""
        times = torch.randint(len(self.shares) - 1, (batch,), generator=generator)
        return {"t": times, "noise": normal((batch, 6 * self.parts), generator)}

    def forward(self, feature_map: Tensor, embedding: Tensor, drawn: Outputs) -> Outputs:
        """``weights``, and for SCD: the noise, the predicted noise, theta_{t-1} and its Phi-step estimate (b, 6P)."""
        theta0 = self.localisation(feature_map)
        x0 = theta0.flatten(1)
        t, noise = drawn["t"], drawn["noise"].to(x0.dtype)
        share, share_before = self.shares[t + 1, None], self.shares[t, None]
        # SCD teaches the denoiser, not the localisation net or the backbone.
        x_t = q_sample(x0.detach(), noise, share)
        predicted = self.predict_noise(x_t, t, self.denoiser.context(embedding.detach()))
        if self.train_patches == "x0_hat":
            theta0 = predict_x0(q_sample(x0, noise, share), predicted, share).view_as(theta0)
        return {
            "weights": affine_weights(theta0, *feature_map.shape[2:]),
            "noise": noise,
            "predicted_noise": predicted,
            "theta_before": q_sample(x0.detach(), noise, share_before),
            "predicted_theta_before": ddim_step(x_t, predicted, share, share_before),
        }

    def predict_noise(self, theta: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps_hat (b, 6P) = Phi(theta_t, f_g, t) at times t (b,) or (1,); ``context`` is the denoiser's of f_g."""
        return implied_noise(theta, self.denoiser.predict(theta, t, context), self.shares[t + 1, None])

    def locate(self, feature_map: Tensor, embedding: Tensor, keys: Tensor) -> Tensor:
        """``weights`` (b, P, h, w) of thetas sampled for each image from the noise of its key."""
        theta = self.sample(embedding, keys)
        return affine_weights(theta.view(-1, self.parts, 2, 3), *feature_map.shape[2:])

    def sample(self, embedding: Tensor, keys: Tensor) -> Tensor:
        """theta (b, 6P) for f_g (b, D), denoised from theta_T ~ N(0, I)."""
        start = image_noise(keys, int(self.seed), (6 * self.parts,)).to(embedding.dtype)
        context = self.denoiser.context(embedding)

        def predict(theta: Tensor, t: int) -> Tensor:
            return self.predict_noise(theta, torch.tensor([t], device=theta.device), context)

        return ddim_sample(predict, start, self.shares, self.samples)

    def theta_loss(self, output: Outputs, theta_weight: float, cosine_weight: float) -> Outputs:
        """MSE of the predicted noise; theta_weight [MSE + cosine_weight (1 - cos)] of theta_{t-1} and its estimate."""
        step = theta_consistency(output["predicted_theta_before"], output["theta_before"], cosine_weight)
        return {
            "noise": F.mse_loss(output["predicted_noise"], output["noise"]),
            "theta": theta_weight * step,
        }
