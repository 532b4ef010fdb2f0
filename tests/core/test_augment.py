import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import v2

from core.augment import Augment, Blur, apply, blur, crop_shifted, draw, draw_blur, jitter_colours, normalise
from core.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEIGHT, WIDTH = 128, 64
STILL = Augment(flip_probability=0, pad=0, erase_probability=0)
ADJUST = (
    v2.functional.adjust_brightness,
    v2.functional.adjust_contrast,
    v2.functional.adjust_saturation,
    v2.functional.adjust_hue,
)
JITTER = Augment(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator(99), dtype=torch.uint8)


def drawn(config: Augment, count: int = 8000, seed: int = 0) -> dict[str, torch.Tensor]:
    return draw(config, count, HEIGHT, WIDTH, generator(seed))


def literal(image: np.ndarray, row: dict[str, np.ndarray]) -> np.ndarray:
    """One image (3, H, W) uint8, step by step: flip, pad, crop, normalise, erase."""
    _, height, width = image.shape
    if row["flip"]:
        image = image[:, :, ::-1]
    canvas = np.zeros((3, 3 * height, 3 * width), np.uint8)
    canvas[:, height : 2 * height, width : 2 * width] = image
    top, left = height + row["shift"][0], width + row["shift"][1]
    image = canvas[:, top : top + height, left : left + width]
    result = np.empty(image.shape, np.float32)
    for channel in range(3):
        scaled = image[channel].astype(np.float32) / np.float32(255)
        result[channel] = (scaled - np.float32(MEAN[channel])) / np.float32(STD[channel])
    top, left, tall, wide = row["erase"]
    for channel in range(3):
        result[channel, top : top + tall, left : left + wide] = row["fill"][channel]
    return result


def literal_rectangle(rng: random.Random) -> tuple[int, int, int, int] | None:
    """Random erasing's rectangle in the family's code, or None: docs/methods/shared.md, "Augmentation"."""
    if rng.random() >= 0.5:
        return None
    for _ in range(100):
        area = rng.uniform(0.02, 0.4) * HEIGHT * WIDTH
        aspect = rng.uniform(0.3, 1 / 0.3)
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if wide < WIDTH and tall < HEIGHT:
            return rng.randint(0, HEIGHT - tall), rng.randint(0, WIDTH - wide), tall, wide
    return None


def test_batch_equals_a_loop_over_images():
    images = random_images(40)
    params = draw(Augment(), 40, HEIGHT, WIDTH, generator())
    result = apply(images, params, MEAN, STD)
    rows = [{name: value[k].numpy() for name, value in params.items()} for k in range(40)]
    wanted = np.stack([literal(images[k].numpy(), rows[k]) for k in range(40)])
    np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert result.dtype == torch.float32


def test_slices_of_two_ranks_equal_the_full_batch():
    images = random_images(10)
    for config in (Augment(), JITTER):
        params = draw(config, 10, HEIGHT, WIDTH, generator())
        full = apply(images, params, MEAN, STD)
        for part in (slice(0, 6), slice(6, 10)):
            mine = {name: value[part] for name, value in params.items()}
            assert torch.equal(apply(images[part], mine, MEAN, STD), full[part])


def test_parameters_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="slice both"):
        apply(random_images(4), drawn(Augment(), 5), MEAN, STD)


def test_draws_depend_on_the_generator_alone():
    first, again, other = drawn(JITTER, 50), drawn(JITTER, 50), drawn(JITTER, 50, seed=1)
    for name in first:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["shift"], other["shift"])


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    drawn(JITTER, 50)
    assert torch.equal(before, torch.random.get_rng_state())


def test_half_of_the_images_are_flipped():
    share = drawn(Augment())["flip"].double().mean().item()
    assert abs(share - 0.5) < 4 * (0.25 / 8000) ** 0.5


def test_flip_mirrors_left_and_right():
    images = random_images(3)
    config = Augment(flip_probability=1, pad=0, erase_probability=0)
    result = apply(images, drawn(config, 3), MEAN, STD)
    assert torch.equal(result, normalise(images.flip(-1), MEAN, STD))


def test_crop_offsets_are_uniform_over_every_place_in_the_padded_image():
    shift = drawn(Augment(), 21 * 21 * 40)["shift"]
    assert shift.min() == -10
    assert shift.max() == 10
    cells = Counter(map(tuple, shift.tolist()))
    assert len(cells) == 21 * 21
    assert stats.chisquare(list(cells.values())).pvalue > 1e-3


