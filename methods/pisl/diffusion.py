"""Diffusion over vectors of affine parameters: schedule, DDIM, the denoiser, noise that belongs to an image.

docs/methods/pisl.md, "Diffusion of windows".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.rng import normal

TIME_DIM = 512  # length of the sinusoidal time code


def cosine_betas(steps: int, s: float = 0.008, largest: float = 0.999) -> Tensor:
    """(T,) float64 betas of the cosine schedule, clipped to [0, ``largest``].

    beta_t = 1 - f(t + 1) / f(t) with f(t) = cos^2( (t/T + s) / (1 + s) * pi/2 ), t = 0..T-1.
    """
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((place + s) / (1 + s) * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(0, largest)


def signal_shares(steps: int) -> Tensor:
    """(T + 1,) float64 abar: entry t + 1 is abar_t, and entry 0 is abar_{-1} = 1, the clean end."""
    kept = torch.cumprod(1 - cosine_betas(steps), dim=0)
    return torch.cat([kept.new_ones(1), kept])


def q_sample(x0: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; x0, noise (b, n), share = abar_t (b, 1) or a scalar."""
    return share.sqrt() * x0 + (1 - share).sqrt() * noise


def predict_x0(x_t: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """The clean vector that ``noise`` implies, clamped to [-1, 1]: the inverse of ``q_sample``."""
    return ((x_t - (1 - share).sqrt() * noise) / share.sqrt()).clamp(-1, 1)


def implied_noise(x_t: Tensor, x0: Tensor, share: Tensor) -> Tensor:
    """The noise that leads from ``x0`` to ``x_t``: the other inverse of ``q_sample``."""
    return (x_t - share.sqrt() * x0) / (1 - share).sqrt()


def ddim_step(x_t: Tensor, noise: Tensor, share: Tensor, share_before: Tensor) -> Tensor:
    """The Phi-step, DDIM with eta = 0: sqrt(abar') x0_hat + sqrt(1 - abar') noise, abar' = ``share_before``."""
    return q_sample(predict_x0(x_t, noise, share), noise, share_before)


def sampling_times(steps: int, samples: int) -> list[int]:
    """``samples`` times from T - 1 down to 0, evenly spaced; a single one is T - 1."""
    return torch.linspace(steps - 1, 0, samples, dtype=torch.float64).round().long().tolist()


def ddim_sample(predict_noise: Callable[[Tensor, int], Tensor], start: Tensor, shares: Tensor, samples: int) -> Tensor:
    """theta_0 (b, n) from the starting noise theta_T (b, n), by ``samples`` DDIM steps.

    ``predict_noise(theta_t, t)`` is the denoiser, ``shares`` (T + 1,) as of ``signal_shares``.
    """
    theta = start
    times = sampling_times(len(shares) - 1, samples)
    for t, before in zip(times, [*times[1:], -1], strict=True):
        theta = ddim_step(theta, predict_noise(theta, t), shares[t + 1], shares[before + 1])
    return theta


def time_code(t: Tensor) -> Tensor:
    """(b, TIME_DIM) sines and cosines of times t (b,), wavelengths from 2 pi to 20000 pi, in the type of t."""
    half = TIME_DIM // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10000) / (half - 1)))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Denoiser(nn.Module):
    """An MLP with two hidden layers over theta_t, f_g and t, in float32 or wider; without theta_t, the released net.

    Its ``parameters`` outputs estimate theta0; those of the released net, which sees no theta_t, the noise. The first
    layer is one over the three inputs laid end to end, written as a sum, so that sampling computes the image's share
    of it once for all steps.
    """

    def __init__(
        self, parameters: int, dim: int, sees_theta: bool = True, hidden: tuple[int, int] = (1024, 512)
    ) -> None:
        super().__init__()
        self.of_image = nn.Linear(dim, hidden[0])
        self.of_time = nn.Linear(TIME_DIM, hidden[0], bias=False)
        self.of_theta = nn.Linear(parameters, hidden[0], bias=False) if sees_theta else None
        self.middle = nn.Linear(*hidden)
        self.last = nn.Linear(hidden[1], parameters)

    def context(self, embedding: Tensor) -> Tensor:
        """(b, hidden) the share of f_g (b, D) in the first layer."""
        with torch.autocast(embedding.device.type, enabled=False):
            return self.of_image(embedding)

    def predict(self, theta: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """(b, n) of theta_t (b, n) at times t (b,) or (1,)."""
        with torch.autocast(theta.device.type, enabled=False):
            first = context + self.of_time(time_code(t.to(theta.dtype)))
            if self.of_theta is not None:
                first = first + self.of_theta(theta)
            return self.last(torch.relu(self.middle(torch.relu(first))))

    def forward(self, theta: Tensor, embedding: Tensor, t: Tensor) -> Tensor:
        """(b, n) of theta_t (b, n), f_g (b, D) and times t (b,)."""
        return self.predict(theta, t, self.context(embedding))


def image_keys(images: Tensor) -> Tensor:
    """(b,) int64, a checksum of each image (b, 3, H, W) in integers: the same in any batch, on any device."""
    bits = images.float().contiguous().view(torch.int32)
    rows = bits.sum(dim=(1, 3), dtype=torch.int64)
    weights = 2 * torch.arange(rows.shape[1], device=rows.device) + 1
    return (rows * weights.square()).sum(dim=1)


def image_noise(keys: Tensor, seed: int, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape) float32 standard normal noise on the device of ``keys`` (b,); row i depends on key i and seed only.

    ``embed`` is not told which rows it embeds, so noise is seeded by what an image is instead of where it stands: it
    does not depend on the batch size, the order or the number of processes, and two equal images share it.
    """
    generator = torch.Generator()
    rows = [normal(shape, generator.manual_seed((key ^ seed) & (2**63 - 1))) for key in keys.tolist()]
    return torch.stack(rows).to(keys.device)
