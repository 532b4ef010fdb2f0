"""What surveillance does to images of people: low quality and occlusion; draws first, then the work.

docs/methods/oriented_kd_ssl.md, "Prior". Images are floats in [0, 1], (B, 3, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core import augment, rng
from core.errors import UserError
from methods.oriented_kd_ssl.crops import HEIGHT, resampling
from methods.oriented_kd_ssl.jpeg import compressed

OPERATORS = {"downsampling": 0.5, "blur": 0.5, "noise": 0.5, "jpeg": 0.3, "brightness": 0.3}  # how often each is active
ASPECTS = (1 / 3, 3.0)  # of an occluder, (height / width) relative to the image's own
BORDER = 0.5  # how often an occluder touches a border
PATCH, NOISE, GREY = range(3)  # what fills it
FILLED = (0.7, 0.15, 0.15)
BLOCKS = 8  # of further hidden tokens, tried one after the other


@dataclass(frozen=True)
class Prior:
    """How strong each operator is: bounds of uniform draws.

    downsampling: factor by which an image shrinks before it grows again. blur: deviation in pixels of an image 256
    high. noise: deviation, of values in [0, 1]. jpeg: quality. brightness: factor. occluded: share of the area.
    hidden: share of the tokens.
    """

    downsampling: tuple[float, float] = (2.0, 4.0)
    blur: tuple[float, float] = (0.5, 2.0)
    noise: tuple[float, float] = (0.01, 0.05)
    jpeg: tuple[float, float] = (20.0, 60.0)
    brightness: tuple[float, float] = (0.5, 1.2)
    occluded: tuple[float, float] = (0.1, 0.4)
    hidden: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        least = {"downsampling": 1.0, "jpeg": 1.0}
        most = {"jpeg": 100.0, "occluded": 0.5, "hidden": 1.0}
        for name, (low, high) in vars(self).items():
            if not least.get(name, 0.0) <= low <= high <= most.get(name, math.inf):
                raise UserError(
                    f"settings.prior.{name} is two ordered bounds from {least.get(name, 0.0):g} to "
                    f"{most.get(name, math.inf):g}, not {(low, high)}"
                )


def draw_quality(prior: Prior, batch: int, height: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of ``batch`` images of lower quality: by operator (B,), and seeds (B,) of the noise.

    An operator that is not active has the value that changes nothing (0; of factors 1). One at least is.
    """
    chances = torch.tensor(list(OPERATORS.values()))
    active = torch.rand(batch, len(chances), generator=generator) < chances
    one = torch.randint(0, len(chances), (batch,), generator=generator)
    none = ~active.any(dim=1)
    active[none, one[none]] = True
    drawn = {}
    for place, name in enumerate(OPERATORS):
        low, high = getattr(prior, name)
        neutral = 1.0 if name in ("downsampling", "brightness") else 0.0
        strength = low + (high - low) * torch.rand(batch, generator=generator)
        drawn[name] = torch.where(active[:, place], strength, neutral)
    drawn["blur"] = drawn["blur"] * height / HEIGHT
    drawn["seed"] = torch.randint(0, 2**62, (batch,), generator=generator)
    return drawn


