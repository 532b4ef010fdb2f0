"""The benchmark of many images: a row of it, going on after an interruption, and the page it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import scale

pytest.importorskip("faiss")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Both searches of 400 images."""
    monkeypatch.setattr(scale, "LABELS", tmp_path / "labels")
    return pd.DataFrame([scale.measure(400, 16, search, 1, 50, tmp_path) for search in ("exact", "ivf")])


def test_a_row_has_every_phase_and_compares_its_labels_with_the_exact_ones(rows: pd.DataFrame) -> None:
    for name in scale.PHASES:
        assert (rows[f"seconds_{name}"] > 0).all()
        assert (rows[f"peak_{name}"] >= 0).all()
    assert rows["ari_exact"].tolist()[0] == 1
    assert rows["recall"].isna().tolist() == [True, False]
    assert 0.5 < rows["ari_exact"][1] <= 1
    assert (rows["clusters"] > 5).all()


def test_without_exact_labels_there_is_no_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LABELS", tmp_path)
    assert scale.agreement(np.arange(5), 5, 8, "ivf") is None


def test_what_has_a_row_is_not_measured_again(
    rows: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.to_csv(tmp_path / "rows.csv", index=False)
    asked = ["--images", "400", "--dim", "16", "--threads", "1", "--rows", str(tmp_path / "rows.csv")]
    assert scale.main(asked) == 0
    assert capsys.readouterr().out.count("is in") == 2
    assert len(scale.read_rows(tmp_path / "rows.csv")) == 2


def test_the_table_shows_what_was_measured_and_what_was_not_run(rows: pd.DataFrame) -> None:
    table = scale.measured(rows).splitlines()
    assert sum("not run" in line for line in table) == sum(len(sizes) for sizes in scale.PLAN.values())
    assert sum("| 400 " in line for line in table) == 2
    assert scale.larger(rows) == "Not run."  # D = 16


def test_an_exact_search_of_ten_times_the_images_takes_a_hundred_times_as_long() -> None:
    row = pd.Series({"images": 1_000_000, "dimensions": 256, "search": "exact", "threads": 2, "seconds_knn": 864.0})
    row = pd.concat([row, pd.Series(dict.fromkeys(["seconds_jaccard", "seconds_dbscan"], 432.0))])
    row = pd.concat([row, pd.Series(dict.fromkeys(["peak_knn", "peak_jaccard", "peak_dbscan"], 5e9))])
    told = scale.extrapolated(row, 10_000_000)
    assert told["k-NN FLOP"] == "5.1e+16"
    assert told["days"] == "1.10"
    assert (told["features GB"], told["beside them GB"], told["machines"]) == ("10", "50", "2")
