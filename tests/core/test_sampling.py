"""Batches against the rules of the family's sampler and of CAP's.

docs/methods/shared.md, "Batches"; docs/methods/vitc_ureid.md, "Proxies".
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from core.sampling import camera_batches, pk_batches, proxy_batches, shuffled_batches
from tests.reference_memory import companions

P, K = 4, 4


def labelled(seed: int = 0, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Labels with outliers, clusters of one image and of one camera; camera ids of some unknown."""
    rng = np.random.default_rng(seed)
    labels, cameras = rng.integers(-1, 25, size), rng.integers(0, 5, size)
    labels[:3], labels[3:5] = [25, 26, 27], 28
    cameras[labels == 7] = 2
    cameras[rng.random(size) < 0.05] = -1
    return labels, cameras


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def groups_of(batches: list[np.ndarray]) -> list[np.ndarray]:
    """The K entries of each cluster, where every cluster has K."""
    return list(np.concatenate(batches).reshape(-1, K))


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("singleton", ["fill", "repeat"])
def test_outliers_are_never_drawn_and_every_batch_is_full(blind: bool, singleton: str) -> None:
    labels, cameras = labelled()
    batches = list(pk_batches(labels, P, K, rng(), None if blind else cameras, singleton))
    assert {batch.shape for batch in batches} == {(P * K,)}
    assert (labels[np.concatenate(batches)] >= 0).all()


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_companions_of_a_seed_follow_the_rule_of_cameras_and_replacement(blind: bool, seed: int) -> None:
    labels, cameras = labelled(seed)
    view = None if blind else cameras
    for entries in groups_of(list(pk_batches(labels, P, K, rng(seed), view, "repeat"))):
        first, others = int(entries[0]), entries[1:].tolist()
        allowed, may_repeat = companions(first, labels, view, K)
        if not allowed:
            assert others == [first] * (K - 1)
            continue
        assert set(others) <= allowed
        assert may_repeat or len(set(others)) == K - 1


def test_without_replacement_needs_k_candidates_not_k_minus_one() -> None:
    """With K-1 candidates the released sampler repeats some; with K it never does."""
    repeats = {}
    for size in (K, K + 1):
        labels = np.zeros(size, dtype=int)
        drawn = [next(pk_batches(labels, 1, K, rng(seed))) for seed in range(200)]
        repeats[size] = sum(len(set(batch)) < K for batch in drawn)
    assert repeats[K] > 100
    assert repeats[K + 1] == 0


def test_a_cluster_of_several_cameras_gives_an_image_of_another_camera_than_the_seeds() -> None:
    labels, cameras = labelled()
    for seed in range(20):
        for entries in groups_of(list(pk_batches(labels, P, K, rng(seed), cameras, "repeat"))):
            if len(set(cameras[labels == labels[entries[0]]])) > 1:
                assert (cameras[entries[1:]] != cameras[entries[0]]).all()


def test_the_camera_blind_draw_mixes_cameras_as_they_come() -> None:
    labels, cameras = np.zeros(100, dtype=int), np.arange(100) % 2
    same = [
        (cameras[batch[1:]] == cameras[batch[0]]).mean()
        for seed in range(300)
        for batch in pk_batches(labels, 1, K, rng(seed))
    ]
    assert np.mean(same) == pytest.approx(0.5, abs=0.05)


def test_permuting_camera_ids_moves_no_draw() -> None:
    """Only which images share a camera matters, not what the camera is called."""
    labels, cameras = labelled()
    renamed = np.array([3, 0, 4, 1, 2, -1])[cameras]
    for seed in range(5):
        original = list(pk_batches(labels, P, K, rng(seed), cameras))
        assert np.array_equal(original, list(pk_batches(labels, P, K, rng(seed), renamed)))


