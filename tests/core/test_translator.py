"""The trained translator's networks and losses (docs/methods/styles.md, "Trained translator")."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.translator import (
    SMALL,
    Discriminator,
    Generator,
    Given,
    TranslatorSettings,
    TranslatorTraining,
    load_generator,
    save_generator,
    translated,
)

TINY = replace(SMALL, width=4, blocks=1, stages=3, iterations=8, critic_steps=2)
SIZE = (16, 8)


@pytest.fixture(autouse=True)
def one_thread(_fixed_threads: None) -> None:
    """For layers this small a second thread only waits for the first."""
    torch.set_num_threads(1)


def given(count: int = 4, styles: int = 3) -> Given:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, *SIZE, generator=generator) * 2 - 1
    own = torch.arange(count) % styles
    return Given(images, own, own.flip(0), torch.rand(count, generator=generator))


@pytest.fixture
def training() -> TranslatorTraining:
    torch.manual_seed(0)
    return TranslatorTraining(TINY, 3, SIZE)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_the_published_networks_take_the_papers_images() -> None:
    settings = TranslatorSettings()
    with torch.device("meta"):
        images = torch.empty(2, 3, 256, 128)
        made = Generator(7, settings.width, settings.blocks)(images, torch.empty(2, dtype=torch.int64).zero_())
        real, styles = Discriminator(7, (256, 128), settings.width, settings.stages)(images)
    assert made.shape == images.shape
    assert (real.shape, styles.shape) == ((2, 1, 4, 2), (2, 7))


def test_images_that_are_too_small_for_the_discriminator_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be halved 6 times"):
        Discriminator(3, (64, 32), 4, 6)


def test_the_penalty_is_the_squared_distance_of_the_slope_from_one(training: TranslatorTraining) -> None:
    class Linear(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return (images * slope).flatten(1).sum(dim=1), images

    slope = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    training.discriminator = Linear()  # type: ignore[assignment]
    expected = (slope.norm() - 1) ** 2
    torch.testing.assert_close(training.penalty(given().images), expected)


def test_terms_are_weighted_and_the_discriminator_s_send_nothing_to_the_generator(training: TranslatorTraining) -> None:
    once = training.discriminator_terms(given())
    assert not any(p.grad is not None for p in training.generator.parameters())
    unused = torch.autograd.grad(sum(once.values()), list(training.generator.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in unused)
    training.settings = replace(TINY, style_weight=3.0, penalty_weight=20.0, cycle_weight=0.0)
    twice = training.discriminator_terms(given())
    torch.testing.assert_close(twice["style"], 3 * once["style"])
    torch.testing.assert_close(twice["penalty"], 2 * once["penalty"])
    assert training.generator_terms(given())["cycle"] == 0


def test_the_generator_steps_with_every_second_step_and_the_rate_falls_over_the_second_half(
    training: TranslatorTraining,
) -> None:
    moved, rates = [], []
    for number in range(8):
        before = flat(training.generator), flat(training.discriminator)
        training.step(number, given())
        after = flat(training.generator), flat(training.discriminator)
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        rates.append(training.optimisers[1].param_groups[0]["lr"] / TINY.lr)
    assert moved == [[False, True], [True, True]] * 4
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_resumed_training_goes_on_as_one_in_one(training: TranslatorTraining) -> None:
    resumed = TranslatorTraining(TINY, 3, SIZE)
    training.step(0, given())
    resumed.load(copy.deepcopy(training.state()))
    for each in (training, resumed):
        each.step(1, given())
        each.step(2, given())
    for ours, theirs in zip(training.networks, resumed.networks, strict=True):
        assert torch.equal(flat(ours), flat(theirs))


def test_a_saved_generator_makes_the_same_images_and_is_refused_for_other_cameras_or_another_content(
    training: TranslatorTraining, tmp_path: Path
) -> None:
    file = save_generator(training.generator, TINY, 2, tmp_path)
    pixels = (torch.rand(4, 3, *SIZE) * 255).to(torch.uint8)
    wanted = torch.tensor([0, 1, 1, 0])
    loaded = load_generator(file, 2)
    assert torch.equal(translated(loaded, pixels, wanted), translated(training.generator, pixels, wanted))
    assert save_generator(training.generator, TINY, 2, tmp_path) == file
    with pytest.raises(UserError, match="to 2 cameras and the training images have 6"):
        load_generator(file, 6)
    with pytest.raises(UserError, match="not named by the hash"):
        load_generator(file.rename(tmp_path / "translator-0.pt"), 2)
    with pytest.raises(UserError, match="there is no translator"):
        load_generator(file, 2)


def test_a_translator_learns_the_tint_of_each_camera() -> None:
    generator = torch.Generator().manual_seed(1)
    tint = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.5]])

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        own = torch.randint(2, (count,), generator=generator)
        blocks = 0.3 * torch.randn(count, 3, 4, 2, generator=generator)
        images = blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) + tint[own][:, :, None, None]
        return images.clamp(-1, 1), own

    torch.manual_seed(0)
    training = TranslatorTraining(replace(TINY, width=8, lr=3e-3, iterations=80), 2, SIZE)
    for number in range(80):
        images, own = drawn(16)
        other = own[torch.randperm(16, generator=generator)]
        training.step(number, Given(images, own, other, torch.rand(16, generator=generator)))
    images, _ = drawn(64)
    with torch.no_grad():
        made = [training.generator(images, torch.full((64,), style)).mean(dim=(0, 2, 3)) for style in range(2)]
    assert made[0][0] - made[1][0] > 0.1
    assert made[1][2] - made[0][2] > 0.1
