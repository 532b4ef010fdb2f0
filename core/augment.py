"""Batched augmentation: every random number is drawn on the CPU first, then applied on the device.

``draw`` gives one row per image, so a process of a distributed run draws for the full batch and
keeps its slice, ``{name: rows[low:high] for name, rows in params.items()}``; the images then do not
depend on the number of processes or on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError

ATTEMPTS = 100  # rectangles tried before random erasing gives up, as in the family's code
BLUR_REACH = 7  # pixels, 3.5 standard deviations of ICE's strongest
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights as torchvision rounds them


@dataclass(frozen=True)
class Augment:
    """Training augmentation; the defaults are those of the Cluster-Contrast family.

    Flip, zero padding and random crop, colour jitter, normalisation, random erasing: in this order, as in
    ``utils/data/transforms.py`` of HHCL and Cluster Contrast, which have no jitter.
    """

    flip_probability: float = 0.5
    pad: int = 10  # pixels on each side, black, before the crop back to the original size
    brightness: float = 0.0  # the jitter strengths are torchvision's ColorJitter's; 0 = off
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 1.0
    erase_probability: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)  # share of the image
    # Height / width is uniform (not log-uniform) in (a, 1 / a), or between the two values given.
    erase_aspect: float | tuple[float, float] = 0.3
    # The family erases after normalisation, so these are colours of the normalised image.
    erase_fill: tuple[float, float, float] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        shares = ("flip_probability", "jitter_probability", "erase_probability")
        wrong = [name for name in shares if not 0 <= getattr(self, name) <= 1]
        strengths = ("pad", "brightness", "contrast", "saturation", "hue")
        wrong += [name for name in strengths if getattr(self, name) < 0]
        if wrong or self.hue > 0.5:
            raise UserError(
                f"augmentation: {wrong or ['hue']} out of range in {self}; probabilities lie in "
                "[0, 1], strengths are not negative, and hue is at most 0.5"
            )
        low, high = self.erase_area
        narrow, broad = self.aspects
        if not 0 < low <= high <= 1 or not 0 < narrow <= broad:
            raise UserError(
                f"augmentation: erase_area {self.erase_area} must be ordered shares in (0, 1] and "
                f"erase_aspect {self.erase_aspect} must lie in (0, 1], or be two ordered ratios above 0"
            )

    @property
    def aspects(self) -> tuple[float, float]:
        """The least and the largest height / width of what is erased."""
        given = self.erase_aspect
        return given if isinstance(given, tuple) else (given, 1 / given if given > 0 else 0.0)

    @property
    def jitters(self) -> bool:
        """Whether any colour jitter is asked for."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of a share of the images, for methods whose views have one; ``sigma`` in pixels, uniform."""

    probability: float
    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 < self.sigma[0] <= self.sigma[1]):
            raise UserError(f"{self}: a probability lies in [0, 1], and sigma is two ordered lengths above 0")


