"""JCL by its spec (jcl.md section 13): WaveBlock attention, camera filter, joint losses and their memories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from core.backbones.batchnorm import GroupedBatchNorm2d, set_bn_groups
from core.backbones.net import BACKBONES, Embedder, seeded_init
from core.backbones.pooling import POOLINGS
from core.backbones.resnet import STAGES, ResNet
from core.config import Backbone, Clustering, Config, Sampler
from core.data import Batch, Labels, Needs, TrainingData
from core.distributed import World
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.jcl.attention import NonLocal, ResidualCbam, Wam, WaveAttention, WaveBlock, wave_attention
from methods.jcl.camera_filter import drop_single_camera_clusters
from methods.jcl.instances import ClusteredInstances, hardest_similarities
from methods.jcl.method import JCL, Settings
from pipeline.settings import resolve_run
from tests.methods.draws import unit

CLUSTERS, DIM, TAU = 7, 16, 0.05
NO_WAM = Wam(attention="none", wave=1.0)


class Data:
    """Stands in for the training data: features, and the processes that share it."""

    def __init__(self, features: Tensor, rank: int = 0, size: int = 1) -> None:
        self._features = features
        self.world = World(rank, size, torch.device("cpu"))

    def features(self) -> Tensor:
        return self._features


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(generator: torch.Generator, batch: int = 6, channels: int = 32, height: int = 16, width: int = 4) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator)


def jcl(embedder: nn.Module | None = None, bn_groups: int = 1, **settings: object) -> JCL:
    """Without an embedder: JCL without the attention module, for its losses and memories."""
    if embedder is None:
        settings = {"wam": NO_WAM, **settings}
    config = Config(settings=Settings(**settings), backbone=Backbone(bn_groups=bn_groups))  # type: ignore[arg-type]
    with seeded_init(seeded(1)):
        method = JCL(config, embedder or nn.Identity(), 1)  # type: ignore[arg-type]
    set_bn_groups(method, bn_groups)
    return method


def small(seed: int = 0) -> Embedder:
    """A ResNet of 8 to 64 channels with one block per stage."""
    with seeded_init(seeded(seed)):
        backbone = ResNet(BasicBlock, (1, 1, 1, 1), width=8)
        return Embedder(backbone, POOLINGS["avg"](), backbone.dim)


def warm(seed: int = 0) -> Embedder:
    """A network with batch-norm statistics of its own, as after a warm start."""
    embedder = small(seed)
    embedder(images())
    return embedder


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 64, 32, generator=seeded(7))


def batch_of(targets: Tensor, indices: Tensor | None = None, pixels: Tensor | None = None) -> Batch:
    rows = torch.arange(len(targets)) if indices is None else indices
    return Batch([] if pixels is None else [pixels], rows, targets, None, {}, 0)


def filled(method, features: Tensor, labels: Tensor, **data: int):
    method.start_epoch(Labels(labels.numpy()), Data(features, **data), seeded(0))
    return method


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Batch]:
    """60 clustered features with outliers, and a batch with uneven classes, some absent and one image twice."""
    labels = torch.randint(-1, CLUSTERS, (60,), generator=generator)
    labels[:CLUSTERS] = torch.arange(CLUSTERS)
    wanted = [2, 0, 2, 5, 2, 0, 5, 5, 1]
    members = [torch.nonzero(labels == y).flatten() for y in range(CLUSTERS)]
    indices = torch.stack([members[y][place % len(members[y])] for place, y in enumerate(wanted)])
    indices[2] = indices[0]
    return unit(generator, 60, DIM), labels, unit(generator, len(wanted), DIM), batch_of(labels[indices], indices)


# WaveBlock


def bands(block: WaveBlock, features: Tensor) -> Tensor:
    """(B, H) ratio of output to input, after checking that it is the same in all channels and columns."""
    ratio = block(features) / features
    torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))
    return ratio[:, 0, :, 0]


def starts_of(ratios: Tensor) -> list[int]:
    return [int(torch.isclose(row, torch.ones(())).nonzero()[0]) for row in ratios]


def test_waveblock_in_eval_mode_returns_its_input_and_draws_nothing(generator) -> None:
    features = maps(generator)
    state = torch.get_rng_state()
    assert torch.equal(WaveBlock(0.3, 1.5).eval()(features), features)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("height", "band"), [(32, 10), (16, 5), (8, 2), (4, 1)])
def test_waveblock_keeps_one_band_for_all_samples_and_multiplies_the_other_rows(generator, height, band) -> None:
    features = maps(generator, height=height)
    output = WaveBlock(0.3, 1.5)(features)
    kept = [row for row in range(height) if torch.equal(output[:, :, row], features[:, :, row])]
    assert kept == list(range(kept[0], kept[0] + band))
    for row in set(range(height)) - set(kept):
        assert torch.equal(output[:, :, row], 1.5 * features[:, :, row])


def test_waveblock_with_wave_1_is_the_identity(generator) -> None:
    features = maps(generator)
    assert torch.equal(WaveBlock(0.3, 1.0)(features), features)


def test_the_band_lies_inside_the_map_and_reaches_both_ends(generator) -> None:
    block, features = WaveBlock(0.3, 1.5), maps(generator, batch=1, channels=1, width=1)
    block.draw_from(generator, 1, slice(0, 1))
    seen = {starts_of(bands(block, features))[0] for _ in range(300)}
    assert seen == set(range(16 - 5 + 1))


def test_the_gradient_of_waveblock_is_its_mask(generator) -> None:
    features = maps(generator).requires_grad_()
    output = WaveBlock(0.3, 1.5)(features)
    output.sum().backward()
    torch.testing.assert_close(features.grad, (output / features).detach())


def test_every_batch_norm_group_draws_a_band_of_its_own(generator) -> None:
    block, features = WaveBlock(0.3, 1.5), maps(generator, batch=10, channels=1, width=1)
    block.draw_from(generator, 4, slice(0, 4))
    drawn = [starts_of(bands(block, features)) for _ in range(20)]
    for starts in drawn:  # torch.chunk cuts 10 samples into 3 + 3 + 3 + 1
        assert [len(set(chunk)) for chunk in (starts[:3], starts[3:6], starts[6:9])] == [1, 1, 1]
    assert any(len({starts[0], starts[3], starts[6], starts[9]}) > 2 for starts in drawn)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_bands_do_not_depend_on_the_number_of_processes(generator, size: int) -> None:
    wam, labels, features = Wam(attention="none"), torch.arange(8) % 4, unit(generator, 8, DIM)
    steps = [(stage, maps(generator, batch=8)) for _ in range(5) for stage in wam.stages]
    whole = filled(jcl(small(), bn_groups=4, wam=wam), features, labels)
    shares = [filled(jcl(small(), bn_groups=4, wam=wam), features, labels, rank=r, size=size) for r in range(size)]
    for stage, full in steps:
        parts = [
            method.wam[stage](full[World(r, size, torch.device("cpu")).part(8)]) for r, method in enumerate(shares)
        ]
        assert torch.equal(torch.cat(parts), whole.wam[stage](full))


def test_bands_follow_the_epochs_generator_and_leave_the_global_stream_alone() -> None:
    method, labels = jcl(warm()), torch.arange(8) % 4
    weights = {name: value.clone() for name, value in method.state_dict().items()}
    batch, outputs = batch_of(labels, pixels=images()), []
    for seed in (0, 0, 1):
        method.load_state_dict(weights)  # the statistics of batch norm have moved
        method.start_epoch(Labels(labels.numpy()), Data(unit(seeded(5), 8, DIM)), seeded(seed))
        torch.manual_seed(len(outputs))
        state = torch.get_rng_state()
        outputs.append([method(batch)["feature"] for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[2], strict=True))


# Attention


def test_a_non_local_block_starts_as_the_identity(generator) -> None:
    features, block = maps(generator), NonLocal(32)
    assert torch.equal(block(features), features)
    assert torch.equal(block.eval()(features), features)


def awake(block: NonLocal) -> NonLocal:
    nn.init.normal_(block.norm.weight, generator=seeded(8))
    nn.init.normal_(block.norm.bias, generator=seeded(9))
    return block


def test_the_non_local_block_equals_its_double_sum(generator) -> None:
    block, features = awake(NonLocal(8)).double(), maps(generator, 3, 8, 4, 2).double()
    theta, phi, g = (conv(features).flatten(2) for conv in (block.theta, block.phi, block.g))
    context = torch.zeros_like(g)
    for b in range(3):
        for i in range(8):
            for j in range(8):
                context[b, :, i] += theta[b, :, i].dot(phi[b, :, j]) * g[b, :, j] / 8
    expected = features + block.norm(block.expand(context.view(3, 4, 4, 2)))
    torch.testing.assert_close(block(features), expected)


def test_cbam_equals_its_two_gates_written_out(generator) -> None:
    block, features = ResidualCbam(32).double().eval(), maps(generator, 2).double()
    expected = torch.empty_like(features)
    for b, image in enumerate(features):
        average, largest = image.flatten(1).mean(1), image.flatten(1).max(1).values
        gated = image * torch.sigmoid(block.channel(average) + block.channel(largest))[:, None, None]
        summary = torch.stack([gated.max(0).values, gated.mean(0)])
        position = torch.sigmoid(block.spatial(summary[None]))[0]
        expected[b] = image + gated * position
    torch.testing.assert_close(block(features), expected)
    assert block.channel[0].out_features == 2
    assert block.spatial[1].momentum == 0.01


def test_pre_attention_with_a_zeroed_cbam_is_the_identity_before_waveblock(generator) -> None:
    module, features = WaveAttention(32, Wam(order="pre", attention="cbam")), maps(generator)
    assert isinstance(module.attention, ResidualCbam)
    nn.init.constant_(module.attention.channel[2].bias, -1e9)  # a channel gate of exactly 0
    assert torch.equal(module.attention(features), features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    through = module(features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    assert torch.equal(through, module.wave(features))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_order_says_whether_attention_comes_before_or_after_waveblock(generator, order: str) -> None:
    module, features = WaveAttention(32, Wam(order=order)), maps(generator)
    awake(module.attention)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    through = module(features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    steps = [module.attention, module.wave] if order == "pre" else [module.wave, module.attention]
    torch.testing.assert_close(through, steps[1](steps[0](features)))


def test_the_start_is_the_warm_start_exactly_in_eval_mode() -> None:
    embedder = warm()
    method = jcl(embedder).eval()
    assert torch.equal(method.embed(images())["feature"], embedder.eval()(images())["feature"])


def test_embedding_passes_through_the_attention_but_not_through_waveblock() -> None:
    method = jcl(warm()).eval()
    start = method.embed(images())["feature"]
    for module in method.wam.values():
        awake(module.attention)
    assert not torch.allclose(method.embed(images())["feature"], start)
    without_wave = jcl(warm(), wam=Wam(wave=1.0)).eval()
    without_wave.load_state_dict(method.state_dict())
    assert torch.equal(method.embed(images())["feature"], without_wave.embed(images())["feature"])


def test_training_passes_waveblock_after_layer2_and_layer3() -> None:
    method, embedder = jcl(small(), wam=Wam(attention="none")), small()
    labels = torch.arange(8) % 4
    filled(method, unit(seeded(5), 8, DIM), labels)
    feature = method(batch_of(labels, pixels=images()))["feature"]
    draws, net = seeded(0), embedder.backbone
    features = net.maxpool(net.relu(net.bn1(net.conv1(images()))))
    for name in STAGES:
        features = getattr(net, name)(features)
        if name in ("layer2", "layer3"):
            height = features.shape[2]
            band = round(0.3 * height)
            start = int(torch.randint(height - band + 1, (1,), generator=draws))
            mask = torch.full((height, 1), 1.5)
            mask[start : start + band] = 1
            features = features * mask
    expected = F.normalize(embedder.neck(embedder.pool(features)), dim=1)
    torch.testing.assert_close(feature, expected)


def test_without_the_module_the_network_is_the_embedder_and_has_no_further_parameters() -> None:
    method, labels = jcl(small(), wam=NO_WAM), torch.arange(8) % 4
    assert torch.equal(method(batch_of(labels, pixels=images()))["feature"], small()(images())["feature"])
    assert all(name.startswith("embedder.") for name, _ in method.named_parameters())


@pytest.mark.parametrize("attention", ["nonlocal", "cbam"])
def test_attention_parameters_are_trained_with_the_others_and_normalised_in_their_groups(attention: str) -> None:
    method, labels = jcl(small(), bn_groups=2, wam=Wam(attention=attention)), torch.arange(8) % 4
    own = {id(p) for name, p in method.named_parameters() if name.startswith("wam.")}
    assert own
    (group,) = method.param_groups()
    assert own <= {id(p) for p in group["params"]}
    assert {m.groups for m in method.wam.modules() if isinstance(m, GroupedBatchNorm2d)} == {2}
    filled(method, unit(seeded(5), 8, method.embedder.dim), labels)
    terms = method.loss(method(batch_of(labels, pixels=images())), batch_of(labels))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in group["params"])


@pytest.mark.parametrize(("name", "channels"), [("resnet50", (512, 1024)), ("resnet18_half", (64, 128))])
def test_modules_have_the_channels_of_their_stages(name: str, channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        modules = wave_attention(Embedder(backbone, nn.Identity(), backbone.dim), Wam())
    assert {stage: module.attention.g.in_channels for stage, module in modules.items()} == dict(
        zip(("layer2", "layer3"), channels, strict=True)
    )


def test_a_network_without_stages_is_refused_with_what_to_do() -> None:
    embedder = small()
    embedder.backbone = nn.Identity()
    with pytest.raises(ValueError, match=r"between the stages of a ResNet.*settings\.wam\.attention=none"):
        jcl(embedder)
    jcl(embedder, wam=NO_WAM)


# Single-camera filter


def random_labels(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Labels with outliers, and cameras of which some clusters have only one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 30, count)
    labels[:30] = np.arange(30)
    cameras = rng.integers(0, 3, count)
    for cluster in rng.permutation(30)[:12]:
        cameras[labels == cluster] = rng.integers(0, 3)
    return labels, cameras


@pytest.mark.parametrize("seed", range(5))
def test_the_filter_drops_the_clusters_of_one_camera_and_keeps_the_grouping_of_the_others(seed: int) -> None:
    labels, cameras = random_labels(seed)
    filtered = drop_single_camera_clusters(labels, cameras)
    survivors = [c for c in range(30) if len(set(cameras[labels == c])) > 1]
    assert 0 < len(survivors) < 30
    expected = np.full_like(labels, -1)
    for number, cluster in enumerate(survivors):
        expected[labels == cluster] = number
    np.testing.assert_array_equal(filtered, expected)
    assert all(len(set(cameras[filtered == c])) > 1 for c in range(len(survivors)))
    assert set(filtered[filtered >= 0]) == set(range(len(survivors)))
    np.testing.assert_array_equal(drop_single_camera_clusters(filtered, cameras), filtered)


def test_the_filter_takes_labels_without_any_cluster() -> None:
    outliers = np.full(5, -1)
    np.testing.assert_array_equal(drop_single_camera_clusters(outliers, np.arange(5)), outliers)


def labelled(cameras: np.ndarray, **settings: object) -> Labels:
    """Labels of 12 well-separated groups of 10 images; a batch holds 8 clusters."""
    method = jcl(**settings)
    config = dataclasses.replace(
        method.config,
        sampler=Sampler(identities=8, instances=4, uses_camera=False),
        clustering=Clustering(k1=8, k2=3, eps=0.5, min_samples=4),
    )
    method.config = config
    centres = unit(seeded(2), 12, DIM).float()
    features = F.normalize(centres.repeat_interleave(10, 0) + 0.02 * torch.randn(120, DIM, generator=seeded(3)), dim=1)
    data = TrainingData(None, JCL.needs(config), World(0, 1, torch.device("cpu")), cameras)  # type: ignore[arg-type]
    data.new_epoch(lambda: {"feature": features})
    return method.label(0, data)


def cameras_of(single: int) -> np.ndarray:
    """The first ``single`` of the 12 groups have one camera, the others two."""
    return np.where(np.arange(120) // 10 < single, 0, np.arange(120) % 2)


def test_labels_lose_their_single_camera_clusters_and_the_counts_are_noted() -> None:
    labels = labelled(cameras_of(4))
    np.testing.assert_array_equal(labels.ids, np.where(np.arange(120) < 40, -1, np.arange(120) // 10 - 4))
    assert labels.notes == {
        "filter_clusters_before": 12,
        "filter_clusters_after": 8,
        "filter_images_dropped": 40,
        "filter_skipped": 0,
    }


def test_the_filter_is_skipped_when_too_few_clusters_would_remain() -> None:
    labels = labelled(cameras_of(5))  # 7 remain and a batch needs 8
    np.testing.assert_array_equal(labels.ids, np.arange(120) // 10)
    assert labels.notes["filter_skipped"] == 1
    assert labels.notes["filter_clusters_after"] == 7
    labels = labelled(cameras_of(2), filter_guard=0.9)  # 10 remain, fewer than 0.9 x 12
    assert labels.clusters == 12
    assert labels.notes["filter_skipped"] == 1


def test_with_all_images_on_one_camera_the_clusters_stay() -> None:
    labels = labelled(np.zeros(120, dtype=int))
    np.testing.assert_array_equal(labels.ids, np.arange(120) // 10)
    assert labels.notes["filter_clusters_after"] == 0


def test_without_the_filter_labelling_reads_no_camera_and_notes_nothing() -> None:
    labels = labelled(cameras_of(4), camera_filter=False)
    assert labels.clusters == 12
    assert labels.notes == {}


@pytest.mark.parametrize("sampler", [True, False])
@pytest.mark.parametrize("camera_filter", [True, False])
def test_needs_declare_the_cameras_of_each_switch(sampler: bool, camera_filter: bool) -> None:
    config = Config(settings=Settings(camera_filter=camera_filter), sampler=Sampler(uses_camera=sampler))
    expected = {name for name, on in (("sampler", sampler), ("clustering", camera_filter)) if on}
    assert JCL.needs(config) == Needs(cameras=frozenset(expected))


# Losses and memories


def slow_hardest(f: Tensor, features: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    scores = torch.empty(len(f), CLUSTERS, dtype=f.dtype)
    for i, y in enumerate(targets.tolist()):
        for k in range(CLUSTERS):
            against = features[labels == k] @ f[i]
            scores[i, k] = against.min() if k == y else against.max()
    return scores


def test_loss_is_the_centroid_cross_entropy_plus_mu_times_that_of_the_hardest_instances(scene) -> None:
    features, labels, f, batch = scene
    method = filled(jcl(mu=0.7), features, labels)
    terms = method.loss({"feature": f}, batch)
    centroids = torch.stack([F.normalize(features[labels == c].mean(0), dim=0) for c in range(CLUSTERS)])
    torch.testing.assert_close(terms["cluster"], F.cross_entropy(f @ centroids.T / TAU, batch.targets))
    scores = slow_hardest(f, features, labels, batch.targets)
    torch.testing.assert_close(terms["instance"], 0.7 * F.cross_entropy(scores / TAU, batch.targets))


def test_gradient_is_that_of_frozen_memories_and_the_memories_have_none(scene) -> None:
    features, labels, f, batch = scene
    method = filled(jcl(), features.clone().requires_grad_(), labels)
    query, frozen = f.clone().requires_grad_(), f.clone().requires_grad_()
    torch.stack(list(method.loss({"feature": query}, batch).values())).sum().backward()
    scores = slow_hardest(frozen, features, labels, batch.targets)
    loss = F.cross_entropy(frozen @ method.centroids.rows.T / TAU, batch.targets)
    (loss + 0.5 * F.cross_entropy(scores / TAU, batch.targets)).backward()
    torch.testing.assert_close(query.grad, frozen.grad)
    assert not method.centroids.rows.requires_grad
    assert not method.instances.memory.rows.requires_grad


def test_hardest_similarities_see_one_entry_more_or_less(generator) -> None:
    clusters, targets = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 2])
    similarity = torch.tensor([[0.9, 0.1], [0.4, 0.8], [0.7, 0.2], [0.3, 0.5], [0.6, 0.6], [0.2, 0.4]])
    hardest = hardest_similarities(similarity, clusters, torch.tensor([3, 1, 2]), targets)
    assert torch.equal(hardest, torch.tensor([[0.4, 0.3, 0.6], [0.8, 0.5, 0.4]]))


def test_one_instance_per_cluster_at_its_centroid_gives_equal_losses(scene, generator) -> None:
    features = unit(generator, CLUSTERS, DIM)
    method = filled(jcl(mu=1.0), features, torch.arange(CLUSTERS))
    targets = torch.tensor([3, 1, 3, 0, 6])
    terms = method.loss({"feature": unit(generator, 5, DIM)}, batch_of(targets))
    torch.testing.assert_close(terms["instance"], terms["cluster"])


def test_all_additions_off_equal_cluster_contrast_with_batch_mean_update_exactly(scene) -> None:
    features, labels, f, batch = scene
    method = filled(jcl(mu=0.0, camera_filter=False), features, labels)
    config = Config(settings=ClusterContrastSettings(update="mean"))
    baseline = filled(ClusterContrast(config, nn.Identity(), 1), features, labels)  # type: ignore[arg-type]
    assert JCL.needs(method.config) == ClusterContrast.needs(config)
    for step in range(3):
        query = f.roll(step, 0)
        first, second = query.clone().requires_grad_(), query.clone().requires_grad_()
        ours, theirs = method.loss({"feature": first}, batch), baseline.loss({"feature": second}, batch)
        assert list(ours) == list(theirs) == ["cluster"]
        ours["cluster"].backward()
        theirs["cluster"].backward()
        assert torch.equal(ours["cluster"], theirs["cluster"])
        assert torch.equal(first.grad, second.grad)
        method.after_step({"feature": query}, batch)
        baseline.after_step({"feature": query}, batch)
        assert torch.equal(method.centroids.rows, baseline.memory.rows)


def test_centroids_take_the_batch_mean_and_instances_their_own_feature(scene) -> None:
    features, labels, f, batch = scene
    method = filled(jcl(), features, labels)
    centroids, entries = method.centroids.rows.clone(), method.instances.memory.rows.clone()
    method.after_step({"feature": f}, batch)
    expected = entries.clone()
    for i, image in enumerate(batch.indices):  # one image is in the batch twice
        row = method.instances.row_of_image[image]
        expected[row] = F.normalize(0.2 * expected[row] + 0.8 * f[i], dim=0)
    torch.testing.assert_close(method.instances.memory.rows, expected)
    for y in range(CLUSTERS):
        mine = f[batch.targets == y]
        mixed = F.normalize(0.1 * centroids[y] + 0.9 * mine.mean(0), dim=0) if len(mine) else centroids[y]
        torch.testing.assert_close(method.centroids.rows[y], mixed)


def test_memory_rows_keep_unit_norm_through_many_updates(scene, generator) -> None:
    features, labels, f, batch = scene
    method = filled(jcl(), features, labels)
    for _ in range(50):
        method.after_step({"feature": unit(generator, len(f), DIM)}, batch)
    for bank in (method.centroids.rows, method.instances.memory.rows):
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(len(bank), dtype=bank.dtype), rtol=0, atol=1e-6)


def test_instances_hold_the_clustered_images_in_the_order_of_their_clusters(scene) -> None:
    features, labels, _, _ = scene
    instances = ClusteredInstances(features, labels.numpy(), 0.2)
    assert torch.equal(instances.sizes, torch.bincount(labels[labels >= 0]))
    assert torch.equal(instances.clusters, labels[labels >= 0].sort().values)
    for image, label in enumerate(labels.tolist()):
        row = int(instances.row_of_image[image])
        assert (row < 0) is (label < 0)
        if label >= 0:
            assert instances.clusters[row] == label
            torch.testing.assert_close(instances.memory.rows[row], features[image])


def test_an_outlier_in_the_batch_is_refused(scene) -> None:
    features, labels, f, _ = scene
    instances = ClusteredInstances(features, labels.numpy(), 0.2)
    outlier = torch.nonzero(labels < 0).flatten()[:1]
    with pytest.raises(ValueError, match="leave outliers"):
        instances.update(f[:1], outlier)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wam(order="between"), "pre or post"),
        (lambda: Wam(attention="softmax"), "nonlocal, cbam, none"),
        (lambda: Wam(block_rate=0.0), "block_rate"),
        (lambda: Wam(stages=("layer5",)), "layer5"),
        (lambda: Settings(mu=-0.5), "mu"),
        (lambda: Settings(filter_guard=2.0), "filter_guard"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_defaults_are_the_headline_of_the_config_file_and_the_row_all_off_has_every_addition_off() -> None:
    settings = {name: resolve_run(name, "market1501", {}).config.settings for name in ("jcl", "jcl-all_off")}
    assert settings == {"jcl": Settings(), "jcl-all_off": Settings(mu=0.0, camera_filter=False, wam=NO_WAM)}
