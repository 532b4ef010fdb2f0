"""SDFT by its spec (sdft.md section 13): fusion blocks, SDR, SDCL, their memories, and what is left without them."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import BACKBONES, Embedder, seeded_init
from core.backbones.pooling import AveragePooling
from core.backbones.vit import VisionTransformer
from core.config import Config
from core.data import Batch, Labels
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.sdft.fusion import Tokens, enter, fuse, split_stripes, stripe_features
from methods.sdft.losses import (
    StripeMemory,
    cluster_consistency,
    feature_consistency,
    identity_view,
    joint_view,
    stripe_view,
)
from methods.sdft.method import SDFT, Settings
from methods.sdft.trunk import MapBlock
from pipeline.settings import method_config, resolve_run
from tests.methods.draws import normal, unit

CLUSTERS, STRIPES, DIM, TAU, M = 5, 4, 16, 0.05, 0.2
TARGETS = torch.tensor([2, 0, 2, 4, 2, 0, 4, 1])
OFF = {"sdr_feature": False, "sdr_cluster": False, "sdcl_identity": False, "sdcl_stripe": False}


def transformer_block(generator: torch.Generator, dim: int = DIM) -> MapBlock:
    """A block whose branches are not zero, as after training."""
    block = MapBlock(dim).double()
    for parameter in block.parameters():
        parameter.data = normal(generator, *parameter.shape) * 0.3
    return block


def sdft(embedder: Embedder, **settings: object) -> SDFT:
    with seeded_init(torch.Generator().manual_seed(1)):
        return SDFT(Config(settings=Settings(**settings)), embedder, 1)  # type: ignore[arg-type]


class Convolution(nn.Module):
    """Stands in for a ResNet: images of 32 x 16 give a map of 4 x 2."""

    dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.dim, 8, stride=8)
        self.norm = GroupedBatchNorm2d(self.dim)

    def forward(self, images: Tensor, after: None = None) -> Tensor:
        return self.norm(self.conv(images)).relu()


@pytest.fixture(params=["map", "tokens"])
def small(request: pytest.FixtureRequest) -> Embedder:
    """A convolutional backbone, or a vision transformer; both have 4 x 2 patches."""
    with seeded_init(torch.Generator().manual_seed(0)):
        vit = VisionTransformer(Convolution.dim, 2, 3, image_size=(32, 16), patch=8, stride=8, drop_path=0.3)
        backbone = Convolution() if request.param == "map" else vit
        return Embedder(backbone, AveragePooling(), Convolution.dim).double()


def pictures(generator: torch.Generator, count: int = 8, height: int = 32, width: int = 16) -> Tensor:
    return normal(generator, count, 3, height, width)


def batch_of(images: Tensor, targets: Tensor = TARGETS) -> Batch:
    return Batch([images], torch.arange(len(targets)), targets, None, {}, 0)


class Extracted:
    """Stands in for the training data: what ``embed`` gave for every image."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        self.outputs = outputs

    def features(self) -> Tensor:
        return self.outputs["feature"]

    def embedded(self, key: str) -> Tensor:
        return self.outputs[key]


def started(method, images: Tensor, labels: Tensor):
    """The method after an eval-mode extraction and ``start_epoch``, in training mode."""
    with torch.no_grad():
        outputs = method.double().eval().embed(images)
    method.start_epoch(Labels(labels.numpy()), Extracted(outputs), torch.Generator())
    return method.train()


def step(method, batch: Batch) -> dict[str, Tensor]:
    """Loss, gradients and memory updates of one batch, as the engine orders them."""
    method.zero_grad()
    torch.manual_seed(0)  # drop path draws from the global stream
    output = method(batch)
    terms = method.loss(output, batch)
    torch.stack(list(terms.values())).sum().backward()
    method.after_step({name: value.detach() for name, value in output.items()}, batch)
    return terms


# Fusion blocks


def test_with_one_stripe_and_equal_paths_the_part_path_repeats_the_global_path_exactly(generator) -> None:
    block = transformer_block(generator).eval()
    tokens = enter(normal(generator, 3, DIM), normal(generator, 3, 8, DIM), stripes=1)
    fused = fuse(block, copy.deepcopy(block), tokens, rows=4)
    alone = block(torch.cat([tokens.whole[:, None], tokens.patches], dim=1))
    assert torch.equal(fused.stripes[:, 0], fused.whole)
    assert torch.equal(fused.whole, alone[:, 0])
    assert torch.equal(fused.patches, alone[:, 1:])


def test_a_fusion_block_equals_the_spec_s_loop_over_stripes(generator) -> None:
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


# SDR and SDCL