def draw(config: Augment, batch: int, height: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of ``batch`` images of ``height`` x ``width``: CPU tensors with ``batch`` rows.

    flip (B,) bool; shift (B, 2) of the crop, down and right; erase (B, 4) top, left, height, width
    (0 when nothing is erased); fill (B, 3); and, with colour jitter, jitter (B, 4) brightness,
    contrast and saturation factors and hue shift, order (B, 4) in which they are applied.
    """
    params = {
        "flip": torch.rand(batch, generator=generator) < config.flip_probability,
        "shift": torch.randint(-config.pad, config.pad + 1, (batch, 2), generator=generator),
        "erase": _draw_rectangles(config, batch, height, width, generator),
        "fill": torch.tensor(config.erase_fill).expand(batch, 3),
    }
    if config.jitters:
        params |= _draw_jitter(config, batch, generator)
    return params


def draw_blur(config: Blur, batch: int, generator: torch.Generator) -> Tensor:
    """(B,) standard deviations, 0 for an image that stays sharp; a CPU tensor."""
    chosen = torch.rand(batch, generator=generator) < config.probability
    low, high = config.sigma
    return (low + (high - low) * torch.rand(batch, generator=generator)) * chosen


def apply(images: Tensor, params: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Augmented and normalised float32 (B, 3, H, W) of uint8 ``images`` of the same shape.

    ``params`` of ``draw``; with ``sigma`` (B,) of ``draw_blur``, images are blurred before they are normalised.
    """
    if len(images) != len(params["flip"]):
        raise UserError(
            f"augmentation parameters for {len(params['flip'])} images cannot be applied to "
            f"{len(images)}; slice both by the same rows"
        )
    # The padding is read before the parameters move, so that the device is not waited for.
    pad = int(params["shift"].abs().max()) if len(images) else 0
    on_device = {name: rows.to(images.device, non_blocking=True) for name, rows in params.items()}
    images = torch.where(on_device["flip"][:, None, None, None], images.flip(-1), images)
    images = crop_shifted(images, on_device["shift"], pad)
    if "jitter" in on_device:
        images = jitter_colours(images / 255, on_device["jitter"], on_device["order"]).mul_(255)
    if "sigma" in on_device:
        images = blur(images.to(torch.float32), on_device["sigma"])
    return erase(normalise(images, mean, std), on_device["erase"], on_device["fill"])


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std per channel as float32, of (B, 3, H, W) in 0..255."""
    images = images.to(torch.float32, copy=True).div_(255)
    centre = images.new_tensor(mean)[:, None, None]
    return images.sub_(centre).div_(images.new_tensor(std)[:, None, None])


def crop_shifted(images: Tensor, shift: Tensor, pad: int) -> Tensor:
    """The windows that start ``shift`` (B, 2) rows and columns away from each image's own corner.

    What lies outside the image is 0; ``pad`` is the largest shift in absolute value. All windows
    are a strided view of the padded batch, so each one is copied once, without index arithmetic
    per pixel.
    """
    if pad == 0:
        return images
    height, width = images.shape[-2:]
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, pad + shift[:, 0], pad + shift[:, 1]]


def erase(images: Tensor, rectangles: Tensor, fill: Tensor) -> Tensor:
    """``images`` (B, 3, H, W), each with its (top, left, height, width) set to ``fill`` (B, 3)."""
    top, left, tall, wide = rectangles[:, :, None].unbind(1)
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    inside_rows = (row >= top) & (row < top + tall)
    inside_columns = (column >= left) & (column < left + wide)
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return torch.where(inside, fill.to(images.dtype)[:, :, None, None], images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """``images`` (B, C, H, W), each under a Gaussian of its ``sigma`` (B,) in pixels; 0 leaves it as it is.

    The kernel ends BLUR_REACH pixels from its centre; beyond the border, the border's pixels go on.
    """
    height, width = images.shape[-2:]
    squares = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=images.device).square()
    # The bound makes one pixel of the kernel of a sigma of 0.
    kernels = torch.softmax(-squares / (2 * sigma.double()[:, None].square()).clamp(min=1e-4), dim=1)
    weights = kernels.to(images.dtype).T[:, :, None, None, None]
    planes = F.pad(images, [BLUR_REACH] * 4, mode="replicate")
    # Products and sums one after the other: a convolution rounds otherwise on every processor.
    down = sum(weight * planes[:, :, place : place + height] for place, weight in enumerate(weights))
    return sum(weight * down[..., place : place + width] for place, weight in enumerate(weights))


def _draw_rectangles(config: Augment, batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(B, 4) top, left, height, width to erase: the first of ATTEMPTS that fits, or zeros."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    chosen = uniform(batch) < config.erase_probability
    low, high = config.erase_area
    area = (low + (high - low) * uniform(batch, ATTEMPTS)) * height * width
    narrow, broad = config.aspects
    aspect = narrow + (broad - narrow) * uniform(batch, ATTEMPTS)
    tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    tall, wide = tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
    top = (uniform(batch) * (height - tall + 1)).long()
    left = (uniform(batch) * (width - wide + 1)).long()
    rectangles = torch.stack([top, left, tall, wide], dim=1)
    return rectangles * (chosen & fits.any(dim=1)).long()[:, None]


def _draw_jitter(config: Augment, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Factors uniform in [max(0, 1 - s), 1 + s], hue shift in [-s, s], in a random order."""
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    strength = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    low = neutral - strength
    low[:3] = low[:3].clamp(min=0)
    factors = low + (neutral + strength - low) * torch.rand(batch, 4, generator=generator)
    chosen = torch.rand(batch, 1, generator=generator) < config.jitter_probability
    return {
        "jitter": torch.where(chosen, factors, neutral),
        "order": torch.rand(batch, 4, generator=generator).argsort(dim=1),
    }


def jitter_colours(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """``images`` (B, 3, H, W) in [0, 1] after torchvision's four colour adjustments.

    ``factors`` (B, 4): brightness, contrast, saturation, hue shift; ``order`` (B, 4) is the
    permutation in which an image receives them.
    """
    adjust = (_brightness, _contrast, _saturation, _hue)
    for step in range(len(adjust)):
        for which, function in enumerate(adjust):
            rows = (order[:, step] == which).nonzero().squeeze(1)
            factor = factors[rows, which][:, None, None, None]
            images = images.index_copy(0, rows, function(images[rows], factor))
    return images


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).double().mean((1, 2, 3), keepdim=True)  # alike on every processor
    return _blend(images, mean.to(images.dtype), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images), factor)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by ``shift`` turns, keeping HSV value and chroma."""
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    red, green, blue = images.unbind(1)
    scale = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    turned = sextant[:, None] + 6 * shift
    # Channel c is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (offset_c + hue) mod 6.
    offset = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    position = (turned + offset) % 6
    distance = torch.minimum(position, 4 - position).clamp(0, 1)
    return value[:, None] - chroma[:, None] * distance
