"""HCL and MGCE-HCL by their spec (hcl.md section 13)."""

from __future__ import annotations

import dataclasses
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.clustering import dbscan
from core.config import Clustering, Config
from core.data import Batch, Labels
from core.jaccard import jaccard_distance
from core.method import Method
from core.timing import PhaseTimer
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.hcl import method as hcl_module
from methods.hcl.hybrid import co_association, memory_entries, pair_losses, positive_weights, weighted_mean
from methods.hcl.method import HCL, Settings, granularity_radii
from pipeline.settings import method_config, resolve_run
from tests.methods.draws import unit

CLUSTERS, DIM, TAU, M = 5, 16, 0.05, 0.2
HCL_ONLY = {"eps_offsets": (0.0,)}
BASELINE = {"hybrid": "cluster", "outliers": "drop", "cluster_memory": "momentum", "recluster_from": "extract"}


class Data:
    """Stands in for the training data: features, how often they were asked for, and three cameras."""

    def __init__(self, features: Tensor) -> None:
        self._features, self.asked, self.timer = features, 0, PhaseTimer()

    def features(self) -> Tensor:
        self.asked += 1
        return self._features

    def cameras(self, use: str) -> np.ndarray:
        assert use == "sampler"
        return np.arange(len(self._features)) % 3