def test_feature_consistency_is_zero_only_where_both_features_agree(generator) -> None:
    g, a = unit(generator, 6, DIM), unit(generator, 6, DIM)
    torch.testing.assert_close(feature_consistency(g, g), torch.zeros((), dtype=g.dtype), rtol=0, atol=1e-12)
    assert feature_consistency(a, g) > 0
    torch.testing.assert_close(feature_consistency(a, g), (1 - torch.diag(a @ g.T)).mean())


def test_cluster_consistency_is_zero_for_equal_posteriors_and_positive_otherwise(generator) -> None:
    z, w = 10 * normal(generator, 6, CLUSTERS), 10 * normal(generator, 6, CLUSTERS)
    torch.testing.assert_close(cluster_consistency(z, z + 3), torch.zeros((), dtype=z.dtype), rtol=0, atol=1e-12)
    assert cluster_consistency(z, w) > 0
    p, q = z.softmax(1), w.softmax(1)
    literal = 0.5 * ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean()
    torch.testing.assert_close(cluster_consistency(z, w), literal)


def test_the_teacher_side_of_either_divergence_has_no_gradient(generator) -> None:
    z = normal(generator, 6, CLUSTERS).requires_grad_()
    w = normal(generator, 6, CLUSTERS).requires_grad_()
    cluster_consistency(z, w).backward()
    # d KL(sg(p) || q) / d logits of q = q - p, a half of it, over the batch; and the mirror image for p.
    difference = (w.softmax(1) - z.softmax(1)).detach() / (2 * len(z))
    torch.testing.assert_close(w.grad, difference)
    torch.testing.assert_close(z.grad, -difference)


def test_feature_consistency_moves_both_features(generator) -> None:
    g, a = unit(generator, 6, DIM).requires_grad_(), unit(generator, 6, DIM).requires_grad_()
    feature_consistency(a, g).backward()
    torch.testing.assert_close(a.grad, -g.detach() / 6)
    torch.testing.assert_close(g.grad, -a.detach() / 6)


