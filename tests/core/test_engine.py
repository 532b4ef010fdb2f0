"""Pieces of the training loop that need no dataset: rates, precision, ranks, access to labels."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.config import Optimiser, Schedule
from core.data import Labels, Needs, TrainingData, UndeclaredAccess
from core.distributed import ProcessGroup
from core.engine import Step, Trainer, build_optimiser, rate_factor, set_decay
from core.images import ImageStore
from core.rng import Streams
from core.timing import PhaseTimer
from tests.replay.record import Record
from tests.replay.runs import replay, runs_of

CPU = torch.device("cpu")


def test_the_rate_falls_by_gamma_every_step_epochs() -> None:
    schedule = Schedule(epochs=50, step=20, gamma=0.1)
    factors = [rate_factor(schedule, epoch) for epoch in (0, 19, 20, 39, 40, 49)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_step_of_zero_is_a_constant_rate() -> None:
    assert {rate_factor(Schedule(step=0), epoch) for epoch in range(50)} == {1.0}


def test_warm_up_rises_linearly_from_its_first_factor() -> None:
    schedule = Schedule(step=0, warmup=10, warmup_factor=0.01)
    factors = [rate_factor(schedule, epoch) for epoch in (0, 5, 10)]
    assert factors == pytest.approx([0.01, 0.505, 1.0])


def test_a_warm_up_of_whole_epochs_rises_where_an_epoch_starts_and_a_shorter_one_at_every_step() -> None:
    whole, short = (Schedule(step=0, warmup=epochs, warmup_factor=0.1) for epochs in (2.0, 0.6))
    places = [Step(epoch, number, 5).place for epoch in range(3) for number in range(5)]
    factors = [rate_factor(whole, place) for place in places]
    assert factors == pytest.approx([0.1] * 5 + [0.55] * 5 + [1.0] * 5)
    assert [rate_factor(short, place) for place in places] == pytest.approx([0.1, 0.4, 0.7] + [1.0] * 12)


@pytest.mark.parametrize("step", [0.1, 0.7, 2.8, 4.0])
def test_the_rate_falls_at_the_exact_step_of_a_fractional_epoch(step: float) -> None:
    steps = 10
    for position in range(12 * steps):
        factor = rate_factor(Schedule(step=step), Step(*divmod(position, steps), steps).place)
        assert factor == pytest.approx(0.1 ** (position // round(step * steps)))


def test_the_rate_falls_at_each_milestone_and_the_step_is_not_read() -> None:
    schedule = Schedule(epochs=8, step=1, milestones=(5, 6.5), gamma=0.1)
    factors = [rate_factor(schedule, place) for place in (0, 4.99, 5, 6.25, 6.5, 7.99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_cosine_begins_where_the_warm_up_ends_and_reaches_its_share_at_the_end_of_the_run() -> None:
    schedule = Schedule(epochs=10, step=1, cosine=True, cosine_end=0.2, warmup=2, warmup_factor=0.1)
    factors = [rate_factor(schedule, place) for place in (0, 0.5, 1, 2, 4, 6, 8, 10)]
    falling = [0.2 + 0.4 * (1 + np.cos(np.pi * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert factors == pytest.approx([0.1, 0.325, 0.55, *falling])


def test_weight_decay_moves_along_a_cosine_but_in_groups_that_state_their_own() -> None:
    network = torch.nn.Linear(2, 2)
    groups = [{"params": [network.weight]}, {"params": [network.bias], "weight_decay": 0.0}]
    config = Optimiser("adamw", weight_decay=0.04, weight_decay_end=0.4)
    optimiser = build_optimiser(SimpleNamespace(param_groups=lambda: groups), config)  # type: ignore[arg-type]
    for progress, decay in ((0, 0.04), (0.5, 0.22), (1, 0.4)):
        set_decay(optimiser, config, progress)
        assert [group["weight_decay"] for group in optimiser.param_groups] == pytest.approx([decay, 0])


def test_a_phase_inside_another_is_counted_once() -> None:
    timer = PhaseTimer()
    with timer("outer"):
        with timer("inner"):
            time.sleep(0.05)
        time.sleep(0.01)
    seconds = timer.take()
    assert seconds["inner"] >= 0.05
    assert 0.01 <= seconds["outer"] < 0.04


@pytest.mark.parametrize(("batch", "size"), [(64, 1), (64, 4), (10, 4), (3, 2), (2, 4)])
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(batch)[ProcessGroup(rank, size, CPU).part(batch)]]
    assert rows == list(range(batch))


def test_ranks_share_a_batch_in_the_chunks_of_batch_norm() -> None:
    chunks = torch.arange(10).chunk(4)
    parts = [torch.arange(10)[ProcessGroup(rank, 4, CPU).part(10)] for rank in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(chunks, parts, strict=True))


def data(needs: Needs) -> TrainingData:
    images = ImageStore(torch.zeros(4, 3, 8, 4, dtype=torch.uint8), CPU)
    return TrainingData(images, needs, ProcessGroup(0, 1, CPU), np.arange(4), np.arange(4))


def test_identities_are_out_of_reach_unless_declared() -> None:
    with pytest.raises(UndeclaredAccess, match="person ids"):
        _ = data(Needs()).identities
    np.testing.assert_array_equal(data(Needs(identities="train")).identities, np.arange(4))


def test_cameras_are_given_only_for_the_declared_use() -> None:
    seen = data(Needs(cameras=frozenset({"sampler"})))
    np.testing.assert_array_equal(seen.cameras("sampler"), np.arange(4))
    with pytest.raises(UndeclaredAccess, match="by the loss"):
        seen.cameras("loss")


def test_features_are_extracted_once_per_epoch_and_only_when_asked_for() -> None:
    calls = []
    seen = data(Needs())
    for epoch in range(2):
        seen.new_epoch(lambda epoch=epoch: calls.append(epoch) or {"feature": torch.full((4, 2), epoch)})
        assert calls == list(range(epoch))
        assert torch.equal(seen.features(), seen.features())
        assert seen.features()[0, 0] == epoch
    assert calls == [0, 1]


def test_labels_count_clusters_and_outliers() -> None:
    labels = Labels(np.array([0, 2, 1, -1, 2]))
    assert (labels.clusters, labels.outliers) == (3, 1)
    assert Labels(np.array([-1, -1])).clusters == 0


def test_a_stream_depends_on_seed_name_and_epoch_and_on_nothing_else() -> None:
    first = Streams(0).torch("augment", 3)
    torch.rand(5, generator=Streams(0).torch("augment", 3))
    draws = {
        float(torch.rand(1, generator=g))
        for g in (
            first,
            Streams(0).torch("augment", 3),
            Streams(1).torch("augment", 3),
            Streams(0).torch("augment", 4),
            Streams(0).torch("sampler", 3),
        )
    }
    assert len(draws) == 4
    assert Streams(5).numpy("s").integers(2**60) == Streams(5).numpy("s").integers(2**60)


def test_images_are_read_ahead_of_extraction_and_of_every_step_with_its_source(monkeypatch) -> None:
    """In training, what ``batch`` gives is among the last two batches that were announced: this and the next."""
    announced: defaultdict[ImageStore, deque[set[int]]] = defaultdict(lambda: deque(maxlen=2))
    stores, steps = set(), []
    give, begin = ImageStore.batch, Trainer._batches

    def announce(store: ImageStore, rows: np.ndarray | torch.Tensor) -> None:
        stores.add(store)
        announced[store].append(set(rows.tolist()))

    def check(store: ImageStore, rows: torch.Tensor) -> torch.Tensor:
        assert not steps or set(rows.tolist()) <= set().union(*announced[store])
        return give(store, rows)

    def forget(trainer: Trainer, epoch: int, labels: Labels) -> Iterator[np.ndarray]:
        announced.clear()  # of the extraction
        for rows in begin(trainer, epoch, labels):
            steps.append(rows)
            yield rows

    monkeypatch.setattr(ImageStore, "read_ahead", announce)
    monkeypatch.setattr(ImageStore, "batch", check)
    monkeypatch.setattr(Trainer, "_batches", forget)
    replay(runs_of("sal")[0], Record())
    assert steps
    assert len(stores) == 4  # train, source, query and gallery
