"""Oriented-KD-SSL: docs/methods/oriented_kd_ssl.md. Equality with iBOT's code: tests/golden/dino_ibot.npz."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core.augment import Augment
from core.backbones.net import Embedder, build
from core.config import Backbone, Config, Input
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.engine import build_optimiser, rate_factor, set_decay
from core.errors import UserError
from core.images import ImageStore
from core.rng import Streams
from methods.oriented_kd_ssl import losses, prior
from methods.oriented_kd_ssl.crops import draw_boxes, resized
from methods.oriented_kd_ssl.jpeg import compressed
from methods.oriented_kd_ssl.method import OrientedKDSSL, Settings
from methods.oriented_kd_ssl.prior import Prior
from methods.oriented_kd_ssl.views import Views
from pipeline.settings import resolve_run

GOLDEN = Path(__file__).parents[1] / "golden/dino_ibot.npz"
ALONE = ProcessGroup(0, 1, torch.device("cpu"))
SMALL: dict[str, Any] = {"prototypes": 12, "hidden": 8, "bottleneck": 4, "local_crops": 3, "frozen": 0}
OFF: dict[str, Any] = {"low_quality": False, "occlusion": False, "detail_weight": 0.0, "masked_weight": 0.0}
HEIGHT, WIDTH, IMAGES = 32, 16, 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network() -> Embedder:
    """Without a stem, so that no batch norm tells the teacher from the student."""
    options = {"depth": 1, "image_size": (HEIGHT, WIDTH), "patch": 8, "stride": 8, "drop_path": 0.0}
    return build("vit_tiny", generator=torch.Generator().manual_seed(0), **options)


def method(**settings: Any) -> OrientedKDSSL:
    config = Config(Settings(**{**SMALL, **settings}), Input(HEIGHT, WIDTH), Backbone("vit_tiny"), precision="fp64")
    torch.manual_seed(0)
    made = OrientedKDSSL(config, network(), IMAGES).double()
    made.weights_loaded()
    made.start_epoch(Labels(np.arange(IMAGES)), None, torch.Generator())  # type: ignore[arg-type]
    return made.train()


def smooth(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand(count, 3, 4, 2, generator=generator, dtype=torch.float64)
    return F.interpolate(coarse, (height, width), mode="bilinear")


def views_of(made: OrientedKDSSL, part: slice = slice(None)) -> list[Tensor]:
    images = (255 * smooth(IMAGES, HEIGHT, WIDTH, torch.Generator().manual_seed(1))).to(torch.uint8)
    data = TrainingData(ImageStore(images, ALONE.device), made.needs(made.config), ALONE)
    order = torch.arange(IMAGES)
    return made.make_views(Pixels(data, order, order, part, Streams(0).torch, Augment(), torch.float64))


def batch(images: list[Tensor], epoch: float = 0.0, progress: float = 0.0) -> Batch:
    rows = torch.arange(IMAGES)
    return Batch(images, rows, rows, None, {}, epoch, progress=progress)


def test_everything_off_is_dino_with_two_crops_and_local_ones_in_loss_gradient_and_centre() -> None:
    made = method(**OFF, momentum=1.0)
    with np.load(GOLDEN) as stored:
        data = {name: torch.from_numpy(values).double() for name, values in stored.items() if "dino" in name}
    for step in range(3):
        warmed = {"teacher_temperature": float(data[f"dino_teacher_temperature_{step}"])}
        settings = Settings(**{**SMALL, **OFF, **warmed, "momentum": 1.0})
        made.config = dataclasses.replace(made.config, settings=settings)
        made.centre = data[f"dino_center_{step}"]
        student = data[f"dino_student_{step}"].requires_grad_()
        names = ["student_0", "student_1", "local_0", "local_1", "local_2", "teacher_0", "teacher_1"]
        output = dict(zip(names, (*student.chunk(5), *data[f"dino_teacher_{step}"].chunk(2)), strict=True))
        terms = made.loss(output, batch([]))
        assert list(terms) == ["alignment", "entropy"]
        total = torch.stack(list(terms.values())).sum()
        torch.testing.assert_close(total, data[f"dino_loss_{step}"], rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(total, student)
        torch.testing.assert_close(gradient, data[f"dino_grad_{step}"], rtol=1e-5, atol=1e-7)
        made.after_step({name: value.detach() for name, value in output.items()}, batch([]))
        torch.testing.assert_close(made.centre, data[f"dino_center_{step + 1}"], rtol=1e-6, atol=1e-7)


def test_a_pair_is_two_views_of_other_crops_but_for_an_occluded_view_and_its_own_complete() -> None:
    taught = [torch.eye(5, dtype=torch.float64)[:2].roll(q, 1) for q in range(2)]
    views = [(0, 1.0), (1, 2.0), (None, 4.0), (None, 8.0)]
    logits = [(own, torch.full((2, 5), value, dtype=torch.float64)) for own, value in views]
    assert losses.alignment(taught, logits, 0.1) == pytest.approx(math.log(5))
    slopes = [z.requires_grad_() for _, z in logits]
    grads = torch.autograd.grad(losses.alignment(taught, logits, 0.1), slopes)
    of_one = 10 * (0.2 - taught[1]) / 2 / 6  # six pairs: 2 (n + 1) with two more views
    torch.testing.assert_close(grads[0], of_one)
    torch.testing.assert_close(grads[2], 10 * (0.4 - taught[0] - taught[1]) / 2 / 6)


def test_identical_networks_and_views_lack_no_detail_and_hidden_tokens_alone_count() -> None:
    made = method()
    images = Views.of(views_of(made), made.config.settings.wanted)
    nothing = [torch.zeros_like(mask) for mask in images.hidden]
    same = Views(images.clean, images.clean, images.clean, nothing, images.local)
    output = made(batch(same.flat))
    terms = made.loss(output, batch(same.flat))
    assert float(terms["detail"].detach()) == pytest.approx(0, abs=1e-9)
    assert float(terms["masked"].detach()) == 0
    hidden = same._replace(hidden=[torch.ones_like(mask) for mask in nothing])
    assert float(made.loss(made(batch(hidden.flat)), batch(hidden.flat))["masked"].detach()) > 1e-3


def test_the_masked_loss_reads_hidden_tokens_alone(generator: torch.Generator) -> None:
    student, teacher = (F.normalize(torch.randn(3, 8, 4, generator=generator), dim=2) for _ in range(2))
    hidden = torch.rand(3, 8, generator=generator) < 0.4
    hidden[1] = False
    value = losses.mean_of_tokens(losses.of_hidden(losses.restoration(student, teacher), hidden))
    expected = [1 - float(student[i, t] @ teacher[i, t]) for i, t in hidden.nonzero().tolist()]
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)
    disturbed = torch.where(hidden[:, :, None], student, torch.full_like(student, torch.nan))
    again = losses.mean_of_tokens(losses.of_hidden(losses.restoration(disturbed, teacher), hidden))
    assert torch.equal(value, again)


def test_a_hidden_token_says_nothing_of_its_pixels_and_all_else_is_seen() -> None:
    made = method()
    images = views_of(made)[0][:2]
    hidden = torch.zeros(2, HEIGHT // 8, WIDTH // 8, dtype=torch.bool)
    hidden[:, 1, 1] = True
    other = images.clone()
    other[:, :, 8:16, 8:16] += 1
    with torch.no_grad():
        seen = made._encoded(images, hidden)[0]
        assert torch.equal(seen, made._encoded(other, hidden)[0])
        assert not torch.equal(seen, made._encoded(other)[0])
        assert not torch.equal(seen, made._encoded(images)[0])


@pytest.mark.parametrize("token_loss", ["cosine", "ce"])
def test_a_step_teaches_every_parameter_of_the_student_and_the_teacher_only_follows(token_loss: str) -> None:
    made = method(token_loss=token_loss)
    statistics = made.embedder.bnneck.running_mean.clone()
    output = made(batch(views_of(made)))
    terms = made.loss(output, batch([]))
    torch.stack(list(terms.values())).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in made.parameters() if p.requires_grad)
    assert all(p.grad is None for p in (*made.teacher.parameters(), *made.teacher_heads.parameters()))
    assert 0 < float(terms["entropy"]) < math.log(12)
    build_optimiser(made, made.config.optimiser).step()
    pairs = [(made.teacher.network, made.embedder), (made.teacher_heads.network, made.heads)]
    before = [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher, _ in pairs]
    with torch.no_grad():
        made.after_step({name: value.detach() for name, value in output.items()}, batch([]))
    for old, (teacher, student) in zip(before, pairs, strict=True):
        for name, value in teacher.named_parameters():
            expected = 0.996 * old[name] + 0.004 * student.get_parameter(name)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
    assert not torch.equal(made.embedder.bnneck.running_mean, statistics), "what is handed on is normalised"
    assert not torch.equal(made.teacher.network.bnneck.running_mean, statistics)
    assert bool(made.centre.any())
    assert bool(made.token_centre.numel()) == (token_loss == "ce")
    other = method(token_loss=token_loss)
    other.load_memory_state(made.memory_state())
    assert torch.equal(other.centre, made.centre)
    last = {k: v.clone() for k, v in made.teacher.network.state_dict().items()}
    with torch.no_grad():
        made.after_step(output, batch([], progress=1.0))
    assert all(torch.equal(value, last[name]) for name, value in made.teacher.network.named_parameters())


def test_prototypes_stay_as_they_are_at_the_start() -> None:
    made = method(frozen=0.5)
    images = views_of(made)
    norms = []
    for epoch in (0.4, 0.5):
        made.zero_grad()
        terms = made.loss(made(batch(images, epoch)), batch([], epoch))
        torch.stack(list(terms.values())).sum().backward()
        norms.append(float(made.heads["view"].prototypes.weight.grad.norm()))
    assert norms[0] == 0 < norms[1]


def test_a_constant_teacher_becomes_uniform_as_the_centre_converges() -> None:
    logits = torch.linspace(-1, 1, 6, dtype=torch.float64).expand(4, 6)
    centre = torch.zeros(6, dtype=torch.float64)
    for _ in range(300):
        centre = losses.moved(centre, [logits, logits], 0.9)
    torch.testing.assert_close(losses.sharpened(logits, centre, 0.04), torch.full_like(logits, 1 / 6))
    assert float(losses.entropy([losses.sharpened(logits, centre, 0.04)])) == pytest.approx(math.log(6))


def test_low_quality_changes_every_image_and_keeps_its_place_shape_and_range(generator: torch.Generator) -> None:
    images = smooth(64, 64, 32, generator)
    drawn = prior.draw_quality(Prior(), 64, 64, generator)
    neutral = {"downsampling": 1, "blur": 0, "noise": 0, "jpeg": 0, "brightness": 1}
    assert torch.stack([drawn[name] != value for name, value in neutral.items()]).any(dim=0).all()
    made = prior.lower_quality(images, drawn)
    assert made.shape == images.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert (made != images).flatten(1).any(dim=1).all()
    brightened = (images * drawn["brightness"].double()[:, None, None, None]).clamp(0, 1)
    assert float((made - brightened).abs().mean()) < 0.05, "the same crop"
    off = {**drawn, **{name: torch.full((64,), float(value)) for name, value in neutral.items()}}
    torch.testing.assert_close(prior.lower_quality(images, off), images)


def test_an_occluder_covers_its_share_and_every_token_that_it_touches_is_hidden(generator: torch.Generator) -> None:
    count, height, width = 300, 64, 32
    drawn = prior.draw_occlusion(Prior(), count, height, width, generator)
    top, left, tall, wide = drawn["box"].unbind(dim=1)
    share = tall * wide / (height * width)
    assert 0.1 <= float(share.min()) <= float(share.max()) <= 0.4
    assert (torch.stack([top, left]) >= 0).all()
    assert ((top + tall <= height) & (left + wide <= width)).all()
    at_border = (top == 0) | (left == 0) | (top + tall == height) | (left + wide == width)
    assert 0.5 < float(at_border.float().mean()) < 0.8
    assert (drawn["donor"] != torch.arange(count)).all()
    images, donors = torch.zeros(count, 3, height, width), torch.ones(count, 3, height, width)
    changed = (prior.occluded(images, donors, drawn) != images).any(dim=1)
    inside = prior.in_box(drawn["box"], height, width)
    assert (changed <= inside).all()
    assert torch.equal(changed[drawn["filling"] == prior.PATCH], inside[drawn["filling"] == prior.PATCH])
    touched = prior.in_box(drawn["box"], height, width, 8, 8)
    assert torch.equal(touched, F.max_pool2d(inside.float()[:, None], 8)[:, 0] > 0)
    overlapping = prior.in_box(drawn["box"], height, width, 12, 4)
    assert torch.equal(overlapping, F.max_pool2d(inside.float()[:, None], 12, 4)[:, 0] > 0)
    hidden = prior.draw_hidden(Prior(), touched, generator)
    assert (hidden >= touched).all()
    more = hidden.sum((1, 2)) > touched.sum((1, 2))
    assert more.any()
    assert (hidden.sum((1, 2))[more] <= 0.4 * 32).all()


def test_a_crop_is_resized_as_by_a_bicubic_filter(generator: torch.Generator) -> None:
    images = smooth(20, 64, 32, generator)
    boxes = draw_boxes((0.05, 1.0), 20, 64, 32, generator)
    for size in ((64, 32), (16, 8)):
        found = resized(images, boxes, size)
        for image, (top, left, tall, wide), view in zip(images, boxes.tolist(), found, strict=True):
            cut = image[None, :, top : top + tall, left : left + wide]
            expected = F.interpolate(cut, size, mode="bicubic", antialias=True)[0].clamp(0, 1)
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_compression_is_that_of_jpeg(generator: torch.Generator) -> None:
    images = (smooth(3, 24, 20, generator) + 0.1 * torch.rand(3, 3, 24, 20, generator=generator)).clamp(0, 1)
    for image, quality in zip(images, (10, 30, 70), strict=True):
        file = io.BytesIO()
        pixels = (255 * image).round().to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
        ours = compressed(pixels[None] / 255, torch.tensor([float(quality)]))[0]
        assert float((ours - theirs).abs().mean()) < 0.005
        assert float((pixels / 255 - theirs).abs().mean()) > 0.02


def test_views_are_drawn_for_the_whole_batch_and_the_same_seed_gives_the_same() -> None:
    made = method()
    whole, half = views_of(made), views_of(made, slice(2, 5))
    assert len(whole) == 2 + 2 + 2 + 2 + 3
    assert all(torch.equal(view[2:5], mine) for view, mine in zip(whole, half, strict=True))
    assert all(torch.equal(*pair) for pair in zip(whole, views_of(made), strict=True))
    views = Views.of(whole, made.config.settings.wanted)
    assert all(view.shape[2:] == (16, 8) for view in views.local)
    assert [len(list(kind)) for kind in Views.of(views_of(method(**OFF)), method(**OFF).config.settings.wanted)] == [
        *(2, 0, 0, 0, 3)
    ]


@pytest.mark.parametrize("data", ["target", "union"])
def test_images_are_all_that_pre_training_reads(data: str) -> None:
    config = Config(Settings(pretrain_data=data))  # type: ignore[arg-type]
    assert OrientedKDSSL.needs(config) == Needs(trains_on={"target": "train", "union": "train+source"}[data])
    assert not OrientedKDSSL.needs(Config(Settings(scratch=True))).initial


def test_the_teachers_encoder_is_handed_on_whole_and_is_what_is_tested() -> None:
    made = method()
    with torch.no_grad():
        made.teacher.network.get_parameter("backbone.cls_token").add_(1)
    state = {k.removeprefix(made.exports): v for k, v in made.state_dict().items() if k.startswith(made.exports)}
    fresh = network().double()
    fresh.load_state_dict(state)
    images = views_of(made)[0]
    with torch.no_grad():
        assert torch.equal(made.eval().embed(images)["feature"], fresh.eval()(images)["feature"])


def test_published_rates_decay_and_groups_are_those_of_the_recipe() -> None:
    run = resolve_run("oriented_kd_ssl", "market1501", "published", pretrains=True)
    schedule, optimiser = run.config.schedule, run.config.optimiser
    assert [rate_factor(schedule, place) for place in (0, 5, 10)] == [0, 0.5, 1]
    assert rate_factor(schedule, 100) * optimiser.lr == pytest.approx(1e-6)
    made = method()
    built = build_optimiser(made, optimiser)
    decays = []
    for progress in (0, 0.25, 0.5, 1):
        set_decay(built, optimiser, progress)
        decays.append(built.param_groups[0]["weight_decay"])
        assert built.param_groups[1]["weight_decay"] == 0
    assert decays == sorted(decays)
    assert decays[0] == pytest.approx(0.04)
    assert decays[-1] == pytest.approx(0.4)
    assert all(p.ndim == 1 for p in built.param_groups[1]["params"])
    assert all(p.ndim > 1 for p in built.param_groups[0]["params"])


def test_the_fine_tuning_takes_the_network_that_was_pre_trained() -> None:
    run = resolve_run("oriented_kd_ssl", "market1501", "published")
    assert (run.backbone, run.finetuned_by) == ("vit_small", "cluster_contrast")
    assert resolve_run("oriented_kd_ssl", "market1501", "published", pretrains=True).backbone == "vit_small"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_quality": False}, "set it to 0 without low_quality"),
        ({"occlusion": False}, "set it to 0 without occlusion"),
        ({"local_share": 0.0}, r"local_share in \(0, 1\]"),
        ({"momentum": 1.5}, r"lie in \[0, 1\]"),
        ({"prior": lambda: Prior(jpeg=(0.0, 60.0))}, "settings.prior.jpeg is two ordered bounds from 1 to 100"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{name: value() if callable(value) else value for name, value in settings.items()})


def test_a_network_without_tokens_is_refused() -> None:
    embedder = build("resnet18_half", generator=torch.Generator())
    with pytest.raises(UserError, match="which backbone 'resnet50' has not"):
        OrientedKDSSL(Config(Settings(**SMALL)), embedder, IMAGES)
