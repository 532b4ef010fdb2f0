"""Images in the look of another camera (docs/methods/styles.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.augment import Augment
from core.data import Needs, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.images import ImageStore
from core.rng import Streams
from core.styles import Styles, StyleSettings, moments_of, recoloured, with_low_amplitudes

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
PLAIN = Augment(flip_probability=0.0, pad=0, erase_probability=0.0)
TARGET, SOURCE = 24, 10
CHANGING = ("camera", "exemplar", "fourier")


def drawn(count: int, cameras: np.ndarray, generator: torch.Generator) -> Tensor:
    """uint8 images of 20 x 10 whose colours hang on the camera, far from 0 and 255."""
    levels = (
        110
        + 10 * torch.as_tensor(cameras)[:, None, None, None]
        + 8 * torch.randn(count, 3, 20, 10, generator=generator)
    )
    return levels.round().clamp(0, 255).to(torch.uint8)


def world(source: bool = False) -> TrainingData:
    """Target cameras 0, 2 and 5 (others took no training image), of the source 1 and 3."""
    generator = torch.Generator().manual_seed(0)

    def side(count: int, known: list[int], needs: Needs, beside: TrainingData | None = None) -> TrainingData:
        cameras = np.array(known)[np.arange(count) % len(known)]
        store = ImageStore(drawn(count, cameras, generator), ALONE.device)
        people = np.arange(count) // 2 if needs.identities else None
        return TrainingData(store, needs, ALONE, cameras, people, source=beside)

    needs = Needs(cameras=frozenset({"style"}), source=source)
    return side(TARGET, [0, 2, 5], needs, side(SOURCE, [1, 3], needs.of_source) if source else None)


def pixels_of(data: TrainingData, rows: Tensor, seed: int = 0, part: slice = slice(None)) -> Pixels:
    return Pixels(data, rows, torch.arange(len(rows)), part, Streams(seed).torch, PLAIN, torch.float32)


def made(backend: str, data: TrainingData, beta: float = 0.1) -> Styles:
    return Styles.of(StyleSettings(backend=backend, beta=beta), data)  # type: ignore[arg-type]


def test_styles_are_the_cameras_with_training_images_the_source_s_after_the_target_s() -> None:
    styles = made("camera", world(source=True))
    assert styles.targets == 3
    assert styles.of_image.tolist() == [row % 3 for row in range(TARGET)] + [3 + row % 2 for row in range(SOURCE)]
    assert styles.means.shape == (5, 3)


@pytest.mark.parametrize("backend", CHANGING)
def test_an_image_in_its_own_style_is_returned_bit_by_bit_and_in_another_it_is_not(backend: str) -> None:
    data = world()
    styles, rows = made(backend, data), torch.arange(12)
    own, images, chance = styles.of_image[rows], data.images.batch(rows), torch.full((12,), 0.5)
    assert torch.equal(styles.transfer(images, own, own, chance), images)
    changed = styles.transfer(images, own, (own + 1) % 3, chance)
    assert changed.dtype == torch.uint8
    assert (changed != images).flatten(1).any(dim=1).all()


def test_the_camera_backend_maps_the_average_statistics_of_one_camera_onto_the_other_s() -> None:
    data = world()
    styles = made("camera", data)
    moments = [values[styles.of_image == 1].mean(dim=0) for values in moments_of(data.images.images)]
    torch.testing.assert_close(styles.means[1], moments[0])
    torch.testing.assert_close(styles.deviations[1], moments[1])
    looks = [(styles.means[[style]], styles.deviations[[style]]) for style in (0, 2)]
    mean, deviation = looks[0]
    for value, expected in ((mean, looks[1][0]), (mean + deviation, looks[1][0] + looks[1][1])):
        image = value[:, :, None, None].expand(1, 3, 4, 2)
        found = recoloured(image, *looks)[0, :, 0, 0]
        torch.testing.assert_close(found, expected[0].to(found.dtype))


def test_an_exemplar_gives_its_own_mean_and_deviation_before_rounding() -> None:
    data = world()
    images, exemplars = data.images.images[:6], data.images.images[6:12]
    found = moments_of(recoloured(images, moments_of(images), moments_of(exemplars)))
    for ours, theirs in zip(found, moments_of(exemplars), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_image_of_the_wanted_camera_and_no_other_may_be_the_exemplar() -> None:
    data = world()
    styles, image = made("exemplar", data), data.images.batch(torch.tensor([0]))
    chances = (torch.arange(16) + 0.5) / 16
    wanted = torch.full((16,), 1)
    found = styles.transfer(image.expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.int64), wanted, chances)
    theirs = torch.cat(moments_of(data.images.images), dim=1)[styles.of_image == 1]
    distance = (torch.cat(moments_of(found), dim=1)[:, None] - theirs).abs().amax(dim=2)
    assert distance.amin(dim=1).max() < 0.4  # of a level: an image of few colours is rounded the same way everywhere
    assert distance.argmin(dim=1).tolist() == [place // 2 for place in range(16)]


def test_fourier_takes_low_amplitudes_of_the_exemplar_and_keeps_the_phases_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(1)
    images, exemplars = (torch.rand(2, 3, 12, 8, generator=generator) * 255 for _ in range(2))
    changed = torch.fft.fft2(with_low_amplitudes(images, exemplars, reach=1))
    own, other = torch.fft.fft2(images), torch.fft.fft2(exemplars)
    low = torch.zeros(12, 8, dtype=torch.bool)
    low[[[11], [0], [1]], [7, 0, 1]] = True
    torch.testing.assert_close(changed.abs()[..., low], other.abs()[..., low], rtol=1e-3, atol=0.1)
    torch.testing.assert_close(changed[..., ~low], own[..., ~low], rtol=1e-3, atol=0.1)
    torch.testing.assert_close(changed / changed.abs(), own / own.abs(), rtol=1e-2, atol=1e-2)


def test_a_copy_s_style_is_never_its_image_s_own_and_uniform_over_the_others() -> None:
    data = world(source=True)
    styles = made("none", data)
    own = styles.of_image[:TARGET].repeat(250)
    wanted = styles._draw(own, "target", 1, torch.Generator().manual_seed(0))[:, 0]
    counts = torch.stack([(wanted[own == style])[:, None].eq(torch.arange(3)).sum(dim=0) for style in range(3)])
    assert (counts.diagonal() == 0).all()
    assert (counts + 1000 * torch.eye(3) - 1000).abs().max() < 100  # of 2,000 in two; the deviation is 22
    source = styles._draw(styles.of_image[TARGET:].repeat(300), "source", 1, torch.Generator().manual_seed(0))
    assert (source.flatten().bincount(minlength=5) - torch.tensor([1000, 1000, 1000, 0, 0])).abs().max() < 130


def test_several_copies_are_in_different_styles_as_many_as_there_are() -> None:
    data = world(source=True)
    styles = made("camera", data)
    own = styles.of_image[:TARGET]
    for domain, most in (("target", 2), ("source", 3)):
        wanted = styles._draw(own, domain, 9, torch.Generator().manual_seed(0))
        assert wanted.shape == (TARGET, most)
        assert all(len(set(row)) == most for row in wanted.tolist())
    assert len(styles.copies(pixels_of(data, torch.arange(4)), 9)) == 2


@pytest.mark.parametrize("backend", CHANGING)
def test_copies_hang_on_rows_and_stream_alone_and_those_of_a_part_are_the_whole_s(backend: str) -> None:
    data, rows = world(), torch.tensor([3, 17, 4, 8])
    styles = made(backend, data)
    (whole,) = styles.copies(pixels_of(data, rows))
    (again,) = made(backend, data).copies(pixels_of(data, rows))
    halves = [styles.copies(pixels_of(data, rows, part=part))[0] for part in (slice(0, 2), slice(2, 4))]
    assert torch.equal(whole, again)
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, styles.copies(pixels_of(data, rows, seed=1))[0])


def test_one_camera_gives_no_copy() -> None:
    data = world()
    data._cameras = np.zeros(TARGET, dtype=np.int64)
    assert made("camera", data).copies(pixels_of(data, torch.arange(4))) == []


@pytest.mark.parametrize("backend", CHANGING)
def test_the_styles_of_an_extraction_are_a_circle_from_the_image_s_own(backend: str) -> None:
    data = world()
    styles, rows = made(backend, data), torch.tensor([1, 5, 21])
    images = data.images.batch(rows)
    assert torch.equal(styles.shifted(images, rows, 0), images)
    assert torch.equal(styles.shifted(images, rows, 3), images)
    first = styles.shifted(images, rows, 1)
    assert torch.equal(first[1:], styles.shifted(images[1:], rows[1:], 1)), "not by the place in a batch"
    if backend == "camera":
        own = styles.of_image[rows]
        assert torch.equal(first, styles.transfer(images, own, (own + 1) % 3, torch.zeros(3)))
