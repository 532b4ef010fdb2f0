"""HHCL (docs/methods/hhcl.md): what tests/methods/test_contrast.py, shared with its baseline, leaves open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Clustering, Config, Sampler
from core.data import Batch, Labels, Needs
from core.memory import SlotMemory
from core.timing import PhaseTimer
from methods.hhcl.method import HHCL, Settings
from pipeline.settings import resolve_run
from tests.methods.draws import unit

CLUSTERS, DIM, TAU, M = 6, 16, 0.05, 0.1


class Data:
    """Stands in for the training data; asking it for cameras, which it does not have, is an error."""

    def __init__(self, features: Tensor) -> None:
        self._features, self.timer = features, PhaseTimer()

    def features(self) -> Tensor:
        return self._features


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def hhcl(clustering: Clustering | None = None, **settings: object) -> HHCL:
    config = Config(settings=Settings(**settings), clustering=clustering or Clustering())  # type: ignore[arg-type]
    return HHCL(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def fill(method: HHCL, features: Tensor, ids: Tensor, seed: int = 0) -> HHCL:
    drawn = torch.Generator().manual_seed(seed)
    method.start_epoch(Labels(ids.numpy()), Data(features), drawn)  # type: ignore[arg-type]
    return method


def batch_of(targets: Tensor) -> Batch:
    return Batch([], torch.arange(len(targets)), targets, None, {}, 0)


def loose_groups(generator: torch.Generator) -> Tensor:
    centres = unit(generator, 12, 32).repeat_interleave(12, dim=0)
    return F.normalize(centres + 1.4 * unit(generator, 144, 32), dim=1)


def test_every_epoch_starts_with_equal_memories_and_nothing_of_the_last_one(generator) -> None:
    """Property 4, beyond the first epoch."""
    ids, targets = torch.arange(48) % CLUSTERS, torch.tensor([0, 0, 3, 3, 5])
    method = hhcl()
    for _ in range(2):
        features = unit(generator, 48, DIM)
        fill(method, features, ids)
        assert torch.equal(method.hard.rows, method.mean.rows)
        torch.testing.assert_close(method.mean.rows, fill(hhcl(), features, ids).mean.rows, rtol=0, atol=0)
        method.after_step({"feature": unit(generator, 5, DIM)}, batch_of(targets))
        assert not torch.equal(method.hard.rows, method.mean.rows)


def test_the_headline_row_is_the_released_one_and_its_ablation_switches_the_hard_memory_off() -> None:
    """Properties 1 and 5: the tested weights are those of the configuration."""
    for profile in ("published", "controlled"):
        released = resolve_run("hhcl", "market1501", profile).config.settings
        assert (released.hard_memory, released.w_hard, released.w_mean) == ("momentum", 0.5, 0.25)
        reduced = resolve_run("hhcl-mean_only", "market1501", profile).config.settings
        assert (reduced.hard_memory, reduced.w_hard, reduced.w_mean) == ("momentum", 0.0, 1.0)
        paper = resolve_run("hhcl-paper", "market1501", profile).config.settings
        assert (paper.hard_memory, paper.w_centroid, paper.slots) == ("slots", 0.5, None)


@pytest.mark.parametrize("w_centroid", [0.0, 0.3, 1.0])
def test_the_weight_of_the_paper_variant_is_that_of_the_centroid_term(w_centroid: float, generator) -> None:
    """Property 6's L = w L_c + (1 - w) L_i."""
    ids, targets = torch.arange(48) % CLUSTERS, torch.tensor([0, 0, 3, 3, 5])
    features, f = unit(generator, 48, DIM), unit(generator, 5, DIM)
    method = fill(hhcl(hard_memory="slots", slots=4, w_centroid=w_centroid), features, ids)
    terms = method.loss({"feature": f}, batch_of(targets))
    similarity = torch.stack([f @ method.hard.slots[c].T for c in range(CLUSTERS)], dim=1)
    own = F.one_hot(targets, CLUSTERS).bool()
    hardest = torch.where(own, similarity.amin(dim=2), similarity.amax(dim=2))
    torch.testing.assert_close(terms["mean"], w_centroid * F.cross_entropy(f @ method.mean.rows.T / TAU, targets))
    torch.testing.assert_close(terms["hard"], (1 - w_centroid) * F.cross_entropy(hardest / TAU, targets))


def test_clusters_of_identical_images_fill_their_slots_with_the_centroid_so_both_terms_are_equal(generator) -> None:
    """Property 6 through the memory's own filling, for any number of slots."""
    ids, targets = torch.arange(48) % CLUSTERS, torch.tensor([0, 0, 3, 3, 5])
    method = fill(hhcl(hard_memory="slots", slots=5), unit(generator, CLUSTERS, DIM)[ids], ids)
    terms = method.loss({"feature": unit(generator, 5, DIM)}, batch_of(targets))
    torch.testing.assert_close(terms["hard"], terms["mean"])


