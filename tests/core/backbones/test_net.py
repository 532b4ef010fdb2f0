import copy

import pytest
import torch
import torch.nn.functional as F

from core.backbones.batchnorm import GroupedBatchNorm1d, GroupedBatchNorm2d
from core.backbones.net import Embedder, build, make_neck, seeded_init
from core.backbones.pooling import GeM
from core.backbones.weights import weights_sha256


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, **options) -> Embedder:
    return build("resnet18_half", generator=generator(seed), **options)


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 64, 32, generator=generator(7))


def loss_of(output: dict[str, torch.Tensor]) -> torch.Tensor:
    targets = torch.arange(len(output["feature"])) % 4
    targets = targets.to(output["feature"].device)
    return F.cross_entropy(output["feature"] @ output["feature"].detach()[:4].T / 0.05, targets)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_feature_is_the_unit_vector_of_map_pooling_and_neck(pooling):
    model = small(pooling=pooling, bn_groups=2)
    twin = copy.deepcopy(model)
    output = model(images())
    feature_map = twin.map(images())
    pooled = twin.pool(feature_map)
    assert torch.equal(output["map"], feature_map)
    assert torch.equal(output["pooled"], pooled)
    assert torch.equal(output["feature"], F.normalize(twin.neck(pooled), dim=1))
    torch.testing.assert_close(output["feature"].norm(dim=1), torch.ones(8))
    assert output["map"].shape == (8, model.dim, 4, 2)


def test_neck_starts_as_identity_scale_with_a_frozen_zero_bias():
    model = small()
    assert isinstance(model.bnneck, GroupedBatchNorm1d)
    assert torch.equal(model.bnneck.weight, torch.ones(256))
    assert torch.equal(model.bnneck.bias, torch.zeros(256))
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["bnneck.bias"]
    assert not make_neck(4).bias.requires_grad


def test_bn_groups_reach_backbone_and_neck():
    layers = [
        layer for layer in small(bn_groups=4).modules() if isinstance(layer, GroupedBatchNorm1d | GroupedBatchNorm2d)
    ]
    assert len(layers) == 21
    assert {layer.groups for layer in layers} == {4}


def test_groups_embed_as_separate_forward_passes_over_the_chunks():
    grouped, single = small(bn_groups=4).double(), small().double()
    batch = images(16).double()
    parts = [copy.deepcopy(single)(chunk)["feature"] for chunk in batch.chunk(4)]
    torch.testing.assert_close(grouped(batch)["feature"], torch.cat(parts))


def test_weights_follow_the_generator_and_nothing_else():
    first = weights_sha256(small(0).state_dict())
    torch.rand(3)
    assert weights_sha256(small(0).state_dict()) == first
    assert weights_sha256(small(1).state_dict()) != first


def test_building_restores_the_global_generator():
    before = torch.random.get_rng_state()
    small()
    with pytest.raises(KeyError), seeded_init(generator()):
        raise KeyError
    assert torch.equal(before, torch.random.get_rng_state())


def test_generator_moves_on_so_that_two_networks_differ():
    shared = generator()
    first = build("resnet18_half", generator=shared)
    second = build("resnet18_half", generator=shared)
    assert weights_sha256(first.state_dict()) != weights_sha256(second.state_dict())


def test_unknown_names_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        build("resnet5O", generator=generator())
    with pytest.raises(ValueError, match="did you mean 'gem'"):
        build("resnet50", pooling="gme", generator=generator())


def test_options_reach_the_backbone():
    model = small(last_stride=2, pooling="gem")
    assert model.map(images()).shape[2:] == (2, 1)
    assert isinstance(model.pooling, GeM)


def test_cameras_do_not_change_a_convolutional_embedding():
    model = small().eval()
    with torch.no_grad():
        plain = model(images())["feature"]
        assert torch.equal(model(images(), cameras=torch.arange(8))["feature"], plain)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("resnet18_half", "avg"), ("resnet50", "gem"), ("resnet50_ibn", "avg"), ("mobilenet_v2", "avg")],
)
def test_every_backbone_trains_in_channels_last_as_in_the_default_layout(name, pooling):
    model = build(name, pooling, bn_groups=2, generator=generator()).double()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    batch = images(4).double()
    output = model(batch)
    other = twin(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other["feature"], output["feature"])
    loss_of(output).backward()
    loss_of(other).backward()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feature_keeps_the_precision_of_the_weights(dtype):
    model = small(bn_groups=2).to(dtype)
    output = model(images().to(dtype))
    assert output["feature"].dtype == output["pooled"].dtype == dtype
    loss_of(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def check_autocast(device: str, dtype: torch.dtype) -> None:
    model = small(bn_groups=2, pooling="gem").to(device, memory_format=torch.channels_last)
    batch = images().to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, dtype=dtype):
        output = model(batch)
    assert output["map"].dtype == dtype
    assert output["pooled"].dtype == output["feature"].dtype == torch.float32
    loss_of(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(value.dtype != dtype for value in model.state_dict().values())


def test_training_under_bfloat16_autocast_keeps_feature_and_statistics_in_float32():
    check_autocast("cpu", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_cuda_autocast_keeps_feature_and_statistics_in_float32(dtype):
    check_autocast("cuda", dtype)
