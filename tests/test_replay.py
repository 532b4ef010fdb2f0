"""Replays equal their records, every run has one, and what differs is named by its first quantity."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from core import memory, neighbors
from core.clustering import dbscan
from tests.replay import __main__ as command
from tests.replay.check import RECORDS, Unsteady, all_groups, check, names_of, steady_record
from tests.replay.parts import PARTS
from tests.replay.record import Record, differences, read, write


@pytest.fixture
def record() -> Callable[[], Record]:
    """A fresh copy of a committed record."""
    return lambda: read(RECORDS / "cluster_contrast.json")["cluster_contrast-sequential@cnn"]


@pytest.mark.parametrize("group", all_groups())
def test_every_method_and_variant_has_a_record_and_no_record_is_left_over(group: str) -> None:
    assert list(read(RECORDS / f"{group}.json")) == names_of(group), f"python -m tests.replay --record {group}"


def test_records_are_small() -> None:
    sizes = [path.stat().st_size for path in RECORDS.glob("*.json")]
    assert max(sizes) < 300_000
    assert sum(sizes) < 5_000_000


@pytest.mark.parametrize(
    ("group", "name", "threads"),
    [
        ("cluster_contrast", "cluster_contrast-sequential@cnn", 1),
        ("spcl", "spcl-released@cnn", 2),
        ("vitc_ureid", "vitc_ureid-cap@vit", 2),
        ("ice", "ice-released@cnn", 2),  # blur and jitter
        ("parts", "ranking", 2),
        ("parts", "audit", 1),
        ("parts", "augmentation", 1),
    ],
)
def test_a_replay_equals_its_record(group: str, name: str, threads: int) -> None:
    outcome = check(group, name, threads)
    assert not outcome.differences, outcome


def test_a_slightly_other_update_is_found_where_it_first_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(bank: torch.Tensor, rows: torch.Tensor, features: torch.Tensor, momentum: float) -> None:
        memory.sequential_update(bank, rows, features, momentum * (1 + 1e-4))

    monkeypatch.setitem(memory.UPDATES, "sequential", off)
    outcome = check("cluster_contrast", "cluster_contrast-sequential@cnn", 2)
    first = r"cluster_contrast-sequential@cnn: epoch 1, step 1, memory row \d+: .* instead of .* \(and \d+ more"
    assert re.match(first, str(outcome))


def test_the_first_quantity_that_differs_is_named_with_its_row(record: Callable[[], Record]) -> None:
    changed = record()
    changed.quantities["epoch 1, step 2, memory"][3] *= 1 + 2e-6
    changed.quantities["epoch 2, labels"][17] += 1
    where = changed.names["parameter"].index("embedder.backbone.conv1.weight")
    changed.quantities["epoch 2, step 1, gradient norm"][where] *= 1.1
    found = differences(changed, record())
    assert [sentence.split(":")[0] for sentence in found] == [
        "epoch 1, step 2, memory row 3",
        "epoch 2, labels of image 17",
        "epoch 2, step 1, gradient norm of parameter embedder.backbone.conv1.weight",
    ]


def test_rounding_is_no_difference_but_a_nan_and_a_missing_quantity_are(record: Callable[[], Record]) -> None:
    changed = record()
    changed.quantities["epoch 1, step 2, memory"][3] *= 1 + 2e-7
    assert not differences(changed, record())
    changed.quantities["epoch 1, step 2, memory"][3] = float("nan")
    del changed.quantities["epoch 2, labels"]
    found = differences(changed, record())
    assert found[0].startswith("epoch 1, step 2, memory row 3: nan")
    assert found[1] == "epoch 2, labels: only in the record"


def test_a_run_without_a_record_says_which_command_makes_one(tmp_path: Path) -> None:
    outcome = check("spcl", "spcl-released@cnn", 1, records=tmp_path)
    assert str(outcome) == "spcl-released@cnn: no record; `python -m tests.replay --record spcl` makes one"


def test_a_run_that_cannot_start_is_a_difference_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(memory.UPDATES, "sequential")
    outcome = check("cluster_contrast", "cluster_contrast-sequential@cnn", 1)
    assert outcome.differences[0].startswith("UserError: memory update 'sequential' is unknown")


def test_a_record_is_read_as_it_was_written(record: Callable[[], Record], tmp_path: Path) -> None:
    write(tmp_path / "one.json", {"run": record()})
    assert read(tmp_path / "one.json") == {"run": record()}


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["hhlc"]) == 2
    assert "nothing to replay is called 'hhlc'; known: ranking" in capsys.readouterr().err


def test_what_hangs_on_the_last_digits_of_float32_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every three rows two are equally near to the third but for less than float32 can tell between machines."""
    angles = (1.2 * torch.arange(5.0)[:, None].double() + torch.tensor([0.0, 0.5, -0.5 - 1e-8])).flatten()
    features = torch.stack([angles.cos(), angles.sin()], dim=1)

    def close_call(record: Record) -> None:
        record.note("neighbours", neighbors.knn(features, 2)[1])

    monkeypatch.setitem(PARTS, "close call", close_call)
    with pytest.raises(Unsteady, match="close call hangs on the last digits of float32: neighbours row"):
        steady_record("parts", "close call", 1)


def test_labels_of_distances_that_are_dbscan_s_radius_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie(record: Record) -> None:
        graph = csr_array(np.array([[0, 0.5], [0.5, 0]], dtype=np.float32))
        record.note("labels", dbscan(graph, 0.5, 2))

    monkeypatch.setitem(PARTS, "tie", tie)
    with pytest.raises(Unsteady, match="tie hangs on the last digits of float32: labels"):
        steady_record("parts", "tie", 1)
