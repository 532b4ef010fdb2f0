from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.mobilenet import mobilenet_v2
from core.backbones.net import build, seeded_init
from core.backbones.resnet import with_stages
from core.backbones.weights import WeightsError, find_weights, load_weights
from core.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=generator(5))


def torchvisions(seed: int = 1) -> torchvision.models.MobileNetV2:
    with seeded_init(generator(seed)):
        return torchvision.models.mobilenet_v2(weights=None)


def test_with_stride_2_it_is_torchvisions_network_with_its_weights():
    reference, network = torchvisions(), mobilenet_v2(last_stride=2)
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("classifier.")}
    assert list(network.state_dict()) == list(state)
    network.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(network(images()), reference.features(images()))  # and running statistics move alike
        assert torch.equal(network.eval()(images()), reference.eval().features(images()))


def test_stride_1_keeps_the_resolution_of_the_last_stage():
    reference, network = torchvisions(), mobilenet_v2()
    network.load_state_dict({k: v for k, v in reference.state_dict().items() if k.startswith("features.")})
    reference.features[14].conv[1][0].stride = (1, 1)
    with torch.no_grad():
        feature_map = network.eval()(images(1, 128, 64))
        assert torch.equal(feature_map, reference.eval().features(images(1, 128, 64)))
    assert feature_map.shape == (1, network.dim, 8, 4)
    assert network.dim == 1280


def test_every_batch_norm_is_grouped_and_every_weight_learns():
    model = build("mobilenet_v2", "gem", bn_groups=2, generator=generator())
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 52
    assert all(isinstance(layer, GroupedBatchNorm2d) and layer.groups == 2 for layer in norms)
    feature = model(images(8))["feature"]
    assert feature.shape == (8, 1280)
    (feature[:4] @ feature[4:].T).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("entry", ["imagenet", "imagenet_copy", "checkpoint"])
def test_a_file_of_torchvisions_key_names_is_read(tmp_path, entry):
    state, model = torchvisions().state_dict(), build("mobilenet_v2", generator=generator())
    torch.save(state, tmp_path / "weights.pth")
    weights = find_weights(entry, "mobilenet_v2")
    report = load_weights(model, replace(weights, sha256=None), tmp_path / "weights.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
    assert report.unexpected == ("classifier.1.weight", "classifier.1.bias")
    assert {key.split(".")[0] for key in report.missing} == {"bnneck"}


def test_the_imagenet_entry_is_torchvisions_and_takes_no_other_file(tmp_path):
    entry = find_weights("imagenet", "mobilenet_v2")
    theirs = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    assert entry.url == theirs.url
    assert (list(entry.mean), list(entry.std)) == (theirs.transforms().mean, theirs.transforms().std)
    torch.save(torchvisions().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="begins with b0353104"):
        load_weights(build("mobilenet_v2", generator=generator()), entry, tmp_path / "weights.pth")


def test_what_reaches_between_stages_is_refused_with_what_to_do():
    model = build("mobilenet_v2", generator=generator())
    with pytest.raises(UserError, match=r"no stages.*layer2.*choose a resnet"):
        model(images(), after={"layer2": nn.Identity()})
    with pytest.raises(UserError, match=r"^it splits a ResNet, and MobileNetV2 has .*--backbone, or set split=false$"):
        with_stages(model.backbone, "it splits a ResNet", "set split=false")