def lower_quality(images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Images shrunk and grown again, blurred, under noise, compressed and darkened, by rows of ``draw_quality``."""
    given = {name: value.to(images.device) for name, value in drawn.items()}
    images = shrunk(images, given["downsampling"])
    if given["blur"].any():
        images = augment.blur(images, given["blur"].to(images.dtype))
    images = images + given["noise"].to(images.dtype)[:, None, None, None] * normal(drawn["seed"], images)
    rows = given["jpeg"].nonzero().squeeze(1)
    images = images.clamp(0, 1)
    images = images.index_copy(0, rows, compressed(images[rows], given["jpeg"][rows]))
    return (images * given["brightness"].to(images.dtype)[:, None, None, None]).clamp(0, 1)


def shrunk(images: Tensor, factors: Tensor) -> Tensor:
    """Images of the same size that went through one that is smaller by ``factors`` (B,)."""
    for dim in (2, 3):
        size = images.shape[dim]
        whole = torch.full_like(factors, size).long()
        zero, small = torch.zeros_like(whole), (size / factors).round().long().clamp(min=1)
        down = resampling(zero, whole, small, size, size, images.dtype)
        up = resampling(zero, small, whole, size, size, images.dtype)
        through = (up @ down)[:, None]
        images = through @ images if dim == 2 else images @ through.mT
    return images


def normal(seeds: Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape of ``like`` (B, ...), those of each row from its own seed."""
    shape = like.shape[1:]
    rows = [rng.normal(shape, torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows).to(like)


def draw_occlusion(prior: Prior, batch: int, height: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of one occluder for each of ``batch`` images of ``height`` x ``width``.

    box (B, 4) top, left, height, width; donor (B,) place in the batch of another image; filling (B,) PATCH, NOISE or
    GREY; seed (B,).
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    low, high = prior.occluded
    share = low + (high - low) * uniform(batch)
    narrow, broad = (math.log(aspect) for aspect in ASPECTS)
    aspect = (narrow + (broad - narrow) * uniform(batch)).exp()
    aspect = torch.minimum(torch.maximum(aspect, share), 1 / share)  # no side is longer than the image's
    tall = ((share * aspect).sqrt() * height - 1e-9).ceil().clamp(1, height).long()
    wide = (share * height * width / tall).round().clamp(1, width).long()
    covered = tall * wide / (height * width)
    wide = (wide + (covered < low).long() - (covered > high).long()).clamp(1, width)  # what rounding took too far
    room = torch.stack([height - tall, width - wide], dim=1)
    place = (uniform(batch, 2) * (room + 1)).long()
    side = torch.randint(0, 4, (batch,), generator=generator)  # top, bottom, left, right
    at_border = uniform(batch) < BORDER
    edge = torch.where((side % 2 == 0)[:, None], torch.zeros_like(room), room)
    along = torch.stack([side < 2, side >= 2], dim=1) & at_border[:, None]
    place = torch.where(along, edge, place)
    other = torch.randint(0, max(1, batch - 1), (batch,), generator=generator)
    drawn = uniform(batch)
    return {
        "box": torch.stack([place[:, 0], place[:, 1], tall, wide], dim=1),
        "donor": (torch.arange(batch) + 1 + other) % batch,
        "filling": (drawn >= FILLED[0]).long() + (drawn >= FILLED[0] + FILLED[1]).long(),
        "seed": torch.randint(0, 2**62, (batch,), generator=generator),
    }


def occluded(images: Tensor, donors: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Images behind their occluders of ``draw_occlusion``; a patch is that of the donor's image at the same place."""
    inside = in_box(drawn["box"].to(images.device), *images.shape[2:])[:, None]
    kind = drawn["filling"].to(images.device)[:, None, None, None]
    noise = (0.5 + normal(drawn["seed"], images) / 4).clamp(0, 1)
    filling = torch.where(kind == PATCH, donors, torch.where(kind == NOISE, noise, torch.full_like(noise, 0.5)))
    return torch.where(inside, filling, images)


def in_box(boxes: Tensor, height: int, width: int, side: int = 1, stride: int = 1) -> Tensor:
    """(B, h, w) bool: which squares of ``side`` pixels, ``stride`` apart, a box (B, 4) touches; by default pixels."""

    def touched(first: Tensor, length: Tensor, size: int) -> Tensor:
        start = torch.arange((size - side) // stride + 1, device=boxes.device) * stride
        return (start < (first + length)[:, None]) & (start + side > first[:, None])

    top, left, tall, wide = boxes.unbind(dim=1)
    return touched(top, tall, height)[:, :, None] & touched(left, wide, width)[:, None, :]


def draw_hidden(prior: Prior, touched: Tensor, generator: torch.Generator) -> Tensor:
    """(B, h, w) bool: the ``touched`` tokens, and blocks of others while no more than a drawn share are hidden."""
    batch, height, width = touched.shape
    low, high = prior.hidden
    most = (low + (high - low) * torch.rand(batch, generator=generator)) * height * width
    hidden = touched
    sides = torch.tensor([height, width])
    for _ in range(BLOCKS):
        share, place = torch.rand(2, batch, 2, generator=generator)
        sizes = 1 + (share * (sides / 2).ceil()).long()  # up to half a side
        places = (place * (sides - sizes + 1)).long()
        wider = hidden | in_box(torch.cat([places, sizes], dim=1), height, width)
        fits = wider.sum(dim=(1, 2)) <= most
        hidden = torch.where(fits[:, None, None], wider, hidden)
    return hidden
