"""The vision transformer: its parts against literal versions, and as an embedder like any other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import BACKBONES, Embedder, build
from core.backbones.vit import Attention, PatchEmbedding, branch_scales, interpolation, resize_positions
from tests.core.backbones.small_vit import generator, images, small


def embedder(seed: int = 0, **options: object) -> Embedder:
    """The CPU size, cut down to two blocks."""
    return build("vit_tiny6_ics", generator=generator(seed), depth=2, **options)


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((256, 128), 16, (16, 8)), ((256, 128), 12, (21, 10)), ((64, 32), 16, (4, 2)), ((70, 40), 12, (5, 3))],
)
@pytest.mark.parametrize("stem", [0, 8])
def test_there_is_one_token_per_patch_and_one_for_the_class(size, stride, grid, stem) -> None:
    model = small(image_size=size, stride=stride, stem=stem)
    assert model.grid == grid == tuple((side - 16) // stride + 1 for side in size)
    assert model.pos_embed.shape == (1, 1 + grid[0] * grid[1], 24)
    token, feature_map = model(images(2, size).double())
    assert token.shape == (2, 24)
    assert feature_map.shape == (2, 24, *grid)


def test_overlapping_patches_share_pixels() -> None:
    patches = PatchEmbedding(8, patch=16, stride=12, stem=0)
    plain = images(1)
    changed = plain.clone()
    changed[..., 12:16, 0:12] += 1  # in the first and the second row of patches, and in the first column only
    moved = (patches(plain) != patches(changed)).any(dim=1)[0]
    assert moved.nonzero().tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(("patch", "stride", "stem"), [(16, 0, 0), (16, 17, 0), (16, 5, 8)])
def test_impossible_strides_are_refused(patch, stride, stem) -> None:
    with pytest.raises(ValueError, match="stride"):
        PatchEmbedding(8, patch, stride, stem)


def test_the_position_embedding_of_the_own_grid_is_used_as_it_is() -> None:
    embedding = torch.randn(1, 9, 5, generator=generator())
    assert resize_positions(embedding, (4, 2), (4, 2)) is embedding


@pytest.mark.parametrize(("grid", "wanted"), [((14, 14), (16, 8)), ((4, 2), (8, 3)), ((5, 7), (2, 7))])
def test_resizing_positions_is_bilinear_interpolation_of_the_patches_alone(grid, wanted) -> None:
    embedding = torch.randn(1, 1 + grid[0] * grid[1], 6, generator=generator(), dtype=torch.float64)
    image = embedding[:, 1:].reshape(1, *grid, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(image, wanted, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    resized = resize_positions(embedding, grid, wanted)
    assert torch.equal(resized[:, :1], embedding[:, :1])
    torch.testing.assert_close(resized[:, 1:], expected)


def test_interpolation_to_the_same_length_is_the_identity() -> None:
    assert torch.equal(interpolation(5, 5), torch.eye(5, dtype=torch.float64))


def test_any_input_size_is_taken_and_moves_the_positions_learned_for_another() -> None:
    model = small()
    for size, grid in (((128, 64), (8, 4)), ((48, 48), (3, 3))):
        token, feature_map = model(images(2, size).double())
        assert feature_map.shape[2:] == grid
        model.zero_grad()
        token.square().sum().backward()
        assert model.pos_embed.grad.abs().sum(2).min() > 0, "every learned position takes part"


def test_attention_is_softmax_of_scaled_products_per_head() -> None:
    attention = Attention(12, 3).double()
    tokens = torch.randn(2, 5, 12, generator=generator(), dtype=torch.float64)
    expected = torch.empty(2, 5, 12, dtype=torch.float64)
    for b in range(2):
        q, k, v = (tokens[b] @ attention.qkv.weight.T + attention.qkv.bias).split(12, dim=1)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.softmax(q[:, part] @ k[:, part].T / 4**0.5, dim=1)
            expected[b, :, part] = weights @ v[:, part]
    torch.testing.assert_close(attention(tokens), expected @ attention.proj.weight.T + attention.proj.bias)


def test_patch_tokens_lie_in_the_map_where_their_patches_lie_in_the_image() -> None:
    model = small()
    for block in model.blocks:  # without attention a token depends on its own patch alone
        torch.nn.init.zeros_(block.attn.proj.weight)
    plain = images(1).double()
    changed = plain.clone()
    changed[..., 32:48, 16:32] += 1  # third row, second column of patches
    token, feature_map = model(plain)
    moved_token, moved_map = model(changed)
    assert ((feature_map != moved_map).any(dim=1)[0]).nonzero().tolist() == [[2, 1]]
    assert torch.equal(token, moved_token)


def test_drop_path_grows_linearly_and_skips_branches_of_single_images_in_training_only() -> None:
    model = small(drop_path=0.4)
    assert model.drop_path == pytest.approx((0.0, 0.2, 0.4))
    batch = images(1).double().expand(64, -1, -1, -1)
    with torch.no_grad():
        token, _ = model(batch)
        assert len(torch.unique(token[:, 0])) > 1, "images of one batch drop different branches"
        token, _ = model.eval()(batch)
    torch.testing.assert_close(token, token[:1].expand(64, -1))


def test_a_kept_branch_is_scaled_so_that_its_mean_stays() -> None:
    torch.manual_seed(0)
    scales = branch_scales((0.0, 0.25), 20000)
    assert torch.equal(scales[0], torch.ones_like(scales[0]))
    assert scales[1].unique().tolist() == pytest.approx([0, 4 / 3])
    torch.testing.assert_close(scales[1].mean((1, 2, 3)), torch.ones(2), rtol=0, atol=0.02)


def test_drop_path_follows_torchs_global_stream() -> None:
    model, batch = small(drop_path=0.5), images(8).double()
    torch.manual_seed(1)
    first, _ = model(batch)
    second, _ = model(batch)
    torch.manual_seed(1)
    again, _ = model(batch)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_camera_embedding_is_added_to_every_token_and_trained_for_the_cameras_seen() -> None:
    model = small(cameras=5)
    twin = small()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k != "sie_embed"})
    cameras = torch.tensor([3, 0, 3, 1])
    token, _ = model(images().double(), cameras)
    token.pow(3).sum().backward()
    assert (model.sie_embed.grad.abs().sum((1, 2)) > 0).tolist() == [True, True, False, True, False]
    for row, camera in enumerate(cameras):  # an offset of all tokens is an offset of the position embedding
        moved = copy.deepcopy(twin)
        moved.pos_embed.data += 3.0 * model.sie_embed.data[camera]
        torch.testing.assert_close(moved(images()[row : row + 1].double())[0][0], token[row])


def test_without_a_camera_embedding_cameras_change_nothing() -> None:
    model = embedder().eval()
    with torch.no_grad():
        assert torch.equal(model(images(), torch.arange(4))["feature"], model(images())["feature"])


def test_missing_and_unknown_cameras_are_refused() -> None:
    model = small(cameras=3)
    with pytest.raises(ValueError, match="without theirs"):
        model(images().double())
    with pytest.raises(ValueError, match="embedding of 3 cameras"):
        model(images().double(), torch.tensor([0, 1, 2, 3]))


def test_no_module_can_follow_a_stage_of_a_transformer() -> None:
    with pytest.raises(ValueError, match="no stages"):
        small()(images().double(), after={"layer1": torch.nn.Identity()})


@pytest.mark.parametrize(
    ("name", "width", "heads", "stem", "millions"),
    [
        ("vit_tiny", 192, 3, 0, 5.5),
        ("vit_small", 384, 6, 0, 21.6),
        ("vit_small_ics", 384, 6, 64, 23.0),
        ("vit_base", 768, 12, 0, 85.7),
        ("vit_base_ics", 768, 12, 64, 88.4),
    ],
)
def test_the_family_has_the_published_sizes(name, width, heads, stem, millions) -> None:
    with torch.device("meta"):
        model = BACKBONES[name]()
    assert model.dim == width
    assert len(model.blocks) == 12
    assert {block.attn.heads for block in model.blocks} == {heads}
    assert model.patch_embed.proj.in_channels == (stem or 3)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_cpu_size_has_half_of_the_tiny_one_s_blocks() -> None:
    with torch.device("meta"):
        model = BACKBONES["vit_tiny6_ics"]()
    assert (model.dim, len(model.blocks)) == (192, 6)
    assert (model.patch_embed.patch, model.patch_embed.proj.in_channels) == (8, 32)
    assert model.grid == (8, 4)


def test_tokens_are_those_that_a_block_reads() -> None:
    model = embedder().eval().backbone
    tokens, grid = model.tokens(images(), blocks=1)
    assert grid == (8, 4)
    continued = model.norm(model.blocks[1](tokens, None))
    assert torch.equal(continued[:, 0], model(images())[0])
    assert torch.equal(model.norm(model.tokens(images())[0])[:, 0], model(images())[0])


def test_the_embedding_is_the_class_token_behind_the_neck() -> None:
    model = embedder().eval()
    output = model(images())
    token, feature_map = model.backbone(images())
    assert torch.equal(output["pooled"], token)
    assert torch.equal(output["map"], feature_map)
    assert torch.equal(output["map"], model.map(images()))
    assert torch.equal(output["feature"], F.normalize(model.neck(token), dim=1))
    assert output["map"].shape == (4, 192, 8, 4)
    assert model.pool(output["map"]).shape == (4, 192), "methods with stripes pool parts of the map"


def test_gem_has_no_meaning_for_a_class_token() -> None:
    with pytest.raises(ValueError, match="class token"):
        build("vit_tiny6_ics", "gem", generator=generator(), depth=1)


def test_bn_groups_reach_the_stem_and_it_embeds_as_separate_passes() -> None:
    grouped, single = embedder(bn_groups=2, drop_path=0.0).double(), embedder(drop_path=0.0).double()
    layers = [layer for layer in grouped.modules() if isinstance(layer, GroupedBatchNorm2d)]
    assert [layer.groups for layer in layers] == [2, 2, 2]
    batch = images(8).double()
    parts = [copy.deepcopy(single)(chunk)["feature"] for chunk in batch.chunk(2)]
    torch.testing.assert_close(grouped(batch)["feature"], torch.cat(parts))


def test_every_parameter_but_the_necks_bias_learns_in_either_memory_layout() -> None:
    model = embedder(drop_path=0.0).double()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    batch = images(8).double()
    weights = torch.randn(8, 192, generator=generator(1), dtype=torch.float64)
    (model(batch)["feature"] * weights).sum().backward()
    (twin(batch.contiguous(memory_format=torch.channels_last))["feature"] * weights).sum().backward()
    for (name, one), two in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name != "bnneck.bias":
            assert one.grad.abs().sum() > 0, name
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-8)


def test_bfloat16_autocast_keeps_the_feature_in_float32() -> None:
    model = embedder()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(8))
    assert output["pooled"].dtype == output["feature"].dtype == torch.float32
    output["feature"].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_adamw_fits_a_handful_of_images_in_a_few_steps() -> None:
    model, batch, targets = small(stem=8), images(8).double(), torch.arange(8) % 4
    head = torch.nn.Linear(24, 4, bias=False).double()
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], 3e-3, weight_decay=0.05)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(head(model(batch)[0]), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0], losses
