import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import seeded_init
from core.backbones.resnet import (
    STAGES,
    InstanceBatchNorm,
    end_without_relu,
    resnet18_half,
    resnet50,
    resnet50_ibn,
)
from core.backbones.vit import vit_tiny6_ics
from core.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=generator(5))


def torchvision_map(network: TorchvisionResNet, batch: torch.Tensor) -> torch.Tensor:
    stem = network.maxpool(network.relu(network.bn1(network.conv1(batch))))
    return network.layer4(network.layer3(network.layer2(network.layer1(stem))))


@pytest.mark.parametrize("last_stride", [1, 2])
def test_resnet50_equals_torchvisions_with_its_weights(last_stride):
    with seeded_init(generator()):
        reference = torchvision.models.resnet50(weights=None)
    if last_stride == 1:
        reference.layer4[0].conv2.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    network = resnet50(last_stride)
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    network.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(network(images()), torchvision_map(reference, images()))
        assert torch.equal(network.eval()(images()), torchvision_map(reference.eval(), images()))


def test_resnet18_half_has_resnet18s_layout_at_half_the_width():
    reference = TorchvisionResNet(BasicBlock, [2, 2, 2, 2]).state_dict()
    mine = resnet18_half().state_dict()
    assert list(mine) == [key for key in reference if not key.startswith("fc.")]
    for key, value in mine.items():
        wide = tuple(reference[key].shape)
        halved = tuple(n if n in (1, 3, 7) and i > 0 else n // 2 for i, n in enumerate(wide))
        assert tuple(value.shape) == halved, key
    assert resnet18_half().dim == 256


@pytest.mark.parametrize(
    ("make", "size", "shape"),
    [
        (resnet50, (256, 128), (2048, 16, 8)),
        (resnet50_ibn, (256, 128), (2048, 16, 8)),
        (resnet50, (384, 128), (2048, 24, 8)),
        (resnet18_half, (128, 64), (256, 8, 4)),
    ],
)
def test_map_has_the_published_resolution(make, size, shape):
    network = make().eval()
    with torch.no_grad():
        assert network(images(1, *size)).shape[1:] == shape
    assert network.dim == shape[0]


def test_ibn_replaces_the_first_norm_of_the_first_three_stages():
    network = resnet50_ibn()
    for name in STAGES:
        for block in getattr(network, name):
            assert isinstance(block.bn1, InstanceBatchNorm) == (name != "layer4")
            assert isinstance(block.bn2, GroupedBatchNorm2d)
    assert network.layer1[0].bn1.IN.weight.shape == (32,)
    assert "layer3.5.bn1.BN.running_mean" in network.state_dict()


def test_ibn_normalises_half_by_instance_and_half_by_batch():
    norm, values = InstanceBatchNorm(6), images(4).repeat(1, 2, 1, 1)
    instance, batch = nn.InstanceNorm2d(3), nn.BatchNorm2d(3)
    wanted = torch.cat([instance(values[:, :3]), batch(values[:, 3:])], dim=1)
    torch.testing.assert_close(norm(values), wanted)
    last = norm(values.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, wanted)


def test_module_after_a_stage_transforms_that_stages_output():
    network = resnet18_half().eval()
    double = nn.Module()
    double.forward = lambda features: 2 * features
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images()))))
        second = network.layer2(network.layer1(stem))
        wanted = network.layer4(2 * network.layer3(2 * second))
        result = network(images(), after={"layer2": double, "layer3": double})
    assert torch.equal(result, wanted)


def test_module_after_an_unknown_stage_is_an_error():
    with pytest.raises(ValueError, match="layer5"):
        resnet18_half()(images(), after={"layer5": nn.Identity()})


def test_stem_relu_can_be_left_out():
    with seeded_init(generator()):
        plain = resnet18_half().eval()
    with seeded_init(generator()):
        without = resnet18_half(stem_relu=False).eval()
    with torch.no_grad():
        stem = without.bn1(without.conv1(images()))
        wanted = plain.layer1(plain.maxpool(stem))
        caught = []
        without.layer1.register_forward_hook(lambda module, given, out: caught.append(out))
        without(images())
    assert (stem < 0).any()
    assert torch.equal(caught[0], wanted)


@pytest.mark.parametrize("make", [resnet18_half, resnet50])
def test_a_map_without_its_last_relu_is_the_map_before_it_under_the_same_names(make):
    network, linear = make(), make()
    linear.load_state_dict(network.state_dict())
    end_without_relu(linear)
    assert list(linear.state_dict()) == list(network.state_dict())
    with torch.no_grad():
        plain, signed = network.eval()(images()), linear.eval()(images())
    assert (signed < 0).any()
    assert torch.equal(signed.relu(), plain)
    with pytest.raises(
        UserError, match=r"ends the last stage of a ResNet, and VisionTransformer.*settings\.last_relu=true"
    ):
        end_without_relu(vit_tiny6_ics())