def test_crop_fills_with_black_before_normalisation():
    images = torch.full((1, 3, 16, 8), 255, dtype=torch.uint8)
    params = draw(STILL, 1, 16, 8, generator()) | {"shift": torch.tensor([[-3, 2]])}
    result = apply(images, params, MEAN, STD)[0]
    black = normalise(torch.zeros(1, 3, 1, 1), MEAN, STD)[0]
    assert torch.equal(result[:, :3], black.expand(3, 3, 8))
    assert torch.equal(result[:, :, 6:], black.expand(3, 16, 2))
    white = normalise(torch.full((1, 3, 1, 1), 255.0), MEAN, STD)[0]
    assert torch.equal(result[:, 3:, :6], white.expand(3, 13, 6))


def test_crop_without_shift_returns_the_image():
    images = random_images(2)
    assert torch.equal(crop_shifted(images, torch.zeros(2, 2, dtype=torch.int64), 4), images)


def test_normalise_equals_torchvisions_to_tensor_and_normalize():
    images = random_images(3)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(normalise(images, MEAN, STD), reference(images))


def test_normalise_leaves_its_input_as_it_was():
    images = random_images(1).float()
    before = images.clone()
    normalise(images, MEAN, STD)
    assert torch.equal(images, before)


def test_half_of_the_images_are_erased():
    share = (drawn(Augment())["erase"][:, 2] > 0).double().mean().item()
    assert abs(share - 0.5) < 4 * (0.25 / 8000) ** 0.5
    never = drawn(Augment(erase_probability=0), 500)["erase"]
    assert not never.any()


def test_erased_rectangles_are_distributed_as_those_of_the_literal_loop():
    erase = drawn(Augment())["erase"].double()
    top, left, tall, wide = erase[erase[:, 2] > 0].T.numpy()
    rng = random.Random(0)
    attempts = (literal_rectangle(rng) for _ in range(8000))
    wanted = np.array([rectangle for rectangle in attempts if rectangle], float).T
    for mine, theirs in (
        (tall * wide, wanted[2] * wanted[3]),
        (tall / wide, wanted[2] / wanted[3]),
        (top / (HEIGHT - tall), wanted[0] / (HEIGHT - wanted[2])),
        (left / (WIDTH - wide), wanted[1] / (WIDTH - wanted[3])),
    ):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3


def test_erased_aspect_is_uniform_and_not_log_uniform_when_nothing_is_rejected():
    config = Augment(erase_probability=1, erase_area=(0.02, 0.021))
    tall, wide = draw(config, 4000, 1000, 1000, generator())["erase"][:, 2:].double().T
    uniform = stats.uniform(0.3, 1 / 0.3 - 0.3)
    assert stats.kstest((tall / wide).numpy(), uniform.cdf).pvalue > 1e-3


def test_erased_rectangles_lie_inside_the_image_and_reach_its_border():
    erase = drawn(Augment(), 20000)["erase"]
    top, left, tall, wide = erase[erase[:, 2] > 0].T
    assert ((tall < HEIGHT) & (wide < WIDTH)).all()
    assert (top.min(), left.min()) == (0, 0)
    assert (top + tall).max() == HEIGHT
    assert (left + wide).max() == WIDTH


def test_nothing_is_erased_when_no_rectangle_fits():
    config = Augment(erase_probability=1, erase_area=(1.0, 1.0))
    assert not draw(config, 200, 64, 16, generator())["erase"].any()


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10)])
def test_rectangle_as_tall_or_as_wide_as_the_image_does_not_fit(height, width):
    config = Augment(erase_probability=1, erase_area=(0.5, 0.5), erase_aspect=1.0)  # 10 x 10
    assert not draw(config, 20, height, width, generator())["erase"].any()
    assert draw(config, 20, height + 2, width + 2, generator())["erase"][:, 2].all()


def test_the_aspect_of_what_is_erased_may_be_a_range_of_its_own():
    exact = {"erase_probability": 1.0, "erase_area": (0.05, 0.05)}
    tall = drawn(Augment(**exact, erase_aspect=(1.5, 3.0)))["erase"].double()
    ratio = tall[:, 2] / tall[:, 3]
    assert ratio.min() > 1.3
    assert ratio.max() < 3.4
    assert ratio.mean() == pytest.approx(2.25, abs=0.05)
    one = drawn(Augment(**exact, erase_aspect=0.3), 500)["erase"]
    assert torch.equal(one, drawn(Augment(**exact, erase_aspect=(0.3, 1 / 0.3)), 500)["erase"])
    with pytest.raises(UserError, match="two ordered ratios above 0"):
        Augment(erase_aspect=(3.0, 0.3))