def hcl(clustering: Clustering | None = None, **settings: object) -> HCL:
    config = Config(settings=Settings(**settings), clustering=clustering or Clustering())  # type: ignore[arg-type]
    return HCL(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def filled(method: Method, features: Tensor, labels: Labels) -> Method:
    method.start_epoch(labels, Data(features), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return method


def batch_of(indices: Tensor, labels: Labels) -> Batch:
    extra = {name: value[indices] for name, value in labels.extra.items()}
    return Batch([], indices, torch.as_tensor(labels.ids)[indices], None, extra, 0)


def splits(base: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3) nested labelings: each finer one cuts clusters in two and drops some images, as a smaller eps does."""
    finer = [base]
    for _ in range(2):
        halves = finer[-1] * 2 + torch.randint(2, base.shape, generator=generator)
        dropped = (finer[-1] < 0) | (torch.rand(base.shape, generator=generator) < 0.1)
        finer.append(torch.where(dropped, -1, halves))
    return torch.stack(finer[::-1], dim=1)


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Labels, Tensor, Batch]:
    """60 features with outliers at three granularities, and a batch of clustered anchors, one image of it twice."""
    base = torch.randint(-1, CLUSTERS, (60,), generator=generator)
    base[:CLUSTERS] = torch.arange(CLUSTERS)
    labels = Labels(base.numpy(), {"granularities": splits(base, generator)})
    indices = torch.nonzero(base >= 0).flatten()[:12]
    indices[-1] = indices[0]
    return unit(generator, 60, DIM), labels, unit(generator, len(indices), DIM), batch_of(indices, labels)


def people(generator: torch.Generator) -> Tensor:
    """144 features of 12 loose groups, which DBSCAN reads differently at different radii, and with outliers."""
    centres = unit(generator, 12, 32).repeat_interleave(12, dim=0)
    return F.normalize(centres + 1.4 * unit(generator, 144, 32), dim=1)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def literal_loss(f: Tensor, bank: Tensor, labels: Labels, indices: Tensor, *, weighted: bool, keep: bool) -> float:
    """Section 5 as loops over single numbers; ``keep``: outliers are negatives."""
    ids, granularities = labels.ids.tolist(), labels.extra["granularities"].tolist()
    clusters = [F.normalize(bank[[j for j, y in enumerate(ids) if y == k]].mean(0), dim=0) for k in range(CLUSTERS)]
    singletons = [bank[j] for j, y in enumerate(ids) if y < 0] if keep else []
    anchors = 0.0
    for query, i in zip(f, indices.tolist(), strict=True):
        negatives = [c for k, c in enumerate(clusters) if k != ids[i]] + singletons
        below = sum(math.exp(float(query @ c) / TAU) for c in negatives)
        losses, weights = 0.0, 0.0
        for p in range(len(ids)):
            if p == i or ids[p] != ids[i]:
                continue
            above = math.exp(float(query @ bank[p]) / TAU)
            held = [a == b and a != -1 for a, b in zip(granularities[i], granularities[p], strict=True)]
            weight = sum(held) / len(held) if weighted else 1.0
            losses += weight * -math.log(above / (above + below))
            weights += weight
        anchors += losses / weights
    return anchors / len(indices)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_the_loss_is_the_specs_equation_written_as_loops(scene, weighted: bool, keep: bool) -> None:
    features, labels, f, batch = scene
    if not weighted:
        labels = Labels(labels.ids, {"granularities": torch.as_tensor(labels.ids)[:, None]})
    method = filled(hcl(outliers="negative" if keep else "drop"), features, labels)
    for _ in range(2):  # also after the memory has moved: centroids follow it
        bank = method.instances.rows.clone()
        ours = total(method.loss({"feature": f}, batch))
        theirs = literal_loss(f, bank, labels, batch.indices, weighted=weighted, keep=keep)
        assert float(ours) == pytest.approx(theirs, rel=1e-9)
        method.after_step({"feature": f}, batch)
    assert not torch.equal(bank, F.normalize(features, dim=1))


def test_one_granularity_weighs_all_positives_alike(scene) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)
    single = Labels(labels.ids, {"granularities": ids[:, None]})
    mgce = filled(hcl(**HCL_ONLY), features, single)
    weight = co_association(ids[batch.indices, None], ids[:, None])
    assert torch.equal(weight, (ids[batch.indices, None] == ids).float())
    ours = total(mgce.loss({"feature": f}, batch))
    assert float(ours) == pytest.approx(
        literal_loss(f, mgce.instances.rows, single, batch.indices, weighted=False, keep=True), rel=1e-9
    )


@pytest.mark.parametrize("normalise", [True, False])
def test_equal_labelings_at_all_granularities_give_the_loss_of_one(scene, normalise: bool) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)[:, None]
    losses = []
    for copies in (1, 3):
        same = Labels(labels.ids, {"granularities": ids.repeat(1, copies)})
        method = filled(hcl(normalise_weights=normalise), features, same)
        losses.append(total(method.loss({"feature": f}, batch)))
    assert torch.equal(*losses)
    several = filled(hcl(normalise_weights=normalise), features, labels)
    assert not torch.isclose(losses[0], total(several.loss({"feature": f}, batch)))


def test_priority_is_symmetric_in_the_unit_interval_and_positive_inside_a_base_cluster(generator) -> None:
    method = hcl(Clustering(k1=10, k2=4, eps=0.6))
    labels = method.label(0, Data(people(generator)))  # type: ignore[arg-type]
    granularities = labels.extra["granularities"]
    assert torch.unique(granularities, dim=1).shape[1] == 3, "the scene is read alike at two granularities"
    weight = co_association(granularities, granularities)
    torch.testing.assert_close(weight, weight.T, rtol=0, atol=0)
    levels = torch.arange(4) / 3
    assert set(weight.flatten().tolist()) == set(levels.tolist())
    ids = torch.as_tensor(labels.ids)
    together = (ids[:, None] == ids) & (ids >= 0)[:, None]
    assert weight[together].min() > 0
    assert weight[ids < 0].max() < 1, "an outlier of the base clustering cannot be a sure pair"


def test_priority_counts_the_granularities_that_hold_a_pair() -> None:
    labels = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0], [-1, 1, 0], [-1, -1, -1], [-1, -1, -1]])
    expected = torch.tensor(
        [
            [3, 3, 2, 1, 0, 0],
            [3, 3, 2, 1, 0, 0],
            [2, 2, 3, 1, 0, 0],
            [1, 1, 1, 2, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    torch.testing.assert_close(co_association(labels, labels), expected / 3)


def test_core_pairs_of_a_smaller_radius_stay_together_at_a_larger_one(generator) -> None:
    graph = jaccard_distance(people(generator), 10, 4)
    radii, min_samples, pairs = granularity_radii(0.6, (-0.3, -0.2, -0.1, 0.0, 0.1)), 4, []
    for eps in radii:
        near = graph.data <= np.float32(eps)
        rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
        reach = np.bincount(rows[near], minlength=graph.shape[0])  # the stored diagonal counts the image itself
        labels = dbscan(graph, eps, min_samples)
        core = reach >= min_samples
        pairs.append((labels[:, None] == labels) & core[:, None] & core & (labels >= 0)[:, None])
    assert 0 < pairs[0].sum() < pairs[-1].sum()
    for tight, loose in pairwise(pairs):
        assert not (tight & ~loose).any()


def test_a_noisy_positive_of_low_priority_moves_the_loss_less(scene, generator) -> None:
    features, labels, f, batch = scene
    ids = torch.as_tensor(labels.ids)
    anchor = batch.indices[:1]
    mate = int(torch.nonzero((ids == ids[anchor]) & (torch.arange(60) != anchor)).flatten()[0])
    noise = unit(generator, 1, DIM)[0]
    changes = []
    for held in (3, 2, 1):  # in how many of the granularities the pair is
        granularities = ids[:, None].repeat(1, 3)
        granularities[mate, : 3 - held] = -1
        graded = Labels(labels.ids, {"granularities": granularities})
        one = batch_of(anchor, graded)
        clean = filled(hcl(cluster_memory="momentum"), features, graded)  # the same centroids before and after
        before = total(clean.loss({"feature": f[:1]}, one))
        clean.instances.rows[mate] = noise
        changes.append(abs(float(total(clean.loss({"feature": f[:1]}, one)) - before)))
    assert changes[0] > changes[1] > changes[2] > 0


def test_with_equal_members_and_no_outlier_it_is_the_cross_entropy_of_cluster_contrast(scene, generator) -> None:
    _, _, f, batch = scene
    ids = torch.arange(60) % CLUSTERS
    features = unit(generator, CLUSTERS, DIM)[ids]
    labels = Labels(ids.numpy(), {"granularities": splits(ids, generator)})
    batch = batch_of(batch.indices, labels)
    ours = total(filled(hcl(), features, labels).loss({"feature": f}, batch))
    torch.testing.assert_close(ours, F.cross_entropy(f @ features[:CLUSTERS].T / TAU, batch.targets))


@pytest.mark.parametrize("hybrid", ["pair", "sum", "cluster"])
@pytest.mark.parametrize("cluster_memory", ["dynamic", "momentum"])
def test_no_gradient_reaches_a_memory(scene, hybrid: str, cluster_memory: str) -> None:
    features, labels, f, batch = scene
    method = filled(hcl(hybrid=hybrid, cluster_memory=cluster_memory), features, labels)
    banks = [method.instances.rows, *([method.centroids.rows] if cluster_memory == "momentum" else [])]
    query = f.clone().requires_grad_()
    for bank in banks:
        bank.requires_grad_()
    total(method.loss({"feature": query}, batch)).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
    assert all(bank.grad is None for bank in banks)


@pytest.mark.parametrize("hybrid", ["pair", "sum"])
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 0, 1, 1, 2, 2], id="one positive each"),
        pytest.param([0, 0, 0, 0, 0, 0], id="one cluster, no negative"),
        pytest.param([0, 0, 0, 1, 1, 2], id="a cluster of one image"),
    ],
)
def test_loss_and_gradient_stay_finite_in_degenerate_epochs(ids: list[int], hybrid: str, generator) -> None:
    labels = Labels(np.array(ids), {"granularities": torch.tensor(ids)[:, None]})
    method = filled(hcl(hybrid=hybrid), unit(generator, 6, DIM), labels)
    query = unit(generator, 6, DIM).requires_grad_()
    loss = total(method.loss({"feature": query}, batch_of(torch.arange(6), labels)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_an_image_alone_in_its_cluster_is_drawn_to_its_own_row(scene, generator) -> None:
    ids = torch.tensor([0, 0, 0, 1, 1, 2])
    labels = Labels(ids.numpy(), {"granularities": ids[:, None]})
    features, f = unit(generator, 6, DIM), unit(generator, 1, DIM)
    method = filled(hcl(), features, labels)
    centroids = torch.stack([F.normalize(features[ids == k].mean(0), dim=0) for k in range(3)])
    ours = total(method.loss({"feature": f}, batch_of(torch.tensor([5]), labels)))
    torch.testing.assert_close(ours, F.cross_entropy(f @ centroids.T / TAU, torch.tensor([2])))


def test_after_a_step_the_rows_of_the_batch_follow_in_order_and_the_others_stay_as_they_are(scene) -> None:
    features, labels, f, batch = scene
    method = filled(hcl(), features, labels)
    expected = method.instances.rows.clone()
    method.after_step({"feature": f}, batch)
    for query, i in zip(f, batch.indices.tolist(), strict=True):  # the last one is the first one's image again
        expected[i] = F.normalize(M * expected[i] + (1 - M) * query, dim=0)
    torch.testing.assert_close(method.instances.rows, expected)
    untouched = torch.ones(60, dtype=torch.bool)
    untouched[batch.indices] = False
    assert torch.equal(method.instances.rows[untouched], expected[untouched])
    torch.testing.assert_close(method.instances.rows.norm(dim=1), torch.ones(60, dtype=torch.float64))


@pytest.mark.parametrize("hybrid", ["pair", "sum"])
def test_the_loss_does_not_depend_on_how_clusters_are_numbered(scene, hybrid: str, generator) -> None:
    features, labels, f, batch = scene
    renamed = torch.randperm(CLUSTERS, generator=generator)
    ids = torch.as_tensor(labels.ids)
    other = Labels(
        torch.where(ids >= 0, renamed[ids], -1).numpy(),
        {"granularities": torch.where(labels.extra["granularities"] >= 0, labels.extra["granularities"] + 7, -1)},
    )
    losses = []
    for given in (labels, other):
        method = filled(hcl(hybrid=hybrid), features, given)
        losses.append(total(method.loss({"feature": f}, batch_of(batch.indices, given))))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("outliers", ["negative", "drop", "anchor"])
def test_an_outlier_enters_a_batch_only_as_an_anchor(outliers: str, generator) -> None:
    ids = np.repeat(np.arange(8), 10)
    ids[::7] = -1
    labels = Labels(ids, {"granularities": torch.as_tensor(ids)[:, None]})
    features = unit(generator, 80, DIM)
    method = filled(hcl(outliers=outliers), features, labels)
    sampler = dataclasses.replace(method.config.sampler, identities=4, instances=4, uses_camera=False)
    method.config = dataclasses.replace(method.config, sampler=sampler)
    rng = np.random.default_rng(0)
    drawn = [rows for _ in range(5) for rows in method.batches(labels, Data(features), rng)]  # type: ignore[arg-type]
    assert (ids[np.concatenate(drawn)] < 0).any() == (outliers == "anchor")
    query = unit(generator, 16, DIM).requires_grad_()
    for rows in drawn:
        loss = total(method.loss({"feature": query}, batch_of(torch.as_tensor(rows), labels)))
        assert torch.isfinite(loss)
    if outliers == "anchor":
        row = torch.tensor([0])
        entries = F.normalize(torch.stack([*(features[ids == k].mean(0) for k in range(8)), *features[ids < 0]]), dim=1)
        loss = total(method.loss({"feature": query[:1]}, batch_of(row, labels)))
        torch.testing.assert_close(loss, F.cross_entropy(query[:1] @ entries.T / TAU, torch.tensor([8])))


def test_entries_number_the_kept_outliers_after_the_clusters() -> None:
    labels = torch.tensor([-1, 1, 0, -1, 1])
    assert memory_entries(labels, keep_outliers=True).tolist() == [2, 1, 0, 3, 1]
    assert memory_entries(labels, keep_outliers=False).tolist() == [-1, 1, 0, -1, 1]
    assert memory_entries(torch.tensor([0, 1, 0]), keep_outliers=True).tolist() == [0, 1, 0]


def test_with_every_addition_off_it_is_cluster_contrast_to_the_last_bit(scene) -> None:
    features, labels, f, batch = scene
    row = method_config("hcl")["ablations"]["baseline"]["settings"]
    assert row == {"eps_offsets": [0.0], **BASELINE}
    reduced = filled(hcl(eps_offsets=(0.0,), **BASELINE), features, labels)
    config = Config(settings=ClusterContrastSettings())
    baseline = filled(ClusterContrast(config, torch.nn.Identity(), 1), features, labels)  # type: ignore[arg-type]
    for _ in range(3):
        losses, gradients = [], []
        for method in (reduced, baseline):
            query = f.clone().requires_grad_()
            losses.append(total(method.loss({"feature": query}, batch)))
            gradients.append(torch.autograd.grad(losses[-1], query)[0])
            method.after_step({"feature": f}, batch)
        assert torch.equal(*losses)
        assert torch.equal(*gradients)
        assert torch.equal(reduced.centroids.rows, baseline.memory.rows)


def test_the_baseline_row_labels_and_draws_as_cluster_contrast_does(generator) -> None:
    features = people(generator).float()
    clustering = Clustering(k1=10, k2=4, eps=0.6)
    reduced = hcl(clustering, eps_offsets=(0.0,), **BASELINE)
    config = Config(settings=ClusterContrastSettings(), clustering=clustering)
    baseline = ClusterContrast(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]
    for epoch in range(2):  # in the second epoch nothing is left of the first
        data = Data(features.roll(epoch, dims=1) + epoch * 0.01)
        ids = [method.label(epoch, data).ids for method in (reduced, baseline)]  # type: ignore[arg-type]
        np.testing.assert_array_equal(*ids)
        for method in (reduced, baseline):
            method.start_epoch(method.label(epoch, data), data, generator)  # type: ignore[arg-type]
        assert torch.equal(reduced.centroids.rows, baseline.memory.rows)
        labels = reduced.label(epoch, data)  # type: ignore[arg-type]
        drawn = [list(method.batches(labels, data, np.random.default_rng(epoch))) for method in (reduced, baseline)]  # type: ignore[arg-type]
        assert len(drawn[0]) > 0
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("outliers", ["negative", "drop"])
def test_the_sum_adds_the_loss_over_all_instances_and_the_cross_entropy_over_the_entries(scene, outliers: str) -> None:
    features, labels, f, batch = scene
    method = filled(hcl(hybrid="sum", outliers=outliers), features, labels)
    terms = method.loss({"feature": f}, batch)
    ids, granularities = torch.as_tensor(labels.ids), labels.extra["granularities"]
    similarity = torch.exp(f @ F.normalize(features, dim=1).T / TAU)
    keep = outliers == "negative"
    anchors = []
    for row, i in zip(similarity, batch.indices.tolist(), strict=True):
        below = row[(ids != ids[i]) & (keep | (ids >= 0))].sum()
        mates = [p for p in range(60) if p != i and ids[p] == ids[i]]
        weights = torch.stack(
            [(granularities[i] == granularities[p]).double()[granularities[i] >= 0].sum() for p in mates]
        )
        losses = torch.stack([-torch.log(row[p] / (row[p] + below)) for p in mates])
        anchors.append((weights * losses).sum() / weights.sum())
    torch.testing.assert_close(terms["instance"], torch.stack(anchors).mean())
    centroids = torch.stack([features[ids == k].mean(0) for k in range(CLUSTERS)])
    entries = torch.cat([centroids, features[ids < 0]]) if keep else centroids
    expected = F.cross_entropy(f @ F.normalize(entries, dim=1).T / TAU, batch.targets)
    torch.testing.assert_close(terms["cluster"], expected)
    alone = filled(hcl(hybrid="cluster", outliers=outliers), features, labels).loss({"feature": f}, batch)
    assert torch.equal(alone["cluster"], terms["cluster"])


def test_without_normalisation_the_weights_are_averaged_over_the_positives() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    weights = torch.tensor([[0.5, 0.0, 0.25], [0.0, 1.0, 1.0]])
    assert float(weighted_mean(losses, weights, normalise=True)) == pytest.approx((1.5 / 0.75 + 12 / 2) / 2)
    assert float(weighted_mean(losses, weights, normalise=False)) == pytest.approx((1.5 / 2 + 12 / 2) / 2)


def test_the_image_itself_is_a_positive_only_when_it_is_alone() -> None:
    entries, anchors = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 2])
    itself = anchors[:, None] == torch.arange(4)
    weights = positive_weights(torch.full((2, 4), 0.5), entries[anchors][:, None] == entries, itself)
    assert weights.tolist() == [[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_pair_losses_do_not_overflow(scale: float, generator) -> None:
    positives = (scale * torch.randn(3, 4, generator=generator)).requires_grad_()
    negatives = (scale * torch.randn(3, 5, generator=generator)).requires_grad_()
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0] = True
    losses = pair_losses(positives, negatives, excluded)
    gradients = torch.autograd.grad(losses.sum(), [positives, negatives])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(losses).all()
    assert (losses[0] == 0).all()


def test_all_granularities_come_from_one_graph_and_the_base_is_that_of_the_configured_radius(
    generator, monkeypatch
) -> None:
    graphs: list[object] = []

    def counted(*arguments: object) -> object:
        graphs.append(jaccard_distance(*arguments))  # type: ignore[arg-type]
        return graphs[-1]

    monkeypatch.setattr(hcl_module, "jaccard_distance", counted)
    features = people(generator)
    method = hcl(Clustering(k1=10, k2=4, eps=0.6), eps_offsets=(-0.1, 0.0, -0.05))
    labels = method.label(0, Data(features))  # type: ignore[arg-type]
    assert len(graphs) == 1
    for column, eps in enumerate((0.5, 0.6, 0.55)):
        expected = dbscan(graphs[0], eps, 4)  # type: ignore[arg-type]
        np.testing.assert_array_equal(labels.extra["granularities"][:, column].numpy(), expected)
    np.testing.assert_array_equal(labels.ids, labels.extra["granularities"][:, 1].numpy())


@pytest.mark.parametrize(("source", "extractions"), [("memory", 1), ("extract", 3)])
def test_the_memory_outlives_the_epoch_unless_it_is_extracted_anew(source: str, extractions: int, generator) -> None:
    data, f = Data(people(generator)), unit(generator, 8, 32)
    method = hcl(Clustering(k1=10, k2=4, eps=0.6), recluster_from=source)
    start = F.normalize(data._features, dim=1)
    seen = []
    for epoch in range(3):
        asked = data.asked
        labels = method.label(epoch, data)  # type: ignore[arg-type]
        method.start_epoch(labels, data, generator)  # type: ignore[arg-type]
        seen.append(data.asked > asked)
        assert torch.equal(method.instances.rows, start) == (epoch == 0 or source == "extract")
        method.after_step({"feature": f}, batch_of(torch.arange(8), labels))
    assert sum(seen) == extractions
    if source == "memory":
        graph = jaccard_distance(method.instances.rows, 10, 4)
        np.testing.assert_array_equal(method.label(3, data).ids, dbscan(graph, 0.6, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["memory", "extract"])
def test_a_resumed_method_goes_on_from_the_saved_memory_to_the_last_bit(source: str, generator) -> None:
    data, f = Data(people(generator).float()), unit(generator, 8, 32).float()
    clustering = Clustering(k1=10, k2=4, eps=0.6)

    def epoch(method: HCL, number: int) -> None:
        labels = method.label(number, data)  # type: ignore[arg-type]
        method.start_epoch(labels, data, generator)  # type: ignore[arg-type]
        method.after_step({"feature": f}, batch_of(torch.arange(8) + number, labels))

    whole, resumed = hcl(clustering, recluster_from=source), hcl(clustering, recluster_from=source)
    assert whole.memory_state() == {}
    epoch(whole, 0)
    saved = io.BytesIO()
    torch.save(whole.memory_state(), saved)
    saved.seek(0)
    resumed.load_memory_state(torch.load(saved, weights_only=True))
    for method in (whole, resumed):
        epoch(method, 1)
    assert torch.equal(whole.instances.rows, resumed.instances.rows)


def test_the_radii_of_the_paper_and_of_the_controlled_profile_keep_their_gaps() -> None:
    for profile, expected in (("published", [0.5, 0.55, 0.6]), ("controlled", [0.4, 0.45, 0.5])):
        config = resolve_run("hcl", "rendered", {"profile": profile}).config
        assert granularity_radii(config.clustering.eps, config.settings.eps_offsets) == pytest.approx(expected)
        single = resolve_run("hcl-hcl", "rendered", {"profile": profile}).config
        assert granularity_radii(single.clustering.eps, single.settings.eps_offsets) == [single.clustering.eps]


@pytest.mark.parametrize("eps", [0.05, 0.97])
def test_a_radius_outside_the_graph_is_refused_with_the_settings_that_gave_it(eps: float) -> None:
    with pytest.raises(ValueError, match=r"clustering\.eps .* settings\.eps_offsets"):
        hcl(Clustering(eps=eps), eps_offsets=(-0.1, 0.0, 0.05))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps_offsets": (-0.1, -0.05)}, "must hold 0.0"),
        ({"hybrid": "product"}, "pair, sum, cluster"),
        ({"outliers": "keep"}, "negative, drop, anchor"),
        ({"cluster_memory": "fixed"}, "dynamic, momentum"),
        ({"recluster_from": "images"}, "memory, extract"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_possible_ones(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hcl", "hcl-hcl", "hcl-no_cam"])
def test_cameras_are_declared_for_the_sampler_alone(name: str) -> None:
    needs = HCL.needs(resolve_run(name, "rendered", {"profile": "controlled"}).config)
    assert needs.cameras == (frozenset() if name == "hcl-no_cam" else {"sampler"})
    assert needs.identities is None
