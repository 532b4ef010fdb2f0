"""JCL's camera filter, joint losses and their memories: docs/methods/jcl.md."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import Clustering, Config, Sampler
from core.data import Batch, Labels, Needs, TrainingData
from core.distributed import ProcessGroup
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.jcl.attention import Wam
from methods.jcl.camera_filter import drop_single_camera_clusters
from methods.jcl.instances import ClusteredInstances, hardest_similarities
from methods.jcl.method import JCL, Settings
from pipeline.settings import resolve_run
from tests.methods.draws import unit
from tests.methods.jcl_small import DIM, NO_WAM, batch_of, filled, jcl, seeded

CLUSTERS, TAU = 7, 0.05


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
    data = TrainingData(None, JCL.needs(config), ProcessGroup(0, 1, torch.device("cpu")), cameras)  # type: ignore[arg-type]
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
    settings = {name: resolve_run(name, "market1501", "published").config.settings for name in ("jcl", "jcl-all_off")}
    assert settings == {"jcl": Settings(), "jcl-all_off": Settings(mu=0.0, camera_filter=False, wam=NO_WAM)}