def literal_sdcl(f: Tensor, bank: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Identity view, stripe view and the joint one, sample by sample and stripe by stripe."""
    identity, stripe, joint = [], [], []
    for i, y in enumerate(targets.tolist()):
        for s in range(f.shape[1]):
            scores = torch.exp(bank @ f[i, s] / TAU)  # (S, K)
            own = scores[s, y]
            across = scores[:, y].sum()
            identity.append(-torch.log(own / scores[s].sum()))
            stripe.append(-torch.log(own / across))
            joint.append(-torch.log(own / (scores[s].sum() + across - own)))
    return torch.stack(identity).mean(), torch.stack(stripe).mean(), torch.stack(joint).mean()


def test_the_views_of_sdcl_equal_the_spec_s_sums(generator) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    expected = literal_sdcl(f, bank, TARGETS)
    for view, value in zip((identity_view, stripe_view, joint_view), expected, strict=True):
        torch.testing.assert_close(view(f, bank, TARGETS, TAU), value)


@pytest.mark.parametrize("view", [identity_view, stripe_view, joint_view])
def test_sdcl_does_not_depend_on_the_order_of_identities_or_stripes(generator, view) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    value = view(f, bank, TARGETS, TAU)
    identities, stripes = torch.randperm(CLUSTERS, generator=generator), torch.randperm(STRIPES, generator=generator)
    torch.testing.assert_close(view(f, bank[:, identities], identities.argsort()[TARGETS], TAU), value)
    torch.testing.assert_close(view(f[:, stripes], bank[stripes], TARGETS, TAU), value)
    assert not torch.allclose(view(f[:, [1, 0, 2, 3]], bank, TARGETS, TAU), value)


def test_the_stripe_view_reads_the_rows_of_the_own_identity_only(generator) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    more = torch.cat([bank, unit(generator, STRIPES, 3, DIM)], dim=1)
    assert torch.equal(stripe_view(f, bank, TARGETS, TAU), stripe_view(f, more, TARGETS, TAU))
    assert not torch.equal(identity_view(f, bank, TARGETS, TAU), identity_view(f, more, TARGETS, TAU))


def test_with_one_stripe_the_stripe_view_is_zero_and_the_joint_one_the_identity_view(generator) -> None:
    f, bank = unit(generator, len(TARGETS), 1, DIM), unit(generator, 1, CLUSTERS, DIM)
    assert stripe_view(f, bank, TARGETS, TAU) == 0
    torch.testing.assert_close(joint_view(f, bank, TARGETS, TAU), identity_view(f, bank, TARGETS, TAU))


# Memories


def test_a_stripe_s_row_is_moved_by_its_own_stripe_and_identity_alone(generator) -> None:
    labels = torch.arange(20) % CLUSTERS
    memory = StripeMemory(unit(generator, 20, STRIPES, DIM), labels, M)
    f = unit(generator, len(TARGETS), STRIPES, DIM)
    expected = memory.bank.clone()
    memory.update(f, TARGETS)
    for i, y in enumerate(TARGETS.tolist()):
        for s in range(STRIPES):
            expected[s, y] = F.normalize(M * expected[s, y] + (1 - M) * f[i, s], dim=0)
    torch.testing.assert_close(memory.bank, expected)
    assert 3 not in TARGETS
    assert torch.equal(memory.bank[:, 3], expected[:, 3])


def test_stripe_rows_start_as_the_unit_means_of_their_cluster_without_outliers(generator) -> None:
    labels = torch.arange(24) % (CLUSTERS + 1) - 1
    parts = unit(generator, 24, STRIPES, DIM)
    memory = StripeMemory(parts, labels.numpy(), M)
    for s in range(STRIPES):
        for y in range(CLUSTERS):
            torch.testing.assert_close(memory.bank[s, y], F.normalize(parts[labels == y, s].mean(0), dim=0))


def test_no_memory_receives_a_gradient_and_each_follows_its_own_feature(small: Embedder, generator) -> None:
    images = pictures(generator)
    labels = torch.arange(8) % CLUSTERS
    method = started(sdft(small, stripes=2), images, labels)
    batch = batch_of(images)
    banks = [method.memory.rows.clone(), method.aggregates.rows.clone(), method.parts.bank.clone()]
    torch.manual_seed(0)
    with torch.no_grad():
        output = copy.deepcopy(method)(batch)
    step(method, batch)
    for rows, features in ((banks[0], output["feature"]), (banks[1], output["aggregate"])):
        for f, y in zip(features, TARGETS.tolist(), strict=True):
            rows[y] = F.normalize(M * rows[y] + (1 - M) * f, dim=0)
    torch.testing.assert_close(method.memory.rows, banks[0])
    torch.testing.assert_close(method.aggregates.rows, banks[1])
    assert not torch.allclose(method.parts.bank, banks[2])
    for bank in (method.memory.rows, method.aggregates.rows, method.parts.bank):
        assert not bank.requires_grad


# The method


@pytest.mark.parametrize("off", [OFF, {"lambda_r": 0.0, "lambda_c": 0.0}], ids=["switches", "weights"])
def test_without_blocks_and_terms_it_is_cluster_contrast_exactly(small: Embedder, generator, off) -> None:
    images, labels = pictures(generator), torch.arange(8) % CLUSTERS
    config = Config(settings=ClusterContrastSettings(temperature=TAU, momentum=M))
    baseline = started(ClusterContrast(config, copy.deepcopy(small), 1), images, labels)
    reduced = started(sdft(small, blocks=0, **off), images, labels)
    names = [name for name, _ in baseline.named_parameters()]
    assert [name for name, _ in reduced.named_parameters()] == names
    for _ in range(2):
        batch = batch_of(pictures(generator))
        ours, theirs = step(reduced, batch), step(baseline, batch)
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["cluster"], theirs["cluster"])
        pairs = zip(reduced.parameters(), baseline.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.requires_grad)
        assert torch.equal(reduced.memory.rows, baseline.memory.rows)
    assert torch.equal(reduced.eval().embed(images)["feature"], baseline.eval().embed(images)["feature"])


def test_the_loss_is_the_weighted_sum_of_the_spec(small: Embedder, generator) -> None:
    images = pictures(generator)
    weights = {"lambda_r": 0.3, "lambda_c": 0.7, "mu_s": 0.4, "tau_r": 0.1}
    method = started(sdft(small, **weights), images, torch.arange(8) % CLUSTERS)
    batch = batch_of(images)
    output = method(batch)
    g, a, f = output["feature"], output["aggregate"], output["parts"]
    terms = method.loss(output, batch)
    identity, stripe, joint = literal_sdcl(f, method.parts.bank, TARGETS)
    p, q = (x @ memory.rows.T / 0.1 for x, memory in ((g, method.memory), (a, method.aggregates)))
    expected = {
        "cluster": F.cross_entropy(g @ method.memory.rows.T / TAU, TARGETS),
        "sdr_feature": 0.3 * feature_consistency(a, g),
        "sdr_cluster": 0.3 * cluster_consistency(p, q),
        "sdcl_identity": 0.7 * identity,
        "sdcl_stripe": 0.7 * 0.4 * stripe,
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    method.config = dataclasses.replace(method.config, settings=Settings(sdcl="joint", **weights))
    torch.testing.assert_close(method.loss(output, batch)["sdcl"], 0.7 * joint)


@pytest.mark.parametrize("stripes", [1, 2, 4])
def test_outputs_are_unit_vectors_and_the_concatenations_have_one_length(small: Embedder, generator, stripes) -> None:
    method = sdft(small, stripes=stripes, test_feature="concat").double().eval()
    images, dim = pictures(generator, 3), small.dim
    views, tested = method(batch_of(images)), method.embed(images)["feature"]
    assert views["feature"].shape == views["aggregate"].shape == (3, dim)
    assert views["parts"].shape == (3, stripes, dim)
    for view in views.values():
        torch.testing.assert_close(view.norm(dim=-1), torch.ones(view.shape[:-1], dtype=view.dtype))
    assert tested.shape == (3, (stripes + 1) * dim)
    torch.testing.assert_close(tested.norm(dim=1), torch.full((3,), math.sqrt(1 + 1 / stripes), dtype=tested.dtype))
    assert torch.equal(tested[:, :dim], views["feature"])
    torch.testing.assert_close(tested[:, dim : 2 * dim], views["parts"][:, 0] / stripes)


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


def test_the_aggregation_is_the_neck_of_the_mean_of_the_raw_parts(small: Embedder, generator) -> None:
    method = sdft(small).double().eval()
    for block in method.trunk.modules():
        if isinstance(block, MapBlock):
            block.load_state_dict(transformer_block(generator, small.dim).state_dict())
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
    method = sdft(small, stripes=1).double().eval()
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


def test_necks_start_as_the_loaded_neck_and_a_checkpoint_keeps_its_own(small: Embedder) -> None:
    method = sdft(small)
    loaded = {name: value + 1 for name, value in small.state_dict().items()}
    method.embedder.load_state_dict(loaded)
    method.weights_loaded()
    necks = [method.aggregate_neck, *method.part_necks]
    for neck in necks:
        for name, value in neck.state_dict().items():
            assert torch.equal(value, loaded[f"bnneck.{name}"])
    saved = {name: value * 3 for name, value in method.state_dict().items()}
    method.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in method.state_dict().items())


ROWS = method_config("sdft")["variants"] | method_config("sdft")["ablations"]


@pytest.mark.parametrize("row", ROWS)
def test_every_trained_parameter_has_a_gradient_in_every_row(small: Embedder, generator, row: str) -> None:
    """Several processes need it: DDP waits for the gradient of each parameter."""
    settings = resolve_run(f"sdft-{row}", "rendered", {"profile": "tiny"}).config.settings
    method = started(sdft(small, **vars(settings)), pictures(generator), torch.arange(8) % CLUSTERS)
    terms = step(method, batch_of(pictures(generator)))
    assert all(torch.isfinite(term) for term in terms.values())
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_each_switch_removes_its_own_term(small: Embedder, generator) -> None:
    images, labels = pictures(generator), torch.arange(8) % CLUSTERS
    for switch in OFF:
        method = started(sdft(copy.deepcopy(small), **{switch: False}), images, labels)
        expected = {"cluster", *OFF} - {switch}
        assert method.loss(method(batch_of(images)), batch_of(images)).keys() == expected


def test_clustering_reads_the_global_feature_even_where_the_concatenation_is_tested(small, generator) -> None:
    method = sdft(small, test_feature="concat").double().eval()
    outputs = method.embed(pictures(generator))
    g = method.views(pictures(torch.Generator().manual_seed(3)))["feature"]
    assert torch.equal(method.global_features(Extracted(outputs)), g)


def test_no_camera_label_is_used(small: Embedder) -> None:
    run = resolve_run("sdft", "market1501", {"profile": "published"})
    assert SDFT.needs(run.config).cameras == frozenset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stripes": 0}, "stripes 0 at least 1"),
        ({"blocks": -1}, "blocks -1 is at least 0"),
        ({"sdcl": "both"}, "sum or joint"),
        ({"sdcl": "joint", "sdcl_stripe": False}, "leave sdcl_identity and sdcl_stripe on"),
        ({"test_feature": "parts"}, "global or concat"),
        ({"test_feature": "concat", "lambda_c": 0.0}, "no loss trains"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("small", ["tokens"], indirect=True)
def test_one_fusion_block_without_terms_is_the_baseline_where_no_path_is_dropped(small: Embedder, generator) -> None:
    small.backbone.drop_path = (0.0,) * len(small.backbone.blocks)
    off = {"sdr_feature": False, "sdr_cluster": False, "sdcl_identity": False, "sdcl_stripe": False}
    images = pictures(generator)
    fused, plain = (sdft(small, blocks=blocks, **off).double().train().views(images) for blocks in (1, 0))
    torch.testing.assert_close(fused["feature"], plain["feature"], rtol=1e-12, atol=1e-12)