def test_seeds_and_companions_are_drawn_uniformly() -> None:
    labels, cameras = np.zeros(6, dtype=int), np.array([0, 0, 1, 1, 1, 2])
    seeds, others = Counter(), Counter()
    for seed in range(6000):
        batch = next(pk_batches(labels, 1, 2, rng(seed), cameras)).tolist()
        seeds[batch[0]] += 1
        if batch[0] == 0:
            others[batch[1]] += 1
    assert max(abs(seeds[i] / 6000 - 1 / 6) for i in range(6)) < 0.02
    assert set(others) == {2, 3, 4, 5}
    assert max(abs(n / others.total() - 1 / 4) for n in others.values()) < 0.06


def test_every_cluster_comes_once_in_a_pass_in_an_order_that_changes() -> None:
    labels = np.arange(160) % 16
    orders = []
    for seed in range(2):
        groups = groups_of(list(pk_batches(labels, P, K, rng(seed))))
        assert all(len(set(labels[entries])) == 1 for entries in groups)
        orders.append([int(labels[entries[0]]) for entries in groups])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(16))
    assert orders[0] != orders[1]


def test_an_only_image_gives_one_entry_and_the_next_clusters_fill_the_batch() -> None:
    labels = np.concatenate([np.arange(10), np.repeat(np.arange(10, 20), 6)])
    batches = list(pk_batches(labels, P, K, rng()))
    counts = Counter(np.concatenate(batches).tolist())
    assert all(counts[i] <= 1 for i in range(10))
    # 10 entries of only images and 40 of the others make 3 batches of 16; 2 entries are dropped.
    assert len(batches) == 3
    assert sum(counts[i] for i in range(10)) >= 8


def test_an_only_image_is_repeated_k_times_when_asked() -> None:
    labels = np.arange(8)
    batches = list(pk_batches(labels, P, K, rng(), singleton="repeat"))
    assert len(batches) == 2
    assert sorted(np.concatenate(batches).tolist()) == sorted(np.repeat(labels, K).tolist())


def test_an_incomplete_last_batch_is_dropped() -> None:
    labels = np.repeat(np.arange(2 * P + 1), K)
    assert len(list(pk_batches(labels, P, K, rng()))) == 2


@pytest.mark.parametrize("labels", [np.repeat(np.arange(3), 5), np.arange(5), np.zeros(9, int)])
def test_fewer_clusters_than_p_are_drawn_again_until_one_batch_is_full(labels: np.ndarray) -> None:
    batches = list(pk_batches(labels, P, K, rng()))
    assert [len(batch) for batch in batches] == [P * K]
    assert set(labels[batches[0]]) == set(labels)


def test_labels_without_a_cluster_are_refused_before_the_first_batch() -> None:
    nothing, cameras = np.full(10, -1), np.zeros(10, dtype=int)
    with pytest.raises(ValueError, match="every label is -1"):
        pk_batches(nothing, P, K, rng())
    with pytest.raises(ValueError, match="every label is -1"):
        proxy_batches(nothing, cameras, P, K, rng())
    with pytest.raises(ValueError, match="'fill' or 'repeat'"):
        pk_batches(np.zeros(9, int), P, K, rng(), singleton="drop")


def test_the_same_generator_state_gives_the_same_batches() -> None:
    labels, cameras = labelled()
    for draw in (
        lambda seed: pk_batches(labels, P, K, rng(seed), cameras),
        lambda seed: proxy_batches(labels, cameras, P, K, rng(seed)),
        lambda seed: shuffled_batches(96, 16, rng(seed)),
    ):
        first, again, other = (np.stack(list(draw(seed))[:5]) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(5))
def test_a_proxy_batch_holds_p_distinct_proxies_with_k_images_of_their_own(seed: int) -> None:
    labels, cameras = labelled(seed)
    pairs = [(int(c), int(k)) for c, k in zip(labels, cameras, strict=True)]
    seen = Counter()
    for batch in proxy_batches(labels, cameras, P, K, rng(seed)):
        drawn = Counter(pairs[i] for i in batch)
        assert sorted(drawn.values()) == [K] * P
        seen.update(drawn.keys())
        for pair in drawn:
            images = [i for i in batch if pairs[i] == pair]
            if pairs.count(pair) >= K:
                assert len(set(images)) == K
    proxies = {pair for pair in pairs if pair[0] >= 0}
    assert set(seen) <= proxies
    assert set(seen.values()) == {1}, "a pass draws a proxy once"
    assert len(seen) == len(proxies) // P * P


