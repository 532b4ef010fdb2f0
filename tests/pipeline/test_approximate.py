"""A run whose neighbours were searched approximately says so in its history and in its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import core.approximate
from pipeline import evaluate, train
from tests.conftest import TinyWorld

pytest.importorskip("faiss")


def test_the_recall_of_every_epoch_is_in_the_history_and_the_lowest_in_the_results(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_of_the_lists(bank, k):
        similarity, index = core.approximate.knn(bank, 2 * k)
        return similarity[:, ::2].copy(), index[:, ::2].copy()

    monkeypatch.setattr(core.approximate, "_ivf_search", half_of_the_lists)
    trained, scored = tmp_path / "trained", tmp_path / "scored"
    assert train.main(world.train_arguments("hhcl", trained, "--set", "clustering.search=ivf")) == 0
    history = pd.read_csv(trained / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert history["search_recall"].to_numpy() == pytest.approx(np.full(2, 0.5), abs=0.05)
    assert json.loads((trained / "train.json").read_text())["run"]["config"]["clustering"]["search"] == "ivf"
    assert evaluate.main(world.evaluate_arguments("hhcl", trained, scored)) == 0
    lowest = history["search_recall"].min()
    assert json.loads((scored / "result.json").read_text())["notes"] == [
        f"pseudo-labels by an approximate search (ivf), which found {lowest:.2%} of the exact neighbours or more in "
        "every epoch"
    ]
    assert "search_recall" in pd.read_csv(scored / "curves.csv")
