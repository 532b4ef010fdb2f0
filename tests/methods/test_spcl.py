"""SpCL's loss, memory and epoch: docs/methods/spcl.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data import Batch, Labels
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.spcl.memory import HybridMemory, hybrid_nll
from methods.spcl.method import Settings, SpCL
from tests import reference_memory
from tests.methods.draws import unit
from tests.methods.spcl_small import DIM, Data, M, begin, config_of, crowd_and_strangers, spcl
from tests.parity import arrays
from tests.parity.files import compare_file

TAU, EPSILON = 0.05, 1e-6
GOLDEN = Path(__file__).parents[1] / "golden" / "spcl_hybrid_memory.npz"
PLAIN = {
    "memory": "centroids",
    "momentum": 0.1,
    "outliers": False,
    "independence": False,
    "compactness": False,
    "epsilon": 0.0,
}


@pytest.fixture
def people(generator: torch.Generator) -> Tensor:
    return crowd_and_strangers(generator)


def cluster_contrast() -> ClusterContrast:
    config = dataclasses.replace(config_of(), settings=ClusterContrastSettings())
    return ClusterContrast(config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def batch_of(rows: np.ndarray, labels: Labels) -> Batch:
    extra = {name: value[rows] for name, value in labels.extra.items()}
    return Batch([], torch.as_tensor(rows), torch.as_tensor(labels.ids[rows]), None, extra, 0)


def filled(features: Tensor, classes: Tensor) -> HybridMemory:
    memory = HybridMemory(features, M)
    memory.assign(classes)
    return memory


# ---- The loss and the memory -------------------------------------------------------------------------------------


def literal_loss(f: Tensor, bank: Tensor, classes: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """The loss as docs/methods/spcl.md writes it, image by image and class by class."""
    losses = []
    for i in range(len(f)):
        scores = [
            torch.stack([f[i] @ bank[j] / TAU for j in range(len(bank)) if classes[j] == k]).mean()
            for k in range(int(classes.max()) + 1)
        ]
        exps = torch.stack(scores).exp()
        losses.append(-torch.log(exps[targets[i]] / (exps.sum() + epsilon) + epsilon))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_loss_and_gradient_are_those_of_the_class_means_written_out(generator, epsilon: float) -> None:
    bank = unit(generator, 30, DIM)
    classes = torch.cat([torch.arange(8), torch.randint(0, 5, (22,), generator=generator)])
    targets = torch.tensor([0, 7, 3, 3, 5, 1])
    memory = filled(bank, classes)
    ours, literal = (unit(torch.Generator().manual_seed(1), 6, DIM).requires_grad_() for _ in range(2))
    loss = hybrid_nll(ours, memory.class_means(), targets, TAU, epsilon)
    expected = literal_loss(literal, bank, classes, targets, epsilon)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, literal.grad)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_no_gradient_reaches_the_memory(generator, epsilon: float) -> None:
    bank, f = (unit(generator, size, DIM).requires_grad_() for size in (8, 6))
    hybrid_nll(f, bank, torch.tensor([0, 7, 3, 3, 5, 1]), TAU, epsilon).backward()
    assert f.grad is not None
    assert f.grad.abs().sum() > 0
    assert bank.grad is None


def test_with_every_image_its_own_class_it_is_the_plain_softmax_over_instances(generator) -> None:
    bank, f = unit(generator, 40, DIM), unit(generator, 12, DIM)
    targets = torch.randint(0, 40, (12,), generator=generator)
    means = filled(bank, torch.arange(40)).class_means()
    assert torch.equal(means, F.normalize(bank, dim=1))
    plain = F.cross_entropy(f @ bank.T / TAU, targets)
    assert torch.equal(hybrid_nll(f, means, targets, TAU, 0.0), F.cross_entropy(f @ means.T / TAU, targets))
    # The 1e-6 inside the logarithm moves a term by 1e-6 / p at most; here p is small, so both directions are seen.
    released = hybrid_nll(f, means, targets, TAU, EPSILON)
    assert released < plain
    p = (f @ bank.T / TAU).softmax(dim=1)[torch.arange(12), targets]
    torch.testing.assert_close(released, -(p + EPSILON).log().mean(), rtol=1e-6, atol=0)


def test_with_equal_members_it_is_the_loss_of_cluster_contrast(generator) -> None:
    centres, f = unit(generator, 7, DIM), unit(generator, 12, DIM)
    classes = torch.arange(7).repeat_interleave(torch.tensor([1, 5, 2, 9, 1, 3, 4]))
    targets = classes[torch.randint(0, len(classes), (12,), generator=generator)]
    contrast = cluster_contrast()
    contrast.start_epoch(Labels(classes.numpy()), Data(centres[classes]), generator)  # type: ignore[arg-type]
    batch = Batch([], torch.arange(12), targets, None, {}, 0)
    theirs = contrast.loss({"feature": f}, batch)["cluster"]
    means = filled(centres[classes], classes).class_means()
    torch.testing.assert_close(hybrid_nll(f, means, targets, TAU, 0.0), theirs)
    torch.testing.assert_close(hybrid_nll(f, means, targets, TAU, 1e-12), theirs)


def test_classes_score_the_mean_of_their_rows_which_has_no_unit_length(generator) -> None:
    bank = unit(generator, 10, DIM)
    means = filled(bank, torch.tensor([0, 0, 0, 1, 1, -1, -1, 2, 2, 2])).class_means()
    torch.testing.assert_close(means, torch.stack([bank[:3].mean(0), bank[3:5].mean(0), bank[7:].mean(0)]))
    assert (means.norm(dim=1) < 0.99).all()


def test_small_temperatures_overflow_neither_loss_nor_gradient(generator) -> None:
    means, f = unit(generator, 9, DIM).float(), unit(generator, 4, DIM).float().requires_grad_()
    loss = hybrid_nll(f, means, torch.tensor([0, 3, 3, 8]), 1e-3, EPSILON)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(f.grad).all()


def test_rows_are_updated_by_image_in_batch_order_and_the_class_follows_at_once(people, generator) -> None:
    method, data = spcl(), Data(people)
    labels = begin(method, data)
    rows = np.array([3, 3, 50, 199, 3])
    features = unit(generator, 5, DIM)
    before = method.instances.rows.clone()
    method.after_step({"feature": features}, batch_of(rows, labels))
    expected = reference_memory.sequential(before, torch.as_tensor(rows), features, M)
    torch.testing.assert_close(method.instances.rows, expected)
    untouched = np.setdiff1d(np.arange(200), rows)
    assert torch.equal(method.instances.rows[untouched], before[untouched])
    classes = labels.extra["class"]
    torch.testing.assert_close(method.instances.class_means()[classes[50]], expected[classes == classes[50]].mean(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_golden_file_is_reproduced(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "DTYPE", dtype)
    assert compare_file(GOLDEN).status == "pass"


@pytest.mark.parametrize("array", ["loss_0", "grad_1", "memory_3"])
def test_one_changed_golden_value_is_noticed(array: str, tmp_path: Path) -> None:
    with np.load(GOLDEN) as data:
        changed = data[array].copy()
        changed.flat[0] += 1e-3
        np.savez(tmp_path / GOLDEN.name, **{**data, array: changed})
    result = compare_file(tmp_path / GOLDEN.name)
    assert result.status == "FAIL"
    assert array in result.remark


# ---- The epoch ---------------------------------------------------------------------------------------------------


def test_outliers_stay_outliers_in_the_labels_and_are_classes_of_the_loss(people) -> None:
    method, data = spcl(), Data(people)
    labels = begin(method, data)
    assert 0 < labels.outliers < 200
    classes = labels.extra["class"]
    alone = torch.as_tensor(labels.ids < 0)
    assert torch.equal(classes[~alone], torch.as_tensor(labels.ids)[~alone])
    assert torch.equal(classes[alone], labels.clusters + torch.arange(labels.outliers))
    assert len(method.instances.class_means()) == labels.clusters + labels.outliers
    batch = batch_of(np.flatnonzero(labels.ids < 0)[:3], labels)
    assert (batch.targets == -1).all()
    loss = method.loss({"feature": people[batch.indices]}, batch)["contrast"]
    expected = literal_loss(people[batch.indices], people, classes, batch.extra["class"], EPSILON)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.parametrize("uses_camera", [True, False])
def test_batches_draw_every_unclustered_image_as_one_entry_where_outliers_take_part(
    people, outliers: bool, uses_camera: bool
) -> None:
    cameras = np.tile([0, 1, 1, 2], 50)
    config = config_of(outliers=outliers)
    sampler = dataclasses.replace(config.sampler, identities=4, instances=4, uses_camera=uses_camera)
    config = dataclasses.replace(config, sampler=sampler)
    assert (SpCL.needs(config).cameras == {"sampler"}) is uses_camera
    method, data = SpCL(config, torch.nn.Identity(), 1), Data(people, cameras if uses_camera else None)  # type: ignore[arg-type]
    labels = begin(method, data)
    rows = np.concatenate(list(method.batches(labels, data, np.random.default_rng(0))))  # type: ignore[arg-type]
    assert len(rows) % 16 == 0
    alone = rows[labels.ids[rows] < 0]
    assert len(alone) == len(set(alone))
    # All but what an incomplete last batch drops.
    assert labels.outliers - 16 < len(alone) if outliers else len(alone) == 0


def test_the_memory_is_filled_once_and_clustered_instead_of_fresh_features(people, generator) -> None:
    method, data = spcl(), Data(people)
    first = begin(method, data)
    assert data.extractions == 2  # one extraction by the engine, read by the labels and by the memory
    rows = np.arange(150)
    method.after_step({"feature": unit(generator, 150, DIM)}, batch_of(rows, first))
    moved = method.instances.rows.clone()
    second = begin(method, data, epoch=1)
    assert data.extractions == 2
    assert torch.equal(method.instances.rows, moved)
    assert not np.array_equal(first.ids, second.ids)
    fresh = spcl()
    fresh.threshold = method.threshold
    np.testing.assert_array_equal(begin(fresh, Data(moved)).ids, second.ids)


def test_reclustering_from_extraction_forgets_the_rows_of_the_last_epoch(people, generator) -> None:
    method, data = spcl(recluster_from="extract"), Data(people)
    first = begin(method, data)
    method.after_step({"feature": unit(generator, 150, DIM)}, batch_of(np.arange(150), first))
    assert not torch.equal(method.instances.rows, people)
    second = begin(method, data, epoch=1)
    np.testing.assert_array_equal(second.ids, first.ids)
    torch.testing.assert_close(method.instances.rows, people)


@pytest.mark.parametrize("memory", [{}, {"recluster_from": "extract"}, {"memory": "centroids"}])
def test_a_resumed_run_goes_on_with_the_same_bits(people, generator, memory: dict[str, str], tmp_path: Path) -> None:
    method, data = spcl(**memory, gap=0.1), Data(people.float())
    labels = begin(method, data)
    method.after_step({"feature": unit(generator, 64, DIM).float()}, batch_of(np.arange(64), labels))
    torch.save(method.memory_state(), tmp_path / "state.pt")
    resumed = spcl(**memory, gap=0.1)
    resumed.load_memory_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.threshold == method.threshold
    again, ours = begin(resumed, data, epoch=1), begin(method, data, epoch=1)
    np.testing.assert_array_equal(again.ids, ours.ids)
    if not memory:
        assert torch.equal(resumed.instances.rows, method.instances.rows)
    batch = batch_of(np.arange(0, 200, 7), ours)
    features = {"feature": people.float()[batch.indices]}
    assert torch.equal(resumed.loss(features, batch)["contrast"], method.loss(features, batch)["contrast"])
    for run in (resumed, method):
        run.after_step({"feature": features["feature"].flip(0)}, batch)
    assert torch.equal(resumed.loss(features, batch)["contrast"], method.loss(features, batch)["contrast"])


def test_saved_state_is_a_copy(people) -> None:
    method, data = spcl(), Data(people)
    labels = begin(method, data)
    saved = method.memory_state()["rows"]
    before = saved.clone()
    method.after_step({"feature": people[:9].flip(0)}, batch_of(np.arange(9), labels))
    assert torch.equal(saved, before)
    assert not torch.equal(method.instances.rows, before)


def test_with_every_addition_off_it_is_cluster_contrast_bit_for_bit(people, generator) -> None:
    cameras = np.tile([0, 1, 2, 2], 50)
    reduced, baseline = spcl(**PLAIN), cluster_contrast()
    data = Data(people, cameras)
    for epoch in range(2):
        ours, theirs = begin(reduced, data, epoch), begin(baseline, data, epoch)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        drawn = [
            list(method.batches(labels, data, np.random.default_rng(epoch)))  # type: ignore[arg-type]
            for method, labels in ((reduced, ours), (baseline, theirs))
        ]
        assert len(drawn[0]) == len(drawn[1]) > 0
        for rows, same_rows in zip(*drawn, strict=True):
            np.testing.assert_array_equal(rows, same_rows)
            batch, feature = batch_of(rows, ours), {"feature": unit(generator, len(rows), DIM)}
            assert torch.equal(reduced.loss(feature, batch)["contrast"], baseline.loss(feature, batch)["cluster"])
            reduced.after_step(feature, batch)
            baseline.after_step(feature, batch)
            assert torch.equal(reduced.centroids.rows, baseline.memory.rows)


def test_the_ablation_row_of_the_baseline_has_every_addition_off() -> None:
    from pipeline.settings import resolve_run

    config = resolve_run("spcl-cluster_contrast", "rendered", "controlled").config
    assert config.settings == Settings(**PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", ["published", "controlled", "tiny"])
def test_every_profile_keeps_both_clusterings_inside_the_graph(profile: str) -> None:
    from pipeline.settings import resolve_run

    for dataset in ("market1501", "msmt17_v1", "rendered"):
        SpCL(resolve_run("spcl", dataset, profile).config, torch.nn.Identity(), 1)  # type: ignore[arg-type]


def test_impossible_settings_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="instances or centroids"):
        Settings(memory="bank")
    with pytest.raises(ValueError, match="memory or extract"):
        Settings(recluster_from="images")
    with pytest.raises(ValueError, match="must not be negative"):
        Settings(gap=-0.1)
    with pytest.raises(ValueError, match="independence_share"):
        Settings(independence_share=90)
    for row in ({"gap": 0.4, "compactness": False}, {"gap": 0.7, "independence": False}):
        with pytest.raises(ValueError, match=r"clustering\.eps 0\.6 with settings\.gap"):
            spcl(**row)
    spcl(gap=0.7, independence=False, compactness=False)
    spcl(gap=0.5, independence=False)
