"""SDFT's trunk: fusion blocks (docs/methods/sdft.md, "Fusion block"), and where they begin in a network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from core.backbones.net import BACKBONES, Embedder
from core.backbones.pooling import AveragePooling
from core.config import Config
from methods.sdft.fusion import Tokens, enter, fuse, split_stripes, stripe_features
from methods.sdft.method import SDFT, Settings
from methods.sdft.trunk import MapBlock
from pipeline.settings import resolve_run
from tests.methods.draws import normal
from tests.methods.sdft_small import DIM, STRIPES, pictures, sdft, small_embedder


@pytest.fixture(params=["map", "tokens"])
def small(request: pytest.FixtureRequest) -> Embedder:
    return small_embedder(request.param)


def transformer_block(generator: torch.Generator, dim: int = DIM) -> MapBlock:
    """A block whose branches are not zero, as after training."""
    block = MapBlock(dim).double()
    for parameter in block.parameters():
        parameter.data = normal(generator, *parameter.shape) * 0.3
    return block


# Fusion blocks


def test_with_one_stripe_and_equal_paths_the_part_path_repeats_the_global_path_exactly(generator) -> None:
    block = transformer_block(generator).eval()
    tokens = enter(normal(generator, 3, DIM), normal(generator, 3, 8, DIM), stripes=1)
    fused = fuse(block, copy.deepcopy(block), tokens, rows=4)
    alone = block(torch.cat([tokens.whole[:, None], tokens.patches], dim=1))
    assert torch.equal(fused.stripes[:, 0], fused.whole)
    assert torch.equal(fused.whole, alone[:, 0])
    assert torch.equal(fused.patches, alone[:, 1:])


def test_a_fusion_block_equals_a_loop_over_stripes(generator) -> None:
    whole, part = transformer_block(generator), transformer_block(generator)
    rows, columns = 8, 3
    tokens = Tokens(
        normal(generator, 2, DIM), normal(generator, 2, rows * columns, DIM), normal(generator, 2, STRIPES, DIM)
    )
    fused = fuse(whole, part, tokens, rows)
    seen = whole(torch.cat([tokens.whole[:, None], tokens.patches], dim=1))
    grid = tokens.patches.view(2, rows, columns, DIM)
    inside = []
    for s in range(STRIPES):
        mine = grid[:, s * rows // STRIPES : (s + 1) * rows // STRIPES].reshape(2, -1, DIM)
        answer = part(torch.cat([tokens.stripes[:, s : s + 1], mine], dim=1))
        torch.testing.assert_close(fused.stripes[:, s], answer[:, 0])
        inside.append(answer[:, 1:])
    torch.testing.assert_close(fused.patches, (seen[:, 1:] + torch.cat(inside, dim=1)) / 2)
    assert torch.equal(fused.whole, seen[:, 0])


def test_stripe_tokens_start_as_copies_of_the_class_token(generator) -> None:
    whole = normal(generator, 2, DIM)
    tokens = enter(whole, normal(generator, 2, 8, DIM), STRIPES)
    assert all(torch.equal(tokens.stripes[:, s], whole) for s in range(STRIPES))


def test_patches_of_one_stripe_do_not_reach_the_tokens_of_the_others(generator) -> None:
    whole, part = transformer_block(generator), transformer_block(generator)
    before = enter(normal(generator, 2, DIM), normal(generator, 2, 8, DIM), STRIPES)
    changed = before.patches.clone()
    changed[:, 2:4] += 1  # the second of four stripes of two patches
    first, second = (fuse(whole, part, before._replace(patches=p), rows=4) for p in (before.patches, changed))
    for s in range(STRIPES):
        assert torch.equal(first.stripes[:, s], second.stripes[:, s]) is (s != 1)
    assert not torch.equal(first.whole, second.whole), "the global path sees all patches"


@pytest.mark.parametrize(("rows", "columns", "stripes"), [(8, 4, 4), (4, 2, 2), (4, 2, 4), (16, 8, 8), (24, 8, 3)])
def test_stripes_partition_the_patches_in_order(generator, rows: int, columns: int, stripes: int) -> None:
    patches = normal(generator, 2, rows * columns, DIM)
    striped = split_stripes(patches, rows, stripes)
    assert striped.shape == (2, stripes, rows * columns // stripes, DIM)
    assert torch.equal(torch.cat(list(striped.unbind(1)), dim=1), patches)
    per = rows // stripes
    assert torch.equal(striped[:, 1], patches.view(2, rows, columns, DIM)[:, per : 2 * per].flatten(1, 2))


def test_stripes_that_do_not_divide_the_rows_are_refused_although_they_divide_the_patches(generator) -> None:
    with pytest.raises(ValueError, match=r"stripes 8 does not divide the 4 rows"):
        split_stripes(normal(generator, 2, 8, DIM), rows=4, stripes=8)


def test_raw_parts_are_half_of_stripe_token_plus_mean_patch(generator) -> None:
    tokens = Tokens(normal(generator, 2, DIM), normal(generator, 2, 8, DIM), normal(generator, 2, 2, DIM))
    expected = torch.stack(
        [(tokens.stripes[:, s] + tokens.patches[:, 4 * s : 4 * s + 4].mean(1)) / 2 for s in range(2)], dim=1
    )
    torch.testing.assert_close(stripe_features(tokens, rows=4), expected)


# In a network


@pytest.mark.parametrize(
    ("backbone", "size", "dim"),
    [
        ("resnet18_half", (128, 64), 256),
        ("resnet18_half", (64, 32), 256),
        ("resnet50", (256, 128), 2048),
        ("vit_tiny6_ics", (64, 32), 192),
        ("vit_small", (256, 128), 384),
    ],
)
def test_it_runs_on_the_suite_s_backbones(backbone: str, size: tuple[int, int], dim: int) -> None:
    with torch.device("meta"):  # shapes without arithmetic
        embedder = Embedder(BACKBONES[backbone](), AveragePooling(), dim)
        method = SDFT(Config(settings=Settings(test_feature="concat")), embedder, 1)
        views = method.embed(torch.empty(4, 3, *size))
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    assert shapes == {"feature": (4, 5 * dim), "aggregate": (4, dim), "parts": (4, 4, dim)}


def trained(method: SDFT, generator: torch.Generator) -> SDFT:
    """The method in evaluation mode, its blocks no longer the identity that they start as on a map."""
    for block in method.double().eval().trunk.modules():
        if isinstance(block, MapBlock):
            block.load_state_dict(transformer_block(generator, method.embedder.dim).state_dict())
    return method


@pytest.mark.parametrize("profile", ["published", "controlled"])
def test_by_default_the_part_path_reaches_the_tested_feature(small: Embedder, generator, profile: str) -> None:
    settings = resolve_run("sdft", "rendered", profile).config.settings
    method, images = trained(sdft(small, **vars(settings)), generator), pictures(generator)
    before = method.embed(images)["feature"]
    for parameter in method.trunk.part_blocks.parameters():
        parameter.data = normal(generator, *parameter.shape) * 0.3
    assert (method.embed(images)["feature"] - before).norm(dim=1).min() > 1e-3


def test_one_block_hides_the_part_path_from_the_global_feature(small: Embedder, generator) -> None:
    method, images = trained(sdft(small, blocks=1), generator), pictures(generator)
    before = method.embed(images)
    for parameter in method.trunk.part_blocks.parameters():
        parameter.data = normal(generator, *parameter.shape) * 0.3
    after = method.embed(images)
    assert torch.equal(after["feature"], before["feature"])
    assert not torch.allclose(after["parts"], before["parts"])


def test_the_aggregation_is_the_neck_of_the_mean_of_the_raw_parts(small: Embedder, generator) -> None:
    method = trained(sdft(small, blocks=1), generator)
    images = pictures(generator)
    whole, patches, rows, paths = method.trunk.begin(small, images)
    assert rows == 4
    fused = fuse(paths[0], method.trunk.part_paths()[0], enter(whole, patches, 4), rows)
    fused = method.trunk.end(small, fused)
    expected = F.normalize(method.aggregate_neck(stripe_features(fused, 4).mean(1)), dim=1)
    torch.testing.assert_close(method.views(images)["aggregate"], expected)
    torch.testing.assert_close(method.views(images)["feature"], F.normalize(small.neck(fused.whole), dim=1))


@pytest.mark.parametrize("small", ["tokens"], indirect=True)
@pytest.mark.parametrize("blocks", [1, 2])
def test_in_a_transformer_fusion_begins_with_the_tokens_that_its_last_blocks_read(small, generator, blocks) -> None:
    images, read = pictures(generator), []
    small.eval().backbone.blocks[-blocks].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    small(images)
    method = sdft(small, blocks=blocks).double().eval()
    whole, patches, _, paths = method.trunk.begin(small, images)
    assert torch.equal(torch.cat([whole[:, None], patches], dim=1), read[0])
    assert len(paths) == len(method.trunk.part_paths()) == blocks


@pytest.mark.parametrize("small", ["tokens"], indirect=True)
def test_in_a_transformer_the_part_path_starts_as_the_loaded_block_so_one_stripe_repeats_g(small, generator) -> None:
    method = sdft(small, blocks=1, stripes=1).double().eval()
    loaded = {name: value + 0.1 for name, value in small.state_dict().items()}
    small.load_state_dict(loaded)
    method.weights_loaded()
    assert torch.equal(method.trunk.part_blocks[0].mlp.fc1.weight, loaded["backbone.blocks.2.mlp.fc1.weight"])
    whole, patches, rows, paths = method.trunk.begin(small, pictures(generator))
    fused = fuse(paths[0], method.trunk.part_paths()[0], enter(whole, patches, 1), rows)
    fused = method.trunk.end(small, fused)
    assert torch.equal(fused.stripes[:, 0], fused.whole)


@pytest.mark.parametrize("small", ["map"], indirect=True)
def test_on_a_map_fusion_begins_with_the_pooled_map_and_its_cells(small: Embedder, generator) -> None:
    images = pictures(generator)
    whole, patches, rows, _ = sdft(small).double().eval().trunk.begin(small, images)
    feature_map = small.map(images)
    assert torch.equal(whole, feature_map.mean((2, 3)))
    assert rows == 4
    assert torch.equal(patches[:, 3], feature_map[:, :, 1, 1])


@pytest.mark.parametrize(("small", "blocks"), [("map", 1), ("map", 2), ("tokens", 1)], indirect=["small"])
def test_a_fusion_block_starts_from_the_warm_start_s_own_feature(small: Embedder, generator, blocks: int) -> None:
    images = pictures(generator)
    method = sdft(small, blocks=blocks).double().eval()
    assert torch.equal(method.embed(images)["feature"], small(images)["feature"])


@pytest.mark.parametrize("small", ["tokens"], indirect=True)
def test_one_fusion_block_without_terms_is_the_baseline_where_no_path_is_dropped(small: Embedder, generator) -> None:
    small.backbone.drop_path = (0.0,) * len(small.backbone.blocks)
    off = {"sdr_feature": False, "sdr_cluster": False, "sdcl_identity": False, "sdcl_stripe": False}
    images = pictures(generator)
    fused, plain = (sdft(small, blocks=blocks, **off).double().train().views(images) for blocks in (1, 0))
    torch.testing.assert_close(fused["feature"], plain["feature"], rtol=1e-12, atol=1e-12)
