"""Loading weights into a vision transformer: ImageNet, the TransReID family, positions of other grids."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from core.backbones.net import Embedder
from core.backbones.pooling import AveragePooling
from core.backbones.vit import VisionTransformer, resize_positions
from core.backbones.weights import WEIGHTS, WeightsError, find_weights, load_weights
from tests.core.backbones.small_vit import images, small


def own(model: VisionTransformer) -> Embedder:
    return Embedder(model, AveragePooling(), model.dim)


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def released(model: VisionTransformer, prefix: str = "") -> dict[str, Tensor]:
    """A state dict in the layout of TransReID-SSL, whose parameter names are ours."""
    return {prefix + key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("old_names", [False, True], ids=["as saved now", "as the released file names them"])
def test_torchvisions_transformer_computes_the_same_class_token_after_loading(old_names, tmp_path) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.VisionTransformer(64, 16, 3, 3, 24, 96).double().eval()
    state = {key: torch.randn_like(value) / 5 for key, value in theirs.state_dict().items()}
    if old_names:
        state = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in state.items()}
    theirs.load_state_dict(state)  # torchvision itself reads both
    theirs.heads = torch.nn.Identity()
    model = own(small(image_size=(64, 64))).double().eval()
    entry = find_weights("imagenet", "vit_base")
    report = load_weights(model, replace(entry, sha256=None), save(state, tmp_path))
    assert report.unexpected == ("heads.head.weight", "heads.head.bias")
    assert {key.split(".")[0] for key in report.missing} == {"bnneck"}
    batch = images(2, (64, 64)).double()
    torch.testing.assert_close(model(batch)["pooled"], theirs(batch))


def test_the_imagenet_entry_is_torchvisions() -> None:
    theirs = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1
    entry = find_weights("imagenet", "vit_base")
    assert entry.url == theirs.url
    assert list(entry.mean) == theirs.transforms().mean
    assert list(entry.std) == theirs.transforms().std


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: released(model),
        lambda model: {"teacher": released(model, "backbone.") | {"head.mlp.0.weight": torch.ones(1)}, "student": {}},
        lambda model: {"teacher": released(model, "module.backbone.")},
        lambda model: {"state_dict": released(model, "module.") | {"module.bottleneck.running_mean": torch.ones(24)}},
        lambda model: released(model, "base.") | {"classifier.weight": torch.ones(1)},
        lambda model: {
            "teacher": released(model, "backbone."),
            "args": argparse.Namespace(arch="vit_small"),
            "epoch": 9,
        },
        lambda model: {"state_dict": released(model), "best_mAP": np.float64(0.5), "rank1": np.float32(0.6)},
    ],
    ids=[
        "plain",
        "dino",
        "dino under DataParallel",
        "unsupervised run",
        "supervised run",
        "with options",
        "with scores",
    ],
)
@pytest.mark.parametrize("entry", ["luperson_vit_small_ics", "checkpoint"])
def test_checkpoints_of_the_transreid_family_are_read_whole(entry, wrap, tmp_path) -> None:
    source, model = small(stem=8), own(small(stem=8))
    for value in source.parameters():
        torch.nn.init.normal_(value)
    report = load_weights(model, WEIGHTS[entry], save(wrap(source), tmp_path))
    assert all(key.startswith("bnneck.") for key in report.missing)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    if "bnneck.running_mean" in report.matched:
        assert torch.equal(model.bnneck.running_mean, torch.ones(24))


def test_the_small_transformer_starts_from_an_imagenet_file_as_timm_names_its_tensors(tmp_path) -> None:
    entry = find_weights("imagenet", "vit_small")
    assert entry.url is not None, "nobody needs a file of their own"
    assert entry.url.endswith(f"-{entry.sha256}.pth")
    source, model = small(image_size=(64, 64)), own(small())
    content = {"model": released(source) | {"head.weight": torch.ones(9, 24), "head.bias": torch.ones(9)}}
    report = load_weights(model, replace(entry, sha256=None), save(content, tmp_path))
    assert report.unexpected == ("head.weight", "head.bias")
    assert {key.split(".")[0] for key in report.missing} == {"bnneck"}
    resized = resize_positions(source.pos_embed, source.grid, (4, 2))
    assert torch.equal(model.backbone.pos_embed, resized)


def test_luperson_means_the_backbones_own_weights_with_their_normalisation() -> None:
    for backbone in ("vit_small", "vit_small_ics", "vit_base", "vit_base_ics"):
        entry = find_weights("luperson", backbone)
        assert entry.name == f"luperson_{backbone}"
        assert entry.mean == entry.std == (0.5, 0.5, 0.5)
    assert find_weights("luperson", "resnet50").mean != (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [(96, 96), (128, 64), (192, 64), (64, 32)])
def test_positions_of_square_and_upright_grids_are_resized_when_loading(size, tmp_path) -> None:
    source, model = small(image_size=size), own(small())
    load_weights(model, WEIGHTS["checkpoint"], save(released(source), tmp_path))
    expected = resize_positions(source.pos_embed, source.grid, (4, 2))
    assert torch.equal(model.backbone.pos_embed, expected)


def test_positions_of_another_grid_are_refused_and_the_model_left_alone(tmp_path) -> None:
    source, model = small(image_size=(80, 48)), own(small())  # 5 x 3 patches
    torch.nn.init.normal_(model.backbone.norm.weight)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match="positions of 15 patches"):
        load_weights(model, WEIGHTS["checkpoint"], save(released(source), tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_without_cameras_leaves_the_camera_embedding_as_it_was_drawn(tmp_path) -> None:
    source, model = small(), own(small(cameras=4))
    drawn = model.backbone.sie_embed.detach().clone()
    report = load_weights(model, WEIGHTS["checkpoint"], save(released(source), tmp_path))
    assert "backbone.sie_embed" in report.missing
    assert torch.equal(model.backbone.sie_embed, drawn)
