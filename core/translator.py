"""One generator for all camera styles, a StarGAN as HHL trains it: docs/methods/styles.md, "Trained translator".

Images are float (b, 3, h, w) in [-1, 1], styles (b,) integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoint import save_atomically
from core.errors import UserError
from core.files import hash_file

DIGITS = 12  # of a file's hash in its name
SLOPE = 0.01  # of the discriminator's leaky ReLUs


@dataclass(frozen=True)
class TranslatorSettings:
    """HHL's values by default; ``small`` has those for a CPU.

    width: channels of the first layers; blocks: residual ones of the generator; stages: of the discriminator, each
    halves the image. iterations: steps of the discriminator, over whose second half the rate falls to 0; critic_steps:
    how many of them come with one of the generator.
    """

    width: int = 64
    blocks: int = 6
    stages: int = 6
    batch: int = 16
    iterations: int = 220_000
    critic_steps: int = 5
    lr: float = 1e-4
    style_weight: float = 1.0
    cycle_weight: float = 10.0
    penalty_weight: float = 10.0


SMALL = TranslatorSettings(width=16, blocks=2, stages=5, iterations=1500, critic_steps=2)


class Residual(nn.Module):
    """x + two convolutions of 3 x 3, each with instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.main(features)
        return features + changed


class Generator(nn.Module):
    """Images and wanted styles -> images; 7 x 7, two strided, ``blocks`` residual, two transposed, 7 x 7, tanh."""

    def __init__(self, styles: int, width: int, blocks: int) -> None:
        super().__init__()
        self.styles = styles
        layers: list[nn.Module] = [nn.Conv2d(3 + styles, width, 7, padding=3, bias=False), *_normed(width)]
        for scale in (1, 2):
            layers += [nn.Conv2d(scale * width, 2 * scale * width, 4, 2, 1, bias=False), *_normed(2 * scale * width)]
        layers += [Residual(4 * width) for _ in range(blocks)]
        for scale in (4, 2):
            up = nn.ConvTranspose2d(scale * width, scale * width // 2, 4, 2, 1, bias=False)
            layers += [up, *_normed(scale * width // 2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 3, 7, padding=3, bias=False), nn.Tanh())

    def forward(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Both sides of an image are multiples of 4."""
        maps = F.one_hot(wanted, self.styles).to(images)[:, :, None, None].expand(-1, -1, *images.shape[-2:])
        made: Tensor = self.main(torch.cat([images, maps], dim=1))
        return made


class Discriminator(nn.Module):
    """Images -> a map that says how real each patch is, and logits of the styles, for images of one size."""

    def __init__(self, styles: int, size: tuple[int, int], width: int, stages: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, left = 3, list(size)
        for stage in range(stages):
            out = width * 2**stage
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.LeakyReLU(SLOPE)]
            channels, left = out, [side // 2 for side in left]
        if min(left) < 1:
            raise UserError(
                f"images of {size[0]} x {size[1]} cannot be halved {stages} times; choose a smaller translator"
            )
        self.main = nn.Sequential(*layers)
        self.real = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.style = nn.Conv2d(channels, styles, (left[0], left[1]), bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.main(images)
        return self.real(features), self.style(features).flatten(1)


@dataclass(frozen=True)
class Given:
    """What one step trains on: images (b, 3, h, w), their styles, those wanted, and shares (b,) for the penalty."""

    images: Tensor
    own: Tensor
    wanted: Tensor
    share: Tensor


class TranslatorTraining:
    """Both networks with their optimisers; WGAN with a gradient penalty, style classification and cycle."""

    def __init__(self, settings: TranslatorSettings, styles: int, size: tuple[int, int]) -> None:
        self.settings = settings
        self.generator = Generator(styles, settings.width, settings.blocks)
        self.discriminator = Discriminator(styles, size, settings.width, settings.stages)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), settings.lr, betas=(0.5, 0.999)) for network in self.networks
        ]

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The generator and the discriminator."""
        return self.generator, self.discriminator

    def step(self, number: int, given: Given) -> dict[str, float]:
        """Step ``number`` of the run, from 0: the discriminator's, and at every ``critic_steps``-th the generator's."""
        half = self.settings.iterations / 2
        rate = self.settings.lr * min(1.0, (self.settings.iterations - number) / half)
        terms = self.discriminator_terms(given)
        self._descend(1, terms, rate)
        if (number + 1) % self.settings.critic_steps == 0:
            made = self.generator_terms(given)
            self._descend(0, made, rate)
            terms |= made
        return {name: float(term.detach()) for name, term in terms.items()}

    def discriminator_terms(self, given: Given) -> dict[str, Tensor]:
        """How real made and real images look, the style of real ones, and the slope between both."""
        with torch.no_grad():
            made = self.generator(given.images, given.wanted)
        real, logits = self.discriminator(given.images)
        between = given.share[:, None, None, None] * given.images + (1 - given.share[:, None, None, None]) * made
        return {
            "real": -real.mean(),
            "made": self.discriminator(made)[0].mean(),
            "style": self.settings.style_weight * F.cross_entropy(logits, given.own),
            "penalty": self.settings.penalty_weight * self.penalty(between),
        }

    def penalty(self, images: Tensor) -> Tensor:
        """Mean of (the norm of the patch map's gradient - 1)^2 over images."""
        images = images.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(images)[0].sum(), images, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def generator_terms(self, given: Given) -> dict[str, Tensor]:
        """Made images look real and of their style, and lead back to the image."""
        made = self.generator(given.images, given.wanted)
        real, logits = self.discriminator(made)
        back = self.generator(made, given.own)
        return {
            "fooled": -real.mean(),
            "made_style": self.settings.style_weight * F.cross_entropy(logits, given.wanted),
            "cycle": self.settings.cycle_weight * (given.images - back).abs().mean(),
        }

    def _descend(self, which: int, terms: dict[str, Tensor], rate: float) -> None:
        optimiser = self.optimisers[which]
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(self._trained(which)))
        for parameter, gradient in zip(self._trained(which), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()

    def _trained(self, which: int) -> Iterator[nn.Parameter]:
        return self.networks[which].parameters()

    def state(self) -> dict[str, Any]:
        """Everything a resumed training needs."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``."""
        for network, weights in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(weights)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)


def save_generator(generator: Generator, settings: TranslatorSettings, targets: int, folder: Path) -> Path:
    """Write a trained generator; its file is named by the hash of its content, so that a run's settings say which.

    ``targets``: how many of its styles are the target's.
    """
    weights = {name: value.cpu() for name, value in generator.state_dict().items()}
    content = {"settings": asdict(settings), "styles": generator.styles, "targets": targets, "generator": weights}
    passing = folder / "translator.pt"
    save_atomically(content, passing)
    return passing.replace(folder / f"translator-{hash_file(passing)[:DIGITS]}.pt")


def load_generator(file: Path, targets: int) -> Generator:
    """What ``save_generator`` wrote, in eval mode; raises UserError unless it is whole and of ``targets`` cameras."""
    if not file.is_file():
        raise UserError(f"there is no translator {file}; `python -m pipeline translate --dataset NAME` trains one")
    if file.stem.partition("-")[2] != hash_file(file)[:DIGITS]:
        raise UserError(f"{file} is not named by the hash of its content; take the file that `translate` wrote")
    content = torch.load(file, map_location="cpu", weights_only=True)
    if content["targets"] != targets:
        raise UserError(
            f"{file} translates to {content['targets']} cameras and the training images have {targets}; train one for "
            "this dataset"
        )
    generator = Generator(content["styles"], content["settings"]["width"], content["settings"]["blocks"])
    generator.load_state_dict(content["generator"])
    return generator.requires_grad_(False).eval()


def as_input(images: Tensor) -> Tensor:
    """uint8 images in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


@torch.no_grad()
def translated(generator: Generator, images: Tensor, wanted: Tensor) -> Tensor:
    """uint8 images in the styles ``wanted``, as levels that are neither clipped nor rounded."""
    return (generator(as_input(images), wanted.to(images.device)) + 1) * 127.5


def _normed(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]
