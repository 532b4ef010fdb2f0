"""Memory updates against literal loops: docs/methods/shared.md, "Memories"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import memory as m
from core.losses import cluster_nll
from tests import reference_memory as reference

GOLDEN = Path(__file__).parents[1] / "golden"
RULES = {
    "sequential": (m.sequential_update, reference.sequential),
    "hardest": (m.hardest_update, reference.hardest),
    "mean": (m.mean_update, reference.mean),
}
# (rows of the bank, batch, width): one sample, one class, sparse and crowded batches.
SHAPES = [(5, 1, 8), (1, 9, 4), (50, 7, 16), (6, 40, 32), (30, 64, 3)]


def unit_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def row_numbers(size: int, count: int, seed: int) -> Tensor:
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 1.0])
def test_a_vectorised_update_equals_the_loop_over_samples(
    rule: str, shape: tuple[int, int, int], momentum: float
) -> None:
    size, batch, width = shape
    update, loop = RULES[rule]
    bank = unit_rows(size, width, seed=1)
    rows, features = row_numbers(size, batch, seed=2), unit_rows(batch, width, seed=3)
    expected = loop(bank, rows, features, momentum)
    update(bank, rows, features, momentum)
    torch.testing.assert_close(bank, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_a_vectorised_update_equals_the_loop_when_every_sample_is_of_one_class(rule: str) -> None:
    update, loop = RULES[rule]
    bank, features = unit_rows(4, 8, seed=1), unit_rows(33, 8, seed=2)
    rows = torch.full((33,), 2)
    expected = loop(bank, rows, features, 0.1)
    update(bank, rows, features, 0.1)
    torch.testing.assert_close(bank, expected, rtol=1e-12, atol=1e-14)


def test_the_mean_is_normalised_before_mixing_only_when_asked() -> None:
    bank, rows = unit_rows(3, 8, seed=1), row_numbers(3, 12, seed=2)
    features = unit_rows(12, 8, seed=3)
    expected = reference.mean(bank, rows, features, 0.5, unit_mean=True)
    plain = bank.clone()
    m.mean_update(plain, rows, features, 0.5)
    m.mean_update(bank, rows, features, 0.5, unit_mean=True)
    torch.testing.assert_close(bank, expected, rtol=1e-12, atol=1e-14)
    assert (bank - plain).abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_absent_classes_are_bit_identical_after_an_update(rule: str) -> None:
    bank = unit_rows(10, 8, seed=1, dtype=torch.float32)
    before = bank.clone()
    RULES[rule][0](bank, torch.tensor([3, 7, 3]), unit_rows(3, 8, seed=2), 0.1)
    absent = [r for r in range(10) if r not in (3, 7)]
    assert torch.equal(bank[absent], before[absent])
    assert not torch.equal(bank[[3, 7]], before[[3, 7]])


def test_the_second_image_of_a_class_is_applied_to_the_result_of_the_first() -> None:
    bank, features = unit_rows(2, 6, seed=1), unit_rows(2, 6, seed=2)
    once = F.normalize(0.1 * bank[0] + 0.9 * features[0], dim=0)
    twice = F.normalize(0.1 * once + 0.9 * features[1], dim=0)
    m.sequential_update(bank, torch.tensor([0, 0]), features, 0.1)
    torch.testing.assert_close(bank[0], twice)


def test_the_order_of_a_batch_matters_to_the_sequential_update_only() -> None:
    rows, features = torch.tensor([0, 1, 0, 0]), unit_rows(4, 6, seed=2)
    moved = {}
    for rule, (update, _) in RULES.items():
        forward, backward = unit_rows(2, 6, seed=1), unit_rows(2, 6, seed=1)
        update(forward, rows, features, 0.1)
        update(backward, rows.flip(0), features.flip(0), 0.1)
        moved[rule] = float((forward - backward).abs().max())
    assert moved["sequential"] > 1e-2
    assert max(moved["hardest"], moved["mean"]) < 1e-14


def test_the_hardest_image_is_the_one_least_similar_to_the_row_before_the_batch() -> None:
    bank = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    features = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 1.0]]).double(), dim=1)
    m.hardest_update(bank, torch.zeros(3, dtype=torch.long), features, 0.2)
    expected = F.normalize(0.2 * torch.tensor([1.0, 0.0]).double() + 0.8 * features[1], dim=0)
    torch.testing.assert_close(bank[0], expected)


def test_of_equally_hard_images_the_first_in_the_batch_is_taken() -> None:
    bank = torch.tensor([[1.0, 0.0, 0.0]])
    features = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    m.hardest_update(bank, torch.zeros(2, dtype=torch.long), features, 0.0)
    assert torch.equal(bank[0], features[0])


def test_all_rules_agree_when_every_class_occurs_once() -> None:
    rows, features = torch.tensor([4, 0, 2]), unit_rows(3, 6, seed=2)
    results = []
    for update, _ in RULES.values():
        bank = unit_rows(5, 6, seed=1)
        update(bank, rows, features, 0.1)
        results.append(bank)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_rows_keep_unit_norm_through_many_updates(rule: str) -> None:
    memory = m.CentroidMemory(unit_rows(8, 16, seed=0, dtype=torch.float32), 0.1, rule)
    for step in range(200):
        features = unit_rows(24, 16, seed=step, dtype=torch.float32)
        memory.update(features, row_numbers(8, 24, seed=step))
    torch.testing.assert_close(memory.rows.norm(dim=1), torch.ones(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_number_outside_the_bank_is_refused(rule: str, row: int) -> None:
    with pytest.raises(ValueError, match="leave outliers"):
        RULES[rule][0](torch.eye(5), torch.tensor([1, row]), torch.eye(5)[:2], 0.1)


@pytest.mark.parametrize("shape", [(4, 3, 1), (5, 4, 11), (2, 3, 20), (7, 1, 30)], ids=str)
def test_slots_are_overwritten_in_batch_order_and_the_surplus_is_dropped(
    shape: tuple[int, int, int],
) -> None:
    clusters, count, batch = shape
    slots, features = unit_rows(clusters, count, 6, seed=1), unit_rows(batch, 6, seed=2)
    classes = row_numbers(clusters, batch, seed=3)
    expected = reference.overwrite(slots, classes, features)
    m.overwrite_slots(slots, classes, features)
    assert torch.equal(slots, expected)


def test_a_step_puts_the_batch_features_into_the_first_slots_exactly_and_keeps_the_rest() -> None:
    memory = m.SlotMemory(unit_rows(3, 4, 6, seed=1, dtype=torch.float32))
    before = memory.slots.clone()
    features = unit_rows(3, 6, seed=2, dtype=torch.float32)
    memory.update(features, torch.tensor([2, 0, 2]))
    assert torch.equal(memory.slots[2, :2], features[[0, 2]])
    assert torch.equal(memory.slots[2, 2:], before[2, 2:])
    assert torch.equal(memory.slots[0, :1], features[1:2])
    assert torch.equal(memory.slots[0, 1:], before[0, 1:])
    assert torch.equal(memory.slots[1], before[1])


def test_slot_logits_take_the_hardest_instance_of_the_own_and_of_every_other_cluster() -> None:
    slots, features = unit_rows(5, 4, 8, seed=1), unit_rows(9, 8, seed=2)
    targets = row_numbers(5, 9, seed=3)
    logits = m.SlotMemory(slots).logits(features, targets, 0.05)
    expected = reference.slot_logits(slots, features, targets, 0.05)
    torch.testing.assert_close(logits, expected)


def test_one_slot_equal_to_the_centroid_gives_the_centroid_logits() -> None:
    rows, features = unit_rows(5, 8, seed=1), unit_rows(9, 8, seed=2)
    targets = row_numbers(5, 9, seed=3)
    by_slot = m.SlotMemory(rows[:, None]).logits(features, targets, 0.05)
    torch.testing.assert_close(by_slot, m.CentroidMemory(rows, 0.1).logits(features, 0.05))


def test_slots_are_filled_with_members_drawn_with_replacement_by_the_generator() -> None:
    features = unit_rows(40, 8, seed=1)
    labels = np.arange(40) % 5 - 1
    first, again, other = (
        m.SlotMemory.sample(features, labels, 64, torch.Generator().manual_seed(seed)).slots for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for cluster in range(4):
        distance = torch.cdist(first[cluster], features)
        assert distance.min(dim=1).values.max() < 1e-6
        drawn = set(distance.argmin(dim=1).tolist())
        assert drawn == set(np.flatnonzero(labels == cluster)), "64 draws reach all 8 members"


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, 0, 1, -1, 2, 2, 0], [0, -1, 1, 1]], ids=str)
def test_centroids_are_the_normalised_means_of_their_members(labels: list[int]) -> None:
    features = unit_rows(len(labels), 8, seed=1)
    expected = reference.centroids(features, np.array(labels))
    torch.testing.assert_close(m.cluster_centroids(features, np.array(labels)), expected)
    torch.testing.assert_close(m.cluster_centroids(features, torch.tensor(labels)), expected)


def test_centroids_of_no_cluster_or_of_labels_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="every label is -1"):
        m.cluster_centroids(torch.eye(3), np.array([-1, -1, -1]))
    with pytest.raises(ValueError, match="without gaps"):
        m.cluster_centroids(torch.eye(3), np.array([0, 2, -1]))


def test_two_memories_built_from_the_same_centroids_are_equal_and_do_not_share_rows() -> None:
    centroids = unit_rows(4, 8, seed=1)
    hard, mean = m.CentroidMemory(centroids, 0.1, "hardest"), m.CentroidMemory(centroids, 0.1)
    assert torch.equal(hard.rows, mean.rows)
    features, targets = unit_rows(6, 8, seed=2), row_numbers(4, 6, seed=3)
    losses = [cluster_nll(features, memory.rows, targets, 0.05) for memory in (hard, mean)]
    assert torch.equal(*losses)
    hard.update(features, targets)
    torch.testing.assert_close(mean.rows, centroids)


def test_gradient_reaches_the_features_as_from_plain_cross_entropy_and_never_a_memory() -> None:
    targets = row_numbers(4, 6, seed=3)
    centroid = m.CentroidMemory(unit_rows(4, 8, seed=1).requires_grad_(), 0.1)
    slots = m.SlotMemory(unit_rows(4, 3, 8, seed=1).requires_grad_())
    features = unit_rows(6, 8, seed=2).requires_grad_()
    F.cross_entropy(centroid.logits(features, 0.05), targets).backward()
    probability = torch.softmax(features.detach() @ centroid.rows.T / 0.05, dim=1)
    residual = (probability - F.one_hot(targets, 4)) / 6
    torch.testing.assert_close(features.grad, residual @ centroid.rows / 0.05)
    slots.logits(features, targets, 0.05).sum().backward()
    assert not centroid.rows.requires_grad
    assert not slots.slots.requires_grad


def test_an_update_reads_detached_features_and_leaves_no_graph() -> None:
    features = unit_rows(6, 8, seed=2).requires_grad_()
    memories = [m.CentroidMemory(unit_rows(4, 8, seed=1), 0.1, rule) for rule in RULES]
    for memory in memories:
        memory.update(features, row_numbers(4, 6, seed=3))
        assert not memory.rows.requires_grad
    slots = m.SlotMemory(unit_rows(4, 2, 8, seed=1))
    slots.update(features, row_numbers(4, 6, seed=3))
    assert not slots.slots.requires_grad


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_memories_hold_and_compute_float32_under_autocast_and_float64_when_given_it(
    given: torch.dtype, held: torch.dtype
) -> None:
    features, labels = unit_rows(12, 8, seed=1, dtype=given), np.arange(12) % 3
    with torch.autocast("cpu", torch.bfloat16):
        memory = m.CentroidMemory.of_clusters(features, labels, 0.1, "mean")
        slots = m.SlotMemory.sample(features, labels, 2, torch.Generator())
        logits = memory.logits(features, 0.05)
        by_slot = slots.logits(features, torch.tensor(labels), 0.05)
        memory.update(features, torch.tensor(labels))
        slots.update(features, torch.tensor(labels))
    assert {t.dtype for t in (memory.rows, slots.slots, logits, by_slot)} == {held}
    exact = features.double() @ m.cluster_centroids(features.double(), labels).T / 0.05
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


def test_an_instance_memory_updates_repeated_images_in_batch_order() -> None:
    features = unit_rows(20, 8, seed=1)
    memory = m.InstanceMemory(features, 0.2)
    indices, batch = torch.tensor([3, 11, 3, 3, 0]), unit_rows(5, 8, seed=2)
    expected = reference.sequential(features, indices, batch, 0.2)
    memory.update(batch, indices)
    torch.testing.assert_close(memory.rows, expected)


def test_an_instance_memory_follows_the_released_hybrid_memory() -> None:
    golden = np.load(GOLDEN / "spcl_hybrid_memory.npz")
    memory = m.InstanceMemory(torch.from_numpy(golden["memory_0"]), float(golden["momentum"]))
    for step in range(3):
        features = F.normalize(torch.from_numpy(golden[f"inputs_{step}"]), dim=1)
        memory.update(features, torch.from_numpy(golden[f"indices_{step}"]))
        expected = torch.from_numpy(golden[f"memory_{step + 1}"])
        torch.testing.assert_close(memory.rows, expected, rtol=1e-4, atol=1e-6)


def test_a_restored_memory_continues_like_the_saved_one() -> None:
    saved = m.InstanceMemory(unit_rows(6, 8, seed=1), 0.2)
    saved.update(unit_rows(4, 8, seed=2), row_numbers(6, 4, seed=3))
    state = saved.state_dict()
    restored = m.InstanceMemory(unit_rows(6, 8, seed=9), 0.2)
    restored.load_state_dict(state)
    for memory in (saved, restored):
        memory.update(unit_rows(4, 8, seed=4), row_numbers(6, 4, seed=5))
    assert torch.equal(saved.rows, restored.rows)
    assert not torch.equal(saved.rows, state["rows"]), "a saved state is a copy"


def test_a_checkpoint_of_another_size_and_an_unknown_rule_are_refused() -> None:
    memory = m.InstanceMemory(unit_rows(6, 8, seed=1), 0.2)
    with pytest.raises(ValueError, match="another dataset or backbone"):
        memory.load_state_dict({"rows": torch.zeros(5, 8)})
    with pytest.raises(ValueError, match="choose one of"):
        m.CentroidMemory(torch.eye(3), 0.1, "average")
    with pytest.raises(ValueError, match="between 0 and 1"):
        m.CentroidMemory(torch.eye(3), 1.5)


def proxy_world() -> tuple[Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(6), rng.integers(-1, 6, 44)])
    return unit_rows(50, 8, seed=1), labels, rng.integers(-1, 4, 50)


def test_every_proxy_is_the_normalised_mean_of_one_cluster_in_one_camera() -> None:
    features, labels, cameras = proxy_world()
    memory = m.ProxyMemory(features, labels.astype(np.int32), cameras, 0.2)
    pairs = sorted({(c, k) for c, k in zip(labels, cameras, strict=True) if c >= 0})
    assert list(zip(memory.clusters.tolist(), memory.cameras.tolist(), strict=True)) == pairs
    for proxy, (cluster, camera) in enumerate(pairs):
        images = (labels == cluster) & (cameras == camera)
        torch.testing.assert_close(memory.rows[proxy], F.normalize(features[images].mean(0), dim=0))
        assert (memory.of_image.numpy()[images] == proxy).all()
    assert (memory.of_image.numpy()[labels < 0] == -1).all()


def test_proxies_of_a_cluster_are_those_of_its_cameras() -> None:
    features, labels, cameras = proxy_world()
    memory = m.ProxyMemory(features, labels, cameras, 0.2)
    for cluster in range(6):
        proxies = memory.proxies_of_cluster(cluster)
        assert memory.cameras[proxies].tolist() == sorted(set(cameras[labels == cluster]))
    same = memory.same_cluster(torch.tensor([4, 1]))
    assert torch.equal(same[0].nonzero().flatten(), memory.proxies_of_cluster(4))
    seen = memory.same_camera(torch.tensor([2, -1]))
    assert torch.equal(seen[1], memory.cameras == -1)


def test_with_one_camera_proxies_are_clusters() -> None:
    features, labels, _ = proxy_world()
    memory = m.ProxyMemory(features, labels, np.zeros(50, dtype=int), 0.2)
    assert torch.equal(memory.rows, m.CentroidMemory.of_clusters(features, labels, 0.2).rows)
    batch, targets = unit_rows(7, 8, seed=3), row_numbers(6, 7, seed=4)
    by_proxy = cluster_nll(batch, memory.rows, targets, 0.07)
    centroids = m.cluster_centroids(features, labels)
    torch.testing.assert_close(by_proxy, cluster_nll(batch, centroids, targets, 0.07))


def test_two_images_of_one_proxy_are_two_updates_in_batch_order() -> None:
    features, labels, cameras = proxy_world()
    memory = m.ProxyMemory(features, labels, cameras, 0.2)
    proxies, batch = torch.tensor([1, 5, 1]), unit_rows(3, 8, seed=3)
    expected = reference.sequential(memory.rows, proxies, batch, 0.2)
    memory.update(batch, proxies)
    torch.testing.assert_close(memory.rows, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES)
def test_updates_on_cuda_repeat_bit_for_bit_and_agree_with_the_cpu(rule: str) -> None:
    rows, features = row_numbers(20, 256, seed=2), unit_rows(256, 64, seed=3, dtype=torch.float32)
    banks = []
    for device in ("cuda", "cuda", "cpu"):
        bank = unit_rows(20, 64, seed=1, dtype=torch.float32).to(device)
        RULES[rule][0](bank, rows.to(device), features.to(device), 0.1)
        banks.append(bank.cpu())
    assert torch.equal(banks[0], banks[1])
    torch.testing.assert_close(banks[0], banks[2], rtol=1e-5, atol=1e-6)
