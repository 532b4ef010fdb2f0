"""HCL and MGCE-HCL (docs/methods/hcl.md): granularities, memory, batches, the baseline, settings."""

from __future__ import annotations

import dataclasses
import io
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
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.hcl.hybrid import co_association
from methods.hcl.method import HCL, Settings, granularity_radii
from pipeline.settings import method_config, resolve_run
from tests.methods.draws import unit
from tests.methods.hcl_small import DIM, TAU, Data, batch_of, filled, hcl, scene_of, total

M = 0.2
BASELINE = {"hybrid": "cluster", "outliers": "drop", "cluster_memory": "momentum", "recluster_from": "extract"}


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Labels, Tensor, Batch]:
    return scene_of(generator)


def people(generator: torch.Generator) -> Tensor:
    """144 features of 12 loose groups, which DBSCAN reads differently at different radii, and with outliers."""
    centres = unit(generator, 12, 32).repeat_interleave(12, dim=0)
    return F.normalize(centres + 1.4 * unit(generator, 144, 32), dim=1)


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


def test_by_default_no_row_keeps_the_first_extraction_be_it_an_outlier_s(generator) -> None:
    config = resolve_run("hcl", "market1501", "published").config
    ids = np.repeat(np.arange(16), 8)
    ids[::5] = -1
    labels = Labels(ids, {"granularities": torch.as_tensor(ids)[:, None]})
    features = unit(generator, len(ids), DIM)
    method = filled(hcl(**vars(config.settings)), features, labels)
    method.config = config
    first, rng = method.instances.rows.clone(), np.random.default_rng(0)
    for _ in range(20):
        for rows in method.batches(labels, Data(features), rng):  # type: ignore[arg-type]
            method.after_step({"feature": unit(generator, len(rows), DIM)}, batch_of(torch.as_tensor(rows), labels))
    kept = (method.instances.rows == first).all(dim=1)
    assert not kept.any(), f"{int(kept.sum())} of {len(ids)} rows never moved"


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


def test_all_granularities_come_from_one_graph_and_the_base_is_that_of_the_configured_radius(
    generator, monkeypatch
) -> None:
    graphs: list[object] = []

    def counted(*arguments: object, **named: object) -> object:
        assert named["limit"] == 0.6
        graphs.append(jaccard_distance(*arguments))  # type: ignore[arg-type]
        return jaccard_distance(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("core.method.jaccard_distance", counted)
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
        config = resolve_run("hcl", "rendered", profile).config
        assert granularity_radii(config.clustering.eps, config.settings.eps_offsets) == pytest.approx(expected)
        single = resolve_run("hcl-hcl", "rendered", profile).config
        assert granularity_radii(single.clustering.eps, single.settings.eps_offsets) == [single.clustering.eps]


@pytest.mark.parametrize("dataset", ["msmt17_v1", "msmt17_v2"])
def test_msmt17_has_as_many_steps_as_spcl(dataset: str) -> None:
    steps = [resolve_run(name, dataset, "published").config.schedule.iterations for name in ("hcl", "spcl")]
    assert steps == [800, 800]


@pytest.mark.parametrize("eps", [0.05, 0.97])
def test_a_radius_outside_the_graph_is_refused_with_the_settings_that_gave_it(eps: float) -> None:
    with pytest.raises(ValueError, match=r"clustering\.eps .* settings\.eps_offsets"):
        hcl(Clustering(eps=eps), eps_offsets=(-0.1, 0.0, 0.05))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps_offsets": (-0.1, -0.05)}, "must hold 0.0"),
        ({"hybrid": "product"}, "pair, sum, cluster"),
        ({"outliers": "keep"}, "anchor, negative, drop"),
        ({"cluster_memory": "fixed"}, "dynamic, momentum"),
        ({"recluster_from": "images"}, "memory, extract"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_possible_ones(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hcl", "hcl-hcl", "hcl-no_cam"])
def test_cameras_are_declared_for_the_sampler_alone(name: str) -> None:
    needs = HCL.needs(resolve_run(name, "rendered", "controlled").config)
    assert needs.cameras == (frozenset() if name == "hcl-no_cam" else {"sampler"})
    assert needs.identities is None
