"""Complicated images: docs/methods/complicated_images.md."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Backbone, Config, Sampler
from core.data import Batch, Labels
from core.errors import UserError
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.complicated_images.batches import split_batch
from methods.complicated_images.dictionary import nearest_of_other_kind
from methods.complicated_images.method import ComplicatedImages, Settings
from tests.methods.draws import unit
from tests.methods.proxies_small import Data

IMAGES, CLUSTERS, DIM, TAU = 60, 6, 16, 0.05
IDS = np.where(np.arange(IMAGES) % 4 == 3, -1, np.arange(IMAGES) % CLUSTERS)  # 15 outliers
OUTLIERS = np.flatnonzero(IDS < 0)


def config_of(settings: object = None, **changes: object) -> Config:
    return Config(settings or Settings(**changes), sampler=Sampler(4, 4, False), backbone=Backbone(bn_groups=2))  # type: ignore[arg-type]


def started(features: Tensor, ids: np.ndarray = IDS, **settings: object) -> ComplicatedImages:
    method = ComplicatedImages(config_of(instances=None, **settings), torch.nn.Identity(), 1)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    method.start_epoch(Labels(ids), data_of(features), generator)  # type: ignore[arg-type]
    return method


def data_of(features: Tensor) -> Data:
    return Data(features, torch.zeros(len(features), dtype=torch.int64), frozenset({"sampler"}))


def batch_of(rows: np.ndarray | list[int], ids: np.ndarray = IDS) -> Batch:
    rows = np.asarray(rows)
    return Batch([], torch.as_tensor(rows), torch.as_tensor(ids[rows]), None, {}, 0)


def total(method: ComplicatedImages, features: Tensor, batch: Batch) -> Tensor:
    return torch.stack(list(method.loss({"feature": features}, batch).values())).sum()


@pytest.fixture
def features(generator: torch.Generator) -> Tensor:
    return unit(generator, IMAGES, DIM)


def test_every_addition_off_is_cluster_contrast_its_batches_loss_gradient_and_memory(features, generator) -> None:
    off = started(features, outliers="dropped", update="sequential")
    base = ClusterContrast(config_of(ClusterContrastSettings()), torch.nn.Identity(), 1)  # type: ignore[arg-type]
    base.start_epoch(Labels(IDS), data_of(features), generator)  # type: ignore[arg-type]
    drawn = [list(made.batches(Labels(IDS), data_of(features), np.random.default_rng(0))) for made in (off, base)]  # type: ignore[arg-type]
    assert len(drawn[0]) > 0
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))
    found = []
    for made in (off, base):
        query = unit(torch.Generator().manual_seed(1), 16, DIM).requires_grad_()
        (loss,) = made.loss({"feature": query}, batch_of(drawn[0][0])).values()
        found.append((loss.detach(), *torch.autograd.grad(loss, query)))
        made.after_step({"feature": query.detach()}, batch_of(drawn[0][0]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(off.dictionary.rows, base.memory.rows)


def test_without_outliers_all_rules_are_one_and_the_batch_is_filled_with_clusters(features) -> None:
    ids = np.arange(IMAGES) % CLUSTERS
    for outliers in ("anchors", "negatives"):
        made = started(features, ids, outliers=outliers)
        (first, *_) = made.batches(Labels(ids), data_of(features), np.random.default_rng(0))  # type: ignore[arg-type]
        assert len(first) == 16
        (loss,) = made.loss({"feature": features[first]}, batch_of(first, ids)).values()
        expected = F.cross_entropy(
            features[first] @ made.dictionary.centroids.rows.T / TAU, torch.as_tensor(ids[first])
        )
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_with_weight_0_outliers_only_add_negatives_and_masked_ones_add_nothing(features, generator) -> None:
    rows, query = np.arange(16), unit(generator, 16, DIM)
    inside = IDS[rows] >= 0
    dropped = total(started(features, outliers="dropped"), query[inside], batch_of(rows[inside]))
    weightless, masked = (
        total(started(features, outlier_weight=0.0, ignored=count), query, batch_of(rows)) for count in (0, IMAGES)
    )
    torch.testing.assert_close(masked, dropped, rtol=0, atol=1e-12)
    assert weightless > dropped


def test_an_outlier_that_equals_its_entry_among_orthogonal_ones_has_the_loss_in_closed_form() -> None:
    ids = np.array([0, 0, 1, 1, -1, -1, -1])
    features = torch.eye(5, dtype=torch.float64)[[0, 0, 1, 1, 2, 3, 4]]
    (loss,) = started(features, ids).loss({"feature": features[[5]]}, batch_of([5], ids)).values()
    assert float(loss) == pytest.approx(math.log(1 + 4 * math.exp(-1 / TAU)), rel=1e-9)


def test_the_dictionary_has_unit_rows_one_for_each_cluster_and_each_outlier_and_no_gradient(features) -> None:
    features.requires_grad_()
    dictionary = started(features).dictionary
    assert dictionary.rows.shape == (CLUSTERS + len(OUTLIERS), DIM)
    torch.testing.assert_close(dictionary.rows.norm(dim=1), torch.ones(len(dictionary.rows)).double())
    assert sorted(dictionary.row_of[OUTLIERS].tolist()) == list(range(CLUSTERS, CLUSTERS + len(OUTLIERS)))
    torch.testing.assert_close(dictionary.rows[dictionary.row_of[OUTLIERS]], features[OUTLIERS].detach())
    assert np.array_equal(dictionary.row_of[IDS >= 0].numpy(), IDS[IDS >= 0])
    assert not dictionary.rows.requires_grad


def test_a_step_moves_the_entries_of_its_batch_alone_each_by_its_rule(features, generator) -> None:
    made, (first, second) = started(features), OUTLIERS[:2]
    rows, query = [0, 24, first, second, first], unit(generator, 5, DIM)
    before = made.dictionary.rows.clone()
    made.after_step({"feature": query}, batch_of(rows))
    after, row_of = made.dictionary.rows, made.dictionary.row_of
    changed = (after != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted({int(row_of[row]) for row in rows})
    expected = before[row_of[rows]].clone()
    expected[0] = F.normalize(0.1 * before[0] + 0.9 * query[:2].mean(dim=0), dim=0)  # 0 and 24 are of cluster 0
    for place in (2, 3):
        expected[place] = F.normalize(0.2 * expected[place] + 0.8 * query[place], dim=0)
    again = F.normalize(0.2 * expected[2] + 0.8 * query[4], dim=0)
    torch.testing.assert_close(after[row_of[[0, first, second]]], torch.stack([expected[0], again, expected[3]]))


def test_the_feature_of_an_outlier_does_not_touch_the_centroids(features, generator) -> None:
    moved = features.clone()
    moved[OUTLIERS] = unit(generator, len(OUTLIERS), DIM)
    first, second = started(features).dictionary, started(moved).dictionary
    assert torch.equal(first.centroids.rows, second.centroids.rows)
    assert not torch.equal(first.alone.rows, second.alone.rows)


def test_the_order_of_images_does_not_matter(features, generator) -> None:
    order = torch.randperm(IMAGES, generator=generator)
    rows, query = np.arange(16), unit(generator, 16, DIM)
    place = order.argsort().numpy()  # where an image stands in the new order
    shuffled = started(features[order], IDS[order.numpy()])
    found = total(shuffled, query, batch_of(place[rows], IDS[order.numpy()]))
    torch.testing.assert_close(found, total(started(features), query, batch_of(rows)))


def test_one_mean_over_the_batch_weighs_every_anchor_alike(features, generator) -> None:
    rows, query = np.arange(16), unit(generator, 16, DIM)
    made = started(features, reduction="batch")
    logits = query @ made.dictionary.rows.T / TAU
    torch.testing.assert_close(
        total(made, query, batch_of(rows)), F.cross_entropy(logits, made.dictionary.row_of[rows])
    )


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_guard_leaves_out_the_most_similar_of_the_other_kind_and_never_the_own_entry(count: int, generator) -> None:
    clusters, rows = 5, torch.tensor([0, 4, 5, 11])
    logits = torch.randn(4, 12, generator=generator)
    found = nearest_of_other_kind(logits, rows, clusters, count)
    for i, row in enumerate(rows.tolist()):
        others = list(range(5, 12)) if row < clusters else list(range(5))
        expected = sorted(others, key=lambda entry: -float(logits[i, entry]))[:count]
        assert found[i].nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize(("share", "outliers"), [(0.25, 4), (0.5, 8), (None, 4), (0.01, 4)])
def test_every_chunk_of_every_batch_has_its_outliers_each_drawn_before_any_comes_again(
    features, share: float | None, outliers: int
) -> None:
    made = started(features, outlier_share=share)
    batches = list(made.batches(Labels(IDS), data_of(features), np.random.default_rng(0)))  # type: ignore[arg-type]
    assert batches
    for batch in batches:
        assert len(batch) == 16
        assert [int((IDS[chunk] < 0).sum()) for chunk in np.split(batch, 2)] == [outliers // 2] * 2
        counts = Counter(IDS[batch[IDS[batch] >= 0]].tolist())
        assert set(counts.values()) == {4}
    drawn = Counter(np.concatenate(batches)[IDS[np.concatenate(batches)] < 0].tolist())
    assert max(drawn.values()) - min(drawn[int(o)] for o in OUTLIERS) <= 1


def test_fewer_outliers_than_a_batch_takes_are_repeated(features) -> None:
    ids = np.where(np.arange(IMAGES) < 2, -1, IDS % CLUSTERS)
    made = started(features, ids)
    (first,) = islice(made.batches(Labels(ids), data_of(features), np.random.default_rng(0)), 1)  # type: ignore[arg-type]
    assert Counter(first[ids[first] < 0].tolist()) == {0: 2, 1: 2}


def test_the_sizes_of_batches_are_those_of_the_settings_page() -> None:
    assert split_batch(256, 12, 0.25) == (16, 64)
    assert split_batch(64, 4, 0.125) == (14, 8)
    assert split_batch(16, 4, 0.25) == (3, 4)
    assert [split_batch(64, 4, share)[1] for share in (1e-9, 1 - 1e-9)] == [4, 60]


def test_a_cap_keeps_that_many_entries_and_leaves_the_others_out(features) -> None:
    made = started(features, max_outliers=5)
    row_of = made.dictionary.row_of[OUTLIERS]
    assert sorted(row_of[row_of >= 0].tolist()) == list(range(CLUSTERS, CLUSTERS + 5))
    assert (row_of == -1).sum() == len(OUTLIERS) - 5
    (first, *_) = made.batches(Labels(IDS), data_of(features), np.random.default_rng(0))  # type: ignore[arg-type]
    assert (made.dictionary.row_of[first] >= 0).all()


def test_a_batch_without_room_for_an_outlier_is_refused() -> None:
    config = dataclasses.replace(config_of(), sampler=Sampler(1, 4))
    with pytest.raises(UserError, match=r"12 images of a cluster leave no place.*batch of 4; lower settings.instances"):
        ComplicatedImages(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]