@pytest.mark.parametrize("instances", [4, 16])
def test_a_cluster_has_as_many_slots_as_the_sampler_draws_of_it(instances: int, generator) -> None:
    config = Config(settings=Settings(hard_memory="slots"), sampler=Sampler(instances=instances))
    ids = torch.arange(CLUSTERS).repeat_interleave(8)
    method = fill(HHCL(config, torch.nn.Identity(), 1), unit(generator, len(ids), DIM), ids)  # type: ignore[arg-type]
    assert isinstance(method.hard, SlotMemory)
    assert method.hard.slots.shape == (CLUSTERS, instances, DIM)


def test_slots_are_members_of_their_cluster_drawn_with_replacement_from_the_given_generator(generator) -> None:
    ids = torch.arange(48) % CLUSTERS  # 8 images per cluster
    ids[-6:] = -1
    features = unit(generator, 48, DIM)
    slots = fill(hhcl(hard_memory="slots", slots=16), features, ids, seed=1).hard.slots
    for c in range(CLUSTERS):
        found = torch.isclose(slots[c] @ features.T, torch.ones(1, dtype=torch.float64)).nonzero()
        assert len(found) == 16, "each slot is one image"
        assert set(ids[found[:, 1]].tolist()) == {c}
        assert 1 < len(set(found[:, 1].tolist())) <= 7
    again, other = (fill(hhcl(hard_memory="slots", slots=16), features, ids, seed=s).hard.slots for s in (1, 2))
    assert torch.equal(slots, again)
    assert not torch.equal(slots, other)


def test_the_centroids_of_the_paper_variant_follow_the_plain_batch_mean(generator) -> None:
    """Section 5 B: the mean is not re-normalised before it is mixed in; absent classes keep their rows."""
    ids, targets = torch.arange(48) % CLUSTERS, torch.tensor([0, 0, 3, 3, 3, 5])
    f = unit(generator, 6, DIM)
    method = fill(hhcl(hard_memory="slots", slots=4), unit(generator, 48, DIM), ids)
    before = method.mean.rows.clone()
    method.after_step({"feature": f}, batch_of(targets))
    for y in range(CLUSTERS):
        if y in targets:
            mixed = M * before[y] + (1 - M) * f[targets == y].mean(0)
            torch.testing.assert_close(method.mean.rows[y], F.normalize(mixed, dim=0))
        else:
            assert torch.equal(method.mean.rows[y], before[y])


def test_memories_of_the_paper_variant_move_only_after_the_step(generator) -> None:
    """Property 2: neither the loss nor its backward pass changes a memory, unlike in the released code."""
    ids, targets = torch.arange(48) % CLUSTERS, torch.tensor([0, 0, 3])
    for hard_memory in ("momentum", "slots"):
        method = fill(hhcl(hard_memory=hard_memory, slots=4), unit(generator, 48, DIM), ids)
        banks = [method.mean.rows, method.hard.slots if isinstance(method.hard, SlotMemory) else method.hard.rows]
        before = [bank.clone() for bank in banks]
        query = unit(generator, 3, DIM).requires_grad_()
        torch.stack(list(method.loss({"feature": query}, batch_of(targets)).values())).sum().backward()
        assert all(torch.equal(old, bank) for old, bank in zip(before, banks, strict=True))


def test_labels_are_numbered_without_gaps_and_outliers_have_no_row(generator) -> None:
    """Property 9 from features to the memory."""
    data = Data(loose_groups(generator))
    method = hhcl(Clustering(k1=10, k2=4, eps=0.55))
    labels = method.label(0, data)  # type: ignore[arg-type]
    assert labels.outliers > 0
    assert sorted(set(labels.ids[labels.ids >= 0])) == list(range(labels.clusters))
    method.start_epoch(labels, data, generator)  # type: ignore[arg-type]
    assert len(method.mean.rows) == len(method.hard.rows) == labels.clusters
    inside = labels.ids >= 0
    members = Labels(labels.ids[inside])
    alone = hhcl()
    alone.start_epoch(members, Data(data.features()[torch.as_tensor(inside)]), generator)  # type: ignore[arg-type]
    torch.testing.assert_close(method.mean.rows, alone.mean.rows)


def test_without_cameras_the_draw_needs_none_and_the_table_says_so(generator) -> None:
    """Property 10: ``no_cam`` cannot depend on camera ids, as it never asks for them."""
    config = resolve_run("hhcl-no_cam", "rendered", "tiny").config
    assert HHCL.needs(config) == Needs()
    assert HHCL.needs(resolve_run("hhcl", "rendered", "tiny").config).cameras == {"sampler"}
    method = HHCL(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]
    labels = Labels(np.repeat(np.arange(6), 8))
    data = Data(unit(generator, 48, DIM))
    drawn = list(method.batches(labels, data, np.random.default_rng(0)))  # type: ignore[arg-type]
    assert drawn
    assert all(len(rows) == config.sampler.batch for rows in drawn)
