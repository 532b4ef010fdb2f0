"""Images in the look of another camera: docs/methods/styles.md, "Closed form" and "Draws".

A style is a camera of a domain. Styles are numbered over the cameras that took training images: the target's from 0 on,
then the source's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.data import Pixels, TrainingData
from core.images import ImageStore
from core.translator import load_generator, translated

LEAST_DEVIATION = 1e-6  # levels; an image of one colour has none, and keeps its form, which is flat
Look = tuple[Tensor, Tensor]  # mean and deviation per channel
CHUNK = 256  # images whose moments are taken at a time


@dataclass(frozen=True)
class StyleSettings:
    """How an image is given another camera's look.

    backend: ``camera`` moves the mean and the deviation of its colours by what the two cameras' averages differ;
        ``exemplar`` gives it those of a random image of the other camera; ``fourier`` that image's low-frequency
        amplitudes; ``stargan`` sends it through the generator in the file ``translator``; ``mixstyle`` mixes statistics
        of features (``core/mixstyle.py``) and leaves images as they are, as ``none`` does, the control.
    beta: of ``fourier``, the share of the shorter side that counts as low.
    """

    backend: Literal["camera", "exemplar", "fourier", "stargan", "mixstyle", "none"] = "camera"
    beta: float = 0.02
    translator: str | None = None

    def __post_init__(self) -> None:
        if self.backend == "stargan" and self.translator is None:
            raise ValueError(
                "settings.styles.backend 'stargan' reads a trained generator: run `python -m pipeline translate` and "
                "set settings.styles.translator to the file that it names"
            )
        if not 0 <= self.beta <= 0.5:
            raise ValueError(f"settings.styles.beta is a share of the shorter side, 0 to 0.5, not {self.beta}")


class Styles:
    """The styles of a training split, and of the labelled source beside it where there is one.

    of_image (N,): the style of each image, the target's rows first; targets: how many styles are the target's.
    means, deviations (S, 3): averages over a style's images of their channels' mean and deviation, in levels.
    """

    def __init__(self, settings: StyleSettings, stores: Sequence[ImageStore], cameras: Sequence[np.ndarray]) -> None:
        self.settings, self.target = settings, stores[0]
        numbers, counts = zip(*(numbered(taken) for taken in cameras), strict=True)
        self.targets, self._source_row = counts[0], len(cameras[0])
        shifts = np.concatenate([[0], np.cumsum(counts)])
        self.of_image = torch.from_numpy(np.concatenate([n + s for n, s in zip(numbers, shifts, strict=False)]))
        if settings.backend == "stargan":
            self._generator = load_generator(Path(settings.translator or ""), self.targets).to(self.target.device)
        moments = [torch.cat(both) for both in zip(*(image_moments(store) for store in stores), strict=True)]
        self._image_means, self._image_deviations = (values[: self._source_row] for values in moments)
        self.means, self.deviations = (_averages(values, self.of_image) for values in moments)
        of_target = self.of_image[: self._source_row]
        self._rows = of_target.argsort(stable=True)
        self._counts = of_target.bincount(minlength=self.targets)
        self._starts = self._counts.cumsum(0) - self._counts

    @classmethod
    def of(cls, settings: StyleSettings, data: TrainingData) -> Styles:
        """The styles of what a method is trained on, which declares cameras for ``style``."""
        sides = [data] if data.source is None else [data, data.source]
        return cls(settings, [side.images for side in sides], [side.cameras("style") for side in sides])

    def own(self, pixels: Pixels) -> Tensor:
        """(B,) the style of each image of the whole batch."""
        return self.of_image[pixels.rows + (self._source_row if pixels.domain == "source" else 0)]

    def copies(self, pixels: Pixels, count: int = 1, view: int = 1) -> list[Tensor]:
        """Augmented copies of this rank's images, each copy in the look of another camera of the target.

        An image's ``count`` styles differ; they are uniform over the target's, the image's own left out. There are
        fewer copies where there are fewer styles. ``view``: the number of the first copy's augmentation; each has a
        draw of its own.
        """
        generator, own = pixels.stream("style"), self.own(pixels)
        wanted = self._draw(own, pixels.domain, count, generator)
        chance = torch.rand(wanted.shape, generator=generator, dtype=torch.float64)
        images, part = pixels.images, pixels.part
        changed = [
            self.transfer(images, own[part], wanted[part, place], chance[part, place])
            for place in range(wanted.shape[1])
        ]
        return [pixels.augmented(view + place, images=copy) for place, copy in enumerate(changed)]

    def _draw(self, own: Tensor, domain: str, count: int, generator: torch.Generator) -> Tensor:
        """(B, count or what there is) styles of the target in random order."""
        others = self.targets - (domain == "target")
        order = torch.rand(len(own), others, generator=generator).argsort(dim=1)[:, :count]
        return order if domain == "source" else (own[:, None] + 1 + order) % self.targets

    def shifted(self, images: Tensor, rows: Tensor, places: int) -> Tensor:
        """Images of the target's ``rows`` (b,), each in the style that comes ``places`` after its own, in a circle.

        An exemplar is the same for a row and a number of places in every epoch of every run: nothing is drawn.
        """
        own = self.of_image[rows]
        fixed = torch.Generator().manual_seed(places)
        chance = torch.rand(self._source_row, generator=fixed, dtype=torch.float64)[rows]
        return self.transfer(images, own, (own + places) % self.targets, chance)

    def transfer(self, images: Tensor, own: Tensor, wanted: Tensor, chance: Tensor) -> Tensor:
        """uint8 (b, 3, H, W) images in the looks ``wanted`` (b,), styles of the target; own (b,): theirs.

        chance (b,) in [0, 1) chooses the exemplar among the images of the wanted style. An image that is wanted in its
        own style is returned bit by bit.
        """
        if self.settings.backend in ("none", "mixstyle"):
            return images
        kept = (own == wanted).to(images.device)[:, None, None, None]
        return torch.where(kept, images, as_pixels(self._changed(images, own, wanted, chance)))

    def _changed(self, images: Tensor, own: Tensor, wanted: Tensor, chance: Tensor) -> Tensor:
        if self.settings.backend == "camera":
            look, new_look = ((self.means[style], self.deviations[style]) for style in (own, wanted))
            return recoloured(images, look, new_look)
        if self.settings.backend == "stargan":
            return translated(self._generator, images, wanted)
        exemplars = self._rows[self._starts[wanted] + (chance * self._counts[wanted]).long()]
        if self.settings.backend == "exemplar":
            new_look = (self._image_means[exemplars], self._image_deviations[exemplars])
            return recoloured(images, moments_of(images), new_look)
        reach = math.floor(self.settings.beta * min(images.shape[-2:]))
        return with_low_amplitudes(images, self.target.batch(exemplars), reach)


def recoloured(images: Tensor, look: Look, new_look: Look) -> Tensor:
    """(x - m) / s * s' + m' per channel, float32, not clipped; images (b, 3, H, W), looks (m, s) (b, 3) each."""
    mean, deviation, new_mean, new_deviation = (
        values.to(images.device, torch.float32)[:, :, None, None] for values in (*look, *new_look)
    )
    return (images - mean) / deviation.clamp(min=LEAST_DEVIATION) * new_deviation + new_mean


def with_low_amplitudes(images: Tensor, exemplars: Tensor, reach: int) -> Tensor:
    """Images whose amplitudes at frequencies up to ``reach`` along both axes are the exemplars'; phases stay.

    FDA's rule; images, exemplars (b, 3, H, W), the result float32 and not clipped.
    """
    own, other = (torch.fft.rfft2(pixels.to(torch.float32)) for pixels in (images, exemplars))
    amplitude = own.abs()
    for rows in (slice(0, reach + 1), slice(own.shape[-2] - reach, own.shape[-2])):
        amplitude[..., rows, : reach + 1] = other[..., rows, : reach + 1].abs()
    return torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=images.shape[-2:])


def as_pixels(images: Tensor) -> Tensor:
    """Clipped to 0..255 and rounded, uint8."""
    return images.clamp(0, 255).round().to(torch.uint8)


def moments_of(images: Tensor) -> Look:
    """Mean and deviation (b, 3) of each image's channels, float64."""
    pixels = images.flatten(2).to(torch.float64)
    return pixels.mean(dim=2), pixels.std(dim=2, correction=0)


def image_moments(store: ImageStore) -> Look:
    """``moments_of`` all images of a store, on the CPU."""
    chunks = (moments_of(store.batch(rows)) for rows in torch.arange(len(store)).split(CHUNK))
    means, deviations = zip(*chunks, strict=True)
    return torch.cat(means).cpu(), torch.cat(deviations).cpu()


def _averages(values: Tensor, groups: Tensor) -> Tensor:
    """(G, 3) mean of the rows of ``values`` (N, 3) in each group 0..G-1."""
    total = values.new_zeros(int(groups.max()) + 1, values.shape[1]).index_add_(0, groups, values)
    return total / groups.bincount()[:, None]


def numbered(cameras: np.ndarray) -> tuple[np.ndarray, int]:
    """Cameras as 0..n-1 without gaps, and n: one that took no training image is no style."""
    known, numbers = np.unique(cameras, return_inverse=True)
    return numbers, len(known)
