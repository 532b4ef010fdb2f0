"""The views of a step: clean crops for the teacher, and what the student sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.backbones.vit import PatchEmbedding
from core.data import Pixels
from methods.oriented_kd_ssl import crops, prior
from methods.oriented_kd_ssl.crops import Look
from methods.oriented_kd_ssl.prior import Prior

GLOBAL = (0.4, 1.0)  # share of the image's area
LOCAL = (0.05, 0.4)
LOOKS = (Look(GLOBAL, blurred=1.0), Look(GLOBAL, blurred=0.1, solarised=0.2))
LOCAL_LOOK = Look(LOCAL, blurred=0.5)


class Wanted(NamedTuple):
    """Which views a step has beside the two clean crops: of low quality, occluded, with hidden tokens; local ones."""

    low_quality: bool
    occluded: bool
    hidden: bool
    local: int
    local_share: float


class Views(NamedTuple):
    """Views by what they are; all but ``hidden`` are (b, 3, h, w), of a crop's number where there are two.

    clean: the teacher's, and the student's too where nothing lowers their quality. lowered, occluded: the same crops,
    changed. hidden: (b, h, w), 1 for tokens that the student does not see. local: small crops.
    """

    clean: Sequence[Tensor]
    lowered: Sequence[Tensor]
    occluded: Sequence[Tensor]
    hidden: Sequence[Tensor]
    local: Sequence[Tensor]

    @classmethod
    def of(cls, images: Sequence[Tensor], wanted: Wanted) -> Views:
        """The inverse of ``flat``."""
        remaining: Iterator[Tensor] = iter(images)

        def some(count: int) -> list[Tensor]:
            return [next(remaining) for _ in range(count)]

        pair = len(LOOKS)
        counts = (pair, pair * wanted.low_quality, pair * wanted.occluded, pair * wanted.hidden, wanted.local)
        return cls(*map(some, counts))

    @property
    def flat(self) -> list[Tensor]:
        """As ``Batch.images`` holds them."""
        return [view for views in self for view in views]

    @property
    def student(self) -> Sequence[Tensor]:
        """The student's own view of each crop."""
        return self.lowered or self.clean


def make_views(pixels: Pixels, wanted: Wanted, strength: Prior, patches: PatchEmbedding) -> Views:
    """Views of this process's images; what is random is drawn for the whole batch."""
    wide = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    images = pixels.images.to(wide) / 255
    batch, (height, width) = len(pixels.rows), images.shape[2:]

    def crop(look: Look, name: str, size: tuple[int, int]) -> Tensor:
        drawn = crops.draw(look, batch, height, width, pixels.stream(name))
        return crops.apply(images, {key: value[pixels.part].to(images.device) for key, value in drawn.items()}, size)

    clean = [crop(look, f"global/{number}", (height, width)) for number, look in enumerate(LOOKS)]
    lowered, occluded, hidden = [], [], []
    for number, view in enumerate(clean):
        if wanted.low_quality:
            drawn = prior.draw_quality(strength, batch, height, pixels.stream(f"quality/{number}"))
            lowered.append(prior.lower_quality(view, {key: value[pixels.part] for key, value in drawn.items()}))
        if wanted.occluded:
            drawn = prior.draw_occlusion(strength, batch, height, width, pixels.stream(f"occlusion/{number}"))
            mine = {key: value[pixels.part] for key, value in drawn.items()}
            donors = pixels.data.images.batch(pixels.rows[mine["donor"]]).to(wide) / 255
            occluded.append(prior.occluded(view, donors, mine))
            touched = prior.in_box(drawn["box"], height, width, patches.patch, patches.stride)
            tokens = prior.draw_hidden(strength, touched, pixels.stream(f"hidden/{number}"))
            hidden += [tokens[pixels.part].to(images.device, pixels.dtype)] if wanted.hidden else []
    small = round(height * wanted.local_share), round(width * wanted.local_share)
    local = [crop(LOCAL_LOOK, f"local/{number}", small) for number in range(wanted.local)]
    mean, std = (images.new_tensor(values)[:, None, None] for values in (pixels.data.mean, pixels.data.std))

    def laid_out(views: Sequence[Tensor]) -> list[Tensor]:
        shown = [((view - mean) / std).to(pixels.dtype) for view in views]
        return [view.contiguous(memory_format=torch.channels_last) for view in shown]

    return Views(laid_out(clean), laid_out(lowered), laid_out(occluded), hidden, laid_out(local))