def test_erasing_writes_the_fill_after_normalisation_and_nothing_else():
    images = random_images(200)
    params = drawn(Augment(flip_probability=0, pad=0, erase_probability=1), 200)
    result, plain = apply(images, params, MEAN, STD), normalise(images, MEAN, STD)
    for k, (top, left, tall, wide) in enumerate(params["erase"].tolist()):
        inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        inside[top : top + tall, left : left + wide] = True
        assert torch.equal(result[k][:, ~inside], plain[k][:, ~inside])
        fill = torch.tensor(MEAN)[:, None].expand(3, int(inside.sum()))
        assert torch.equal(result[k][:, inside], fill)


def test_switching_everything_off_only_normalises():
    images = random_images(4)
    result = apply(images, drawn(STILL, 4), MEAN, STD)
    assert torch.equal(result, normalise(images, MEAN, STD))


@pytest.mark.parametrize("which", range(4))
def test_colour_jitter_equals_torchvisions_adjustments(which):
    images = random_images(12, 16, 8) / 255
    images[0] = 0.5  # grey: the hue is undefined
    factors = drawn(Augment(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5), 12)["jitter"]
    alone = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(12, 1)
    alone[:, which] = factors[:, which]
    order = torch.arange(4).repeat(12, 1)
    result = jitter_colours(images, alone, order)
    wanted = [ADJUST[which](image, float(factor)) for image, factor in zip(images, alone[:, which], strict=True)]
    torch.testing.assert_close(result, torch.stack(wanted), rtol=0, atol=2e-5)


def test_colour_jitter_follows_each_images_own_order():
    images = random_images(6, 16, 8) / 255
    params = drawn(JITTER, 6)
    wanted = images.clone()
    for k in range(6):
        for which in params["order"][k].tolist():
            wanted[k] = ADJUST[which](wanted[k], float(params["jitter"][k, which]))
    result = jitter_colours(images, params["jitter"], params["order"])
    torch.testing.assert_close(result, wanted, rtol=0, atol=2e-5)


def test_jitter_factors_are_uniform_in_torchvisions_ranges():
    params = drawn(Augment(brightness=0.2, contrast=0.3, saturation=1.4, hue=0.1))
    ranges = ((0.8, 1.2), (0.7, 1.3), (0.0, 2.4), (-0.1, 0.1))
    for factor, (low, high) in zip(params["jitter"].T, ranges, strict=True):
        assert stats.kstest(factor.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    orders = Counter(map(tuple, params["order"].tolist()))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_jitter_probability_leaves_the_other_images_alone():
    jitter = drawn(Augment(brightness=0.5, hue=0.2, jitter_probability=0.8))["jitter"]
    untouched = (jitter == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1).double().mean().item()
    assert abs(untouched - 0.2) < 4 * (0.16 / 8000) ** 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip_probability": 1.5},
        {"pad": -1},
        {"hue": 0.6},
        {"erase_area": (0.4, 0.02)},
        {"erase_aspect": 0.0},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_device_gives_the_cpus_images():
    images, params = random_images(32), drawn(JITTER, 32)
    result = apply(images.cuda(), params, MEAN, STD)
    torch.testing.assert_close(result.cpu(), apply(images, params, MEAN, STD), rtol=0, atol=1e-4)


def test_each_image_is_blurred_by_its_own_gaussian_and_a_sharp_one_stays() -> None:
    images = random_images(4, 32, 24).float()
    sigma = torch.tensor([0.0, 0.5, 2.0, 1.3])
    blurred = blur(images, sigma)
    assert torch.equal(blurred[0], images[0])
    for image, found, width in zip(images[1:], blurred[1:], sigma[1:].tolist(), strict=True):
        expected = v2.functional.gaussian_blur(F.pad(image, [7] * 4, mode="replicate"), [15, 15], [width, width])
        torch.testing.assert_close(found, expected[:, 7:-7, 7:-7], rtol=0, atol=1e-3)


def test_blur_takes_its_share_of_the_images_and_leaves_the_others_as_they_are() -> None:
    sigma = draw_blur(Blur(0.3, (0.5, 1.5)), 8000, generator())
    chosen = sigma > 0
    assert abs(float(chosen.double().mean()) - 0.3) < 0.03
    assert 0.5 <= float(sigma[chosen].min()) < 0.52
    assert 1.48 < float(sigma.max()) <= 1.5
    images, params = random_images(8), drawn(Augment(erase_probability=0), 8)
    blurred = apply(images, {**params, "sigma": sigma[:8]}, MEAN, STD)
    changed = (blurred != apply(images, params, MEAN, STD)).flatten(1).any(dim=1)
    assert torch.equal(changed, chosen[:8])


def test_a_blur_without_length_is_refused() -> None:
    with pytest.raises(UserError, match="sigma"):
        Blur(0.5, (0.0, 2.0))
