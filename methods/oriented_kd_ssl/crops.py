"""Multi-crop: random parts of an image, resized in closed form, in random colours; draws first, then the work.

As ``DataAugmentationDINO`` of facebookresearch/dino @7c446df with the sizes of damo-cv/TransReID-SSL. Images are floats
in [0, 1], (B, 3, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core import augment
from core.augment import LUMA, Augment

ATTEMPTS = 10  # boxes tried before the largest one in the middle is taken, as torchvision does
ASPECTS = (3 / 4, 4 / 3)  # width / height of a box, torchvision's default
JITTER = Augment(0.5, 0, 0.4, 0.4, 0.2, 0.1, jitter_probability=0.8, erase_probability=0.0)
GREY = 0.2
RADIUS = (0.1, 2.0)  # of the blur, in pixels of an image of HEIGHT
HEIGHT = 256  # of the images that lengths in pixels speak of; they shrink with smaller ones
CUBIC = -0.5  # of the bicubic kernel, Pillow's


@dataclass(frozen=True)
class Look:
    """What makes a view: its share of the image's area and how often it is blurred and solarised."""

    area: tuple[float, float]
    blurred: float
    solarised: float = 0.0


def draw(look: Look, batch: int, height: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of ``batch`` views of images of ``height`` x ``width``: CPU tensors with a row for each.

    box (B, 4) top, left, height, width; flip, jitter, order of ``core.augment.draw``; grey, solarised (B,) bool;
    radius (B,) of the blur, 0 for none.
    """
    drawn = augment.draw(JITTER, batch, height, width, generator)
    low, high = (radius * height / HEIGHT for radius in RADIUS)
    blurred = torch.rand(batch, generator=generator) < look.blurred
    return {
        **{name: drawn[name] for name in ("flip", "jitter", "order")},
        "box": draw_boxes(look.area, batch, height, width, generator),
        "grey": torch.rand(batch, generator=generator) < GREY,
        "radius": (low + (high - low) * torch.rand(batch, generator=generator)) * blurred,
        "solarised": torch.rand(batch, generator=generator) < look.solarised,
    }


def draw_boxes(area: tuple[float, float], batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(B, 4) top, left, height, width: the first of ATTEMPTS that fits, as torchvision's RandomResizedCrop draws."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    low, high = area
    wanted = (low + (high - low) * uniform(batch, ATTEMPTS)) * height * width
    narrow, broad = (math.log(aspect) for aspect in ASPECTS)
    aspect = (narrow + (broad - narrow) * uniform(batch, ATTEMPTS)).exp()
    tall, wide = (wanted / aspect).sqrt().round().long(), (wanted * aspect).sqrt().round().long()
    fits = (tall > 0) & (wide > 0) & (tall <= height) & (wide <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    largest = min(height, round(width / ASPECTS[0])), min(width, round(height * ASPECTS[1]))
    tall = torch.where(found, tall.gather(1, first).squeeze(1), largest[0])
    wide = torch.where(found, wide.gather(1, first).squeeze(1), largest[1])
    share = torch.where(found[:, None], uniform(batch, 2), 0.5)
    top = (share[:, 0] * (height - tall + 1)).long()
    left = (share[:, 1] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def apply(images: Tensor, drawn: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The views (B, 3, *size) of images (B, 3, H, W) in [0, 1] by parameters of ``draw``, which are on their device."""
    views = resized(images, drawn["box"], size)
    views = torch.where(drawn["flip"][:, None, None, None], views.flip(-1), views)
    views = augment.jitter_colours(views, drawn["jitter"].to(views.dtype), drawn["order"])
    luma = (views * views.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    views = torch.where(drawn["grey"][:, None, None, None], luma, views)
    if drawn["radius"].any():
        views = augment.blur(views, drawn["radius"].to(views.dtype))
    bright = drawn["solarised"][:, None, None, None] & (views >= 0.5)
    return torch.where(bright, 1 - views, views)


def resized(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes (B, 4) of images (B, 3, H, W), each resized to ``size`` as Pillow's bicubic filter does, in [0, 1]."""
    height, width = images.shape[2:]
    top, left, tall, wide = boxes.unbind(dim=1)
    rows = resampling(top, tall, torch.full_like(top, size[0]), size[0], height, images.dtype)
    columns = resampling(left, wide, torch.full_like(left, size[1]), size[1], width, images.dtype)
    return (rows[:, None] @ images @ columns[:, None].mT).clamp(0, 1)


def resampling(start: Tensor, length: Tensor, count: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(B, rows, columns): the matrix that makes ``count`` samples of ``length`` ones from ``start`` on, each (B,).

    Bicubic; where it shrinks, the kernel is widened by the factor. Rows beyond ``count`` say nothing.
    """
    start, length, count = (value.to(dtype)[:, None, None] for value in (start, length, count))
    factor = length / count
    sample = torch.arange(rows, device=start.device, dtype=dtype)[:, None]
    pixel = torch.arange(columns, device=start.device, dtype=dtype)
    centre = start + (sample + 0.5) * factor
    distance = ((pixel + 0.5 - centre) / factor.clamp(min=1)).abs()
    near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    weights = weights * ((pixel >= start) & (pixel < start + length))
    total = weights.sum(dim=2, keepdim=True)
    return weights / torch.where(total == 0, torch.ones_like(total), total)