def test_proxies_come_in_an_order_that_changes() -> None:
    labels, cameras = np.arange(64) % 16, np.zeros(64, dtype=int)
    orders = [
        [int(labels[entries[0]]) for entries in groups_of(list(batches))]
        for batches in (proxy_batches(labels, cameras, P, K, rng(seed)) for seed in range(2))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(16))
    assert orders[0] != orders[1] != sorted(orders[1])


def test_a_small_proxy_lists_each_image_k_times_and_draws_from_that() -> None:
    """Of 2 images listed 4 times each, 4 draws are all alike with chance 2 / C(8, 4) = 1 / 35."""
    labels, cameras = np.zeros(2, dtype=int), np.zeros(2, dtype=int)
    drawn = [next(proxy_batches(labels, cameras, 1, K, rng(seed))) for seed in range(7000)]
    alike = sum(len(set(batch)) == 1 for batch in drawn)
    assert alike / 7000 == pytest.approx(1 / 35, abs=0.008)


def test_few_proxies_are_drawn_again_until_one_batch_is_full() -> None:
    labels, cameras = np.zeros(6, dtype=int), np.arange(6) % 2
    batches = list(proxy_batches(labels, cameras, P, K, rng()))
    assert [len(batch) for batch in batches] == [P * K]
    assert (cameras[batches[0]] == 0).sum() == P * K / 2


def test_a_plain_shuffle_gives_every_index_once_and_keeps_its_last_batch() -> None:
    batches = list(shuffled_batches(10, 4, rng()))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    chosen = np.array([3, 5, 8])
    assert sorted(np.concatenate(list(shuffled_batches(chosen, 2, rng()))).tolist()) == [3, 5, 8]
    assert chosen.tolist() == [3, 5, 8]


def test_a_cluster_gives_k_images_of_as_many_cameras_as_it_has() -> None:
    """ICE's rule, with clusters of one image, of one camera, of fewer and of more cameras than K."""
    for seed in range(20):
        labels, cameras = labelled(seed)
        for entries in groups_of(list(camera_batches(labels, cameras, P, K, rng(seed)))):
            (cluster,) = set(labels[entries].tolist())
            members = np.flatnonzero(labels == cluster)
            available = set(cameras[members].tolist())
            if len(members) == len(available) < K:
                assert set(entries.tolist()) <= set(members.tolist()), "no other image: all K with replacement"
                continue
            assert len(set(cameras[entries].tolist())) == min(K, len(available))
            first, others = set(entries[: len(available)].tolist()), entries[len(available) :].tolist()
            assert not first & set(others), "one of each camera, then the cluster's other images"
            assert len(members) < K or len(set(entries.tolist())) == K, "without replacement where there are enough"


def test_every_camera_and_every_image_of_a_camera_is_drawn_as_often() -> None:
    labels, cameras = np.zeros(12, int), np.repeat(np.arange(6), 2)
    counts = Counter(
        np.concatenate([next(camera_batches(labels, cameras, 1, K, rng(s))) for s in range(3000)]).tolist()
    )
    assert set(counts) == set(range(12))
    expected = 3000 * K / 12
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_clusters_too_few_for_a_batch_of_cameras_come_again() -> None:
    labels, cameras = np.array([0, 0, 1, -1]), np.array([0, 1, 0, 1])
    batch = next(camera_batches(labels, cameras, P, K, rng()))
    assert len(batch) == P * K
    assert Counter(labels[batch].tolist()) == {0: P * K // 2, 1: P * K // 2}
